# Made from nbs/86_train.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import csv
import inspect
import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.pipelines.files import load_pipeline
from perceiver_moe_diffusion.runs.build import build_run
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.train import save_model, shape_as_list, train
from perceiver_moe_diffusion.tools.testing import changed, quick_config


def test_the_orchestrator_fits_on_a_screen():
    assert len(inspect.getsource(train).splitlines()) <= 40


def test_the_orchestrator_compares_nothing_with_the_name_of_a_component():
    conf = Path(str(files("perceiver_moe_diffusion.conf")))
    options = {path.stem for path in conf.rglob("*.yaml") if path.parent != conf}
    code = ast.parse(Path(sys.modules[train.__module__].__file__).read_text(encoding="utf-8"))
    compared = {
        leaf.value
        for node in ast.walk(code)
        if isinstance(node, (ast.Compare, ast.match_case))
        for leaf in ast.walk(node)
        if isinstance(leaf, ast.Constant)
    }
    assert {"digits", "top_k", "ddim"} <= options and not compared & options


def test_a_saved_model_is_the_model_and_knows_its_data(tmp_path):
    run = build_run(quick_config())
    made = save_model(quick_config(), run, tmp_path)
    loaded = load_pipeline(tmp_path)
    assert loaded.class_names == made.class_names == run.data.examples.class_names
    assert loaded.model.input_shape == run.data.input_shape == (1, 8, 8) and loaded.model.num_classes == 10
    torch.testing.assert_close(loaded.model.state_dict(), run.module.model.state_dict(), rtol=0, atol=0)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["model"]["input_shape"] == [1, 8, 8], "lists and numbers alone: it can be read without this package"


def test_the_shape_of_a_question_has_two_parts():
    assert shape_as_list((1, 8, 8)) == [1, 8, 8]
    assert shape_as_list({"image": (1, 28, 28), "text": (32,)}) == {"image": [1, 28, 28], "text": [32]}


def test_a_model_that_was_trained_outlives_an_evaluation_that_fails(tmp_path):
    def power_cut(*given, **more):
        raise RuntimeError("the power went off")
    folder = tmp_path / "run"
    config = changed({"trainer.max_steps": 2, "run_dir": str(folder)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.__globals__, "instantiate_node", lambda node: power_cut)
        with pytest.raises(RuntimeError, match="the power went off"):
            train(config)
    assert load_pipeline(folder).class_names and not (folder / "metrics.json").exists()


def old_version():
    "The folder with a stopped run and a model of version 0.3.1."
    return Path(__file__).parent / "data" / "v0_3_1"


OLD_SETTINGS = [  # of the command in its README
    "model.dim=16", "model.num_latents=2", "model.depth=1", "model.num_heads=2", "model.adapter.stem_channels=8",
    "moe.num_experts=2", "moe.top_k=1", "moe.mult=1.0", "trainer.max_steps=40", "trainer.val_check_interval=20",
    "checkpoint_every=20", "data.batch_size=16", "evaluation.samples_per_class=2", "evaluation.classifier_steps=5",
    "evaluation.max_fd_images=20"]


@pytest.fixture
def old_run(tmp_path):
    "The stopped run of version 0.3.1, in a folder that may be changed."
    return Path(shutil.copytree(old_version() / "run", tmp_path / "old run"))


def test_a_run_that_version_0_3_1_began_ends_in_the_same_weights(old_run):
    assert train(load_config([*OLD_SETTINGS, f"resume={old_run}"]), OLD_SETTINGS) == old_run
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (old_run, old_version() / "model"))
    assert resumed.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=1e-4, rtol=0)
    results = json.loads((old_run / "metrics.json").read_text())
    assert results["train_steps"] == 40 and results["command"].startswith("pmd-train model.dim=16")


def test_the_log_of_an_old_run_goes_on(old_run):
    train(load_config([*OLD_SETTINGS, f"resume={old_run}"]))
    assert sorted(path.name for path in (old_run / "log").iterdir()) == ["from_step_0000000", "from_step_0000020"]
    with open(old_run / "metrics.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val_loss"]] == [19, 39], "both parts"


def test_an_old_run_with_other_settings_is_refused(old_run):
    with pytest.raises(UserError, match="optimizer.lr=0.5 is not possible"):
        train(load_config([*OLD_SETTINGS, "optimizer.lr=0.5", f"resume={old_run}"]))
    assert sorted(path.name for path in old_run.iterdir()) == ["config.yaml", "last.ckpt", "log"], "nothing was written"
