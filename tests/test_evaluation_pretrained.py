# Made from nbs/59_pretrained.ipynb by `pmd-dev tests`. Edit the notebook.
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import random_examples
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.evaluation.pretrained import (
    PROVENANCE_KEYS,
    QUICK,
    copy_at_half_precision,
    export_pretrained,
    judge_of,
    load_judge,
    record_of,
    remeasure,
)
from perceiver_moe_diffusion.pipelines.files import (
    from_pretrained,
    load_pipeline,
    pretrained_folder,
    pretrained_folders,
    read_config,
    read_weights,
)
from perceiver_moe_diffusion.tools.testing import Elsewhere


@pytest.mark.parametrize("name", sorted(pretrained_folders()))
def test_the_recorded_figures_come_out_again(name):
    "From the shipped weights and judge. Another machine adds up in another order: an image may change sides."
    record, again = record_of(name)["quick"], remeasure(from_pretrained(name), judge_of(name), **QUICK)
    assert abs(again["conditional_accuracy"] - record["conditional_accuracy"]) <= 0.004
    assert abs(again["conditional_accuracy_s1"].value - record["conditional_accuracy_s1"][0]) <= 0.006
    for figure in ("fd", "density", "coverage"):
        assert again[figure] == pytest.approx(record[figure], rel=0.03)
    assert again["diversity"].value == pytest.approx(record["diversity"][0], rel=0.02)


@pytest.mark.parametrize("name", sorted(pretrained_folders()))
def test_the_shipped_models_are_good_enough_to_ship(name):
    record = record_of(name)
    assert record["conditional_accuracy"] >= 0.98 and record["memorisation"][0] <= record["memorisation_floor"][2]
    # at s = 1, against real images at the same number
    wanted = {"digits": 1.5, "mnist": 4.0}[name] * record["fd_floor"]
    assert record["fd_slow"]["fd"] <= wanted, "what the model has learned, with steps enough"
    assert record["fd"] <= 1.05 * wanted, "and hardly worse in a dozen steps"


@pytest.mark.parametrize("name", sorted(pretrained_folders()))
def test_the_record_says_how_the_model_was_made(name):
    record = record_of(name)
    assert record["command"].startswith("pmd-train") and record["train_steps"] > 0 and record["train_seconds"] > 0
    assert {"date", "python", "torch", "threads", "system"} <= set(record["made"])
    assert (pretrained_folder(name) / "config.yaml").is_file()


HASTY = dict(samples_per_class=4, max_fd_images=50, classifier_steps=20)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    "The digits model shipped once more, as if it had just been trained, with a judge of a few steps."
    run, target = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("box") / "digits"
    source = pretrained_folder("digits")
    for name in ("config.json", "config.yaml", "model.safetensors"):
        shutil.copy(source / name, run / name)
    (run / "metrics.json").write_text(json.dumps({name: record_of("digits")[name] for name in PROVENANCE_KEYS}))
    record = export_pretrained(run, target, DataModule(digits), **HASTY)
    return target, record


def test_a_shipped_folder_can_be_drawn_from_and_measured_again(shipped):
    target, record = shipped
    pipeline = load_pipeline(target)
    again = remeasure(pipeline, load_judge(target, pipeline), samples_per_class=HASTY["samples_per_class"])
    assert again["fd"] == pytest.approx(record["fd"], rel=1e-2)
    assert again["conditional_accuracy"] == pytest.approx(record["conditional_accuracy"], abs=0.03)
    files = ["config.json", "config.yaml", "judge.safetensors", "model.safetensors", "record.json"]
    assert sorted(p.name for p in target.iterdir()) == files
    assert json.loads((target / "record.json").read_text())["command"] == record_of("digits")["command"]


def test_a_judge_that_does_not_fit_is_refused(shipped, tmp_path):
    target, _ = shipped
    pipeline = load_pipeline(target)
    with pytest.raises(UserError, match="judge.safetensors is missing"):
        load_judge(tmp_path, pipeline)
    weights = read_weights(target / "judge.safetensors")
    for missing in ("classify.bias", "test_labels"):
        rest = {name: tensor for name, tensor in weights.items() if name != missing}
        save_file(rest, tmp_path / "judge.safetensors")
        with pytest.raises(UserError, match="does not hold a judge"):
            load_judge(tmp_path, pipeline)


def test_the_copy_holds_half_precision_and_the_record_says_what_was_measured(shipped):
    target, record = shipped
    assert {tensor.dtype for tensor in read_weights(target / "model.safetensors").values()} == {torch.float16}
    slow = record["fd_slow"]
    assert (slow["sampler"], slow["steps"]) == ("DDPM", 50) and slow["fd"] != record["fd"]
    assert json.loads((target / "record.json").read_text()) == json.loads(json.dumps(record))


def test_images_of_another_device_are_looked_at_on_the_cpu():
    here, there, judge = from_pretrained("digits"), from_pretrained("digits"), judge_of("digits")
    there.sample = lambda *labels, **changes: here.sample(*labels, **changes).as_subclass(Elsewhere)
    few = {"samples_per_class": 2, "images": 30}
    assert remeasure(there, judge, **few) == remeasure(here, judge, **few)


def test_numbers_of_full_precision_are_halved_and_all_others_are_kept(tmp_path):
    run, target = tmp_path / "run", tmp_path / "target"
    run.mkdir(), target.mkdir()
    weights = {"w": torch.tensor([1.0, 1 / 3]), "load": torch.tensor([70_000]), "open": torch.tensor([True, False]),
               "half": torch.tensor([0.5]).half()}
    save_file(weights, run / "model.safetensors")
    about = read_config(pretrained_folder("digits") / "config.json") | {"sha256": {}}
    (run / "config.json").write_text(json.dumps(about))
    (run / "config.yaml").write_text("seed: 0")
    copy_at_half_precision(run, target)
    copied = read_weights(target / "model.safetensors")
    assert copied.keys() == weights.keys() and copied["w"].dtype == torch.float16
    assert torch.equal(copied["w"], weights["w"].half())
    assert all(torch.equal(copied[name], weights[name]) for name in ("load", "open", "half"))
    assert all(copied[name].dtype == weights[name].dtype for name in ("load", "open", "half"))
    kept = json.loads((target / "config.json").read_text())
    assert {**kept, "sha256": {}} == about and list(kept["sha256"]) == ["model.safetensors"]
    assert (target / "config.yaml").read_text() == "seed: 0"


def test_a_model_is_shipped_into_a_new_folder_or_over_what_was_there(shipped, tmp_path):
    source, target = shipped[0], tmp_path / "new" / "box"
    for name in ("config.json", "config.yaml", "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    (tmp_path / "metrics.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError, match="classifier steps=0"):  # what comes after the copy
            export_pretrained(tmp_path, target, DataModule(digits), classifier_steps=0)
        assert (target / "model.safetensors").is_file()


def test_one_seed_and_one_judge_serve_for_all_that_is_measured(shipped, tmp_path, monkeypatch):
    calls = {}
    results = {"evaluate": {"fd_images": 20, "guidance_scale": 3.0}, "remeasure": {}, "distance_of_sampler": {}}
    for name in results:
        measured = lambda *given, name=name, **more: calls.update({name: (given, more)}) or dict(results[name])
        monkeypatch.setitem(export_pretrained.__globals__, name, measured)
    for name in ("config.json", "config.yaml", "model.safetensors"):
        shutil.copy(shipped[0] / name, tmp_path / name)
    (tmp_path / "metrics.json").write_text(json.dumps({name: record_of("digits")[name] for name in PROVENANCE_KEYS}))
    data = DataModule(digits)
    export_pretrained(tmp_path, tmp_path / "box", data, seed=5, classifier_steps=2)
    judge = calls["evaluate"][1]["classifier"]
    assert calls["evaluate"][1]["seed"] == 5 and calls["remeasure"][1] == {**QUICK, "guidance_scale": 3.0, "seed": 5}
    _, _, of_sampler, labels, real, seed = calls["distance_of_sampler"][0]
    test, expected = random_examples(data, "test", 20, 5)
    assert of_sampler is judge and seed == 5 and torch.equal(labels, expected)
    torch.testing.assert_close(real, judge.features_and_labels(test)[0])
    kept = load_judge(tmp_path / "box", load_pipeline(tmp_path / "box"))
    torch.testing.assert_close(kept.test_features, real, atol=1e-6, rtol=1e-6)
    assert torch.equal(kept.test_labels, labels)


@pytest.mark.parametrize("damage", [
    lambda judge: judge | {"test_labels": judge["test_labels"][:-1].clone()},
    lambda judge: judge | {"test_features": judge["test_features"] * float("nan")},
    lambda judge: judge | {"test_features": judge["test_features"].index_fill(0, torch.tensor([3]), float("inf"))}])
def test_a_judge_whose_features_are_no_numbers_or_too_many_is_refused(shipped, damage, tmp_path):
    target, _ = shipped
    save_file(damage(read_weights(target / "judge.safetensors")), tmp_path / "judge.safetensors")
    with pytest.raises(UserError, match="features that do not fit their labels is not possible; allowed: as many"):
        load_judge(tmp_path, load_pipeline(target))


@pytest.mark.parametrize("name", sorted(pretrained_folders()))
@pytest.mark.parametrize("file", ["model.safetensors", "judge.safetensors"])
def test_a_bit_that_flips_in_the_box_is_noticed(tmp_path, name, file):
    folder = Path(shutil.copytree(pretrained_folder(name), tmp_path / name))
    whole = bytearray((folder / file).read_bytes())
    whole[-4] ^= 1
    (folder / file).write_bytes(whole)
    with pytest.raises(UserError, match=f"{file} is not the file that was saved"):
        load_judge(folder, load_pipeline(folder))


def test_a_run_with_a_flipped_bit_is_not_shipped(tmp_path):
    run = Path(shutil.copytree(pretrained_folder("digits"), tmp_path / "run"))
    (tmp_path / "box").mkdir()
    copy_at_half_precision(run, tmp_path / "box")
    assert load_pipeline(tmp_path / "box").class_names
    about = (run / "config.json").read_text()
    (run / "config.json").write_text(about.replace('"model.safetensors": "', '"model.safetensors": "0'))
    with pytest.raises(UserError, match="is not the file that was saved"):
        copy_at_half_precision(run, tmp_path / "box")
