# Made from nbs/87_report.ipynb by `pmd-dev tests`. Edit the notebook.
import json
import shutil
from pathlib import Path

import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import split_indices
from perceiver_moe_diffusion.evaluation.generate import needs_examples
from perceiver_moe_diffusion.pipelines.files import load_pipeline
from perceiver_moe_diffusion.runs.build import instantiate_node
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.report import (
    data_for,
    evaluate_run,
    format_number,
    loss_curves,
    read_logs,
    results_table,
    same_data,
    save_log,
    tell_missing,
)


def write_parts(folder, **parts):
    "The logs of a run in parts, each `from_STEP` with its lines of loss, step and val_loss."
    for name, lines in parts.items():
        path = folder / "log" / f"from_step_{int(name.removeprefix('from_')):07d}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("loss,step,val_loss\n" + lines)


def test_logs_of_a_run_in_parts_become_one_table(tmp_path):
    write_parts(tmp_path, from_0="0.9,10,\n0.8,20,\n0.5,30,\n", from_20="0.7,30,\n,30,0.6\n0.4,40,\n")
    save_log(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,loss,val_loss", "10,0.9,", "20,0.8,", "30,0.7,", "30,,0.6", "40,0.4,"]
    assert (tmp_path / "loss.png").is_file()


def test_the_curves_have_the_steps_at_which_a_loss_was_logged(tmp_path):
    write_parts(tmp_path, from_0="0.9,10,\n0.5,30,\n,30,0.6\n")
    assert loss_curves(read_logs(tmp_path)) == {"loss": ([10, 30], [0.9, 0.5]), "val_loss": ([30], [0.6])}


@pytest.mark.parametrize("cut", ["0.4", "0.4,", ",", "0.4,x"])
def test_a_row_that_a_full_disk_has_cut_is_left_out(tmp_path, cut):
    write_parts(tmp_path, from_0="0.9,10,\n" + cut)
    assert [row["step"] for row in read_logs(tmp_path)] == ["10"]


def test_a_run_too_short_for_a_log_still_has_its_files(tmp_path):
    save_log(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().strip() == "step,loss,val_loss" and (tmp_path / "loss.png").is_file()


def test_the_table_shows_what_has_a_title_with_its_guidance_scale():
    lines = results_table({"fd_floor": 4.2271, "fd": 16.2134, "fd_guidance_scale": 1.5, "seed": 0}).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["classifier-FD at s=1.5", ""], "in the order of the titles"
    assert [line.split()[-1] for line in lines] == ["16.21", "4.227"] and lines[1].startswith("  its floor")
    assert results_table({"seed": 0}) == ""


@pytest.mark.parametrize("value, text", [(99873, "99,873"), (3419000.0, "3.419e+06"), (0.25, "0.25"),
                                         ((0.5, 0.25, 0.75), "0.5  [0.25, 0.75]"), ([0.25, 0.75], "[0.25, 0.75]"),
                                         (None, "–"), (float("nan"), "–"), (float("-inf"), "–"),
                                         ((0.5, None, float("nan")), "0.5  [–, –]")])
def test_a_number_is_told_in_four_digits(value, text):
    assert format_number(value) == text


def test_what_was_not_computed_stands_under_the_table_and_is_told_before(capsys):
    missing = {"density": "few", "coverage": "few"}
    lines = results_table({"parameters": 7, "not_computed": missing}).splitlines()
    assert len(lines) == 2 and lines[1] == "not computed: density and coverage (few)"

    @needs_examples(lambda data, **settings: data)
    def evaluation(pipeline, data):
        ...
    tell_missing(evaluation, missing)
    tell_missing(evaluation, {})
    assert capsys.readouterr().out == f"{lines[1]}\n"


OLD_ROUGH = ["evaluation.samples_per_class=2", "evaluation.classifier_steps=5", "evaluation.max_fd_images=20"]


@pytest.fixture
def old_model(tmp_path):
    "A model of version 0.3.1, without its settings."
    return Path(shutil.copytree(Path(__file__).parent / "data" / "v0_3_1" / "model", tmp_path / "old"))


def test_a_model_of_version_0_3_1_is_measured(old_model):
    results = evaluate_run(load_config([f"run={old_model}", *OLD_ROUGH], "evaluate"))
    assert json.loads((old_model / "evaluation.json").read_text()) == json.loads(json.dumps(results))
    assert results["parameters"] == 14_617 and 0 <= results["conditional_accuracy"] <= 1
    assert results["fd"] > results["fd_floor"] > 0 and {"coverage", "diversity", "min_expert_load"} <= results.keys()


def test_the_split_of_an_old_run_is_known(old_model):
    shutil.copy(Path(__file__).parent / "data" / "v0_3_1" / "run" / "config.yaml", old_model)
    config = load_config([f"run={old_model}"], "evaluate")
    pipeline = load_pipeline(old_model)
    same_data(config, pipeline, instantiate_node(config.data), old_model)
    config.data.split_seed = 1
    with pytest.raises(UserError, match="data.split_seed=1 is not possible; allowed: 0, as in the run"):
        same_data(config, pipeline, instantiate_node(config.data), old_model)


def test_classes_in_another_order_are_other_classes_and_the_cure_is_told(old_model):
    config, pipeline = load_config([f"run={old_model}"], "evaluate"), load_pipeline(old_model)
    data = instantiate_node(config.data)
    data.examples = data.examples._replace(class_names=[*reversed(data.examples.class_names)])
    with pytest.raises(UserError, match="older versions need data.dataset.class_order=text"):
        same_data(config, pipeline, data, old_model)
    data.examples = data.examples._replace(class_names=list("abcdefghij"))
    with pytest.raises(UserError, match="Give the data settings of the run") as raised:
        same_data(config, pipeline, data, old_model)
    assert "class_order" not in str(raised.value)


def test_too_little_memory_in_an_evaluation_names_what_to_lower_and_writes_nothing(old_model, monkeypatch):
    before = sorted(path.name for path in old_model.iterdir())
    config = load_config([f"run={old_model}", *OLD_ROUGH], "evaluate")
    make = evaluate_run.__globals__["instantiate_node"]
    greedy = lambda node: make(node) if node is config.data else lambda pipeline, data: torch.empty(2**60)
    monkeypatch.setitem(evaluate_run.__globals__, "instantiate_node", greedy)
    with pytest.raises(UserError, match="memory for the evaluation. Lower .*evaluation.max_fd_images .now 20"):
        evaluate_run(config)
    assert sorted(path.name for path in old_model.iterdir()) == before


def test_old_models_keep_the_order_of_their_classes_and_are_split_as_they_were(tmp_path):
    "Twelve classes named 0 … 11: today in their order, up to version 0.4.0 as words."
    lines = ["sentiment,review", *(f"{i % 12},text number {i}" for i in range(240))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config = load_config(["run=x", "data=imdb", f"data.root={tmp_path / 't.csv'}"], "evaluate")
    by_number, as_words = [str(i) for i in range(12)], sorted(str(i) for i in range(12))
    today, old = data_for(config, by_number), data_for(config, as_words)
    assert today.examples.class_names == by_number and old.examples.class_names == as_words
    name_of = lambda data, i: data.examples.class_names[data.examples.labels[i]]
    assert [name_of(today, i) for i in range(240)] == [name_of(old, i) for i in range(240)], "each text keeps its class"
    trained_on = split_indices(old.examples, val_fraction=0.1, test_fraction=0.2, seed=0)
    assert all(map(torch.equal, trained_on, (old.train_index, old.val_index, old.test_index)))
    assert not torch.equal(old.test_index, today.test_index), "a split goes by the numbers: it had to be made anew"
    assert data_for(config, ["cat", "dog"]).examples.class_names == by_number, "other data are left to `same_data`"
