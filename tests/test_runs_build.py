# Made from nbs/83_build.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import contextlib
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.build import build_run, check_data, instantiate_node, make_pipeline, require_variety
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.train import save_model
from perceiver_moe_diffusion.tools.testing import QUICK, changed, quick_config


def refuses() -> None:
    "A component that is given something that cannot work."
    raise UserError("x=9 is not possible; allowed: 1 to 4.")


def test_a_mistake_many_nodes_deep_is_still_its_own_sentence():
    node = {"_target_": f"{__name__}.refuses"}
    for _ in range(4):
        node = {"_target_": "builtins.dict", "part": node}
    with pytest.raises(UserError, match=r"^x=9 is not possible; allowed: 1 to 4\.$"):
        instantiate_node(OmegaConf.create(node))


def test_what_a_library_refuses_becomes_one_line():
    with pytest.raises(UserError) as refused:
        instantiate_node(changed({"trainer.precision": "seven"}).trainer)
    said = str(refused.value)
    assert "lightning.Trainer" in said and "seven" in said and "\n" not in said


def test_what_a_node_describes_is_built_with_what_the_program_adds():
    node = OmegaConf.create({"_target_": "builtins.dict", "sizes": [1, 2]})
    built = instantiate_node(node, more=3)
    assert built == {"sizes": [1, 2], "more": 3} and type(built["sizes"]) is list, "plain Python, nothing of OmegaConf"


@pytest.mark.parametrize("where, value, said", [
    ("model.net.core.feed_forward.top_k", 9, "top_k=9"),
    ("model.net.core.num_heads", 5, "num_heads=5"),
    ("pipeline.sampler.steps", 5000, "1 to 1000"),
    ("model.net.adapter.stem_channels", 12, "stem_channels=12"),
    ("data.batch_size", 5000, "data.batch_size=5000"),
    ("data.batch_size", 0, "data.batch_size=0"),
    ("trainer.devices", 3, "data.batch_size=64 on 3 processes"),
    ("pipeline.sampler.guidance_interval", [2.0, 1.0], "guidance_interval"),
])
def test_a_mistake_inside_a_part_is_found_and_named(where, value, said):
    with pytest.raises(UserError) as refused:
        build_run(changed({where: value}))
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("other, said", [(None, "All 1,200 training examples"), (0, ""), (499, ""), (1199, "")])
@pytest.mark.parametrize("modalities", [False, True])
def test_examples_that_are_all_equal_are_refused_and_one_that_differs_is_enough(other, said, modalities):
    inputs = torch.full((1300, 2), 3.0)
    if other is not None:
        inputs[other, 1] = 4
    both = lambda index: {"image": torch.zeros(len(index), 1), "text": inputs[index]}
    examples = SimpleNamespace(inputs=both if modalities else inputs.__getitem__)
    data = SimpleNamespace(train_index=torch.arange(1200), examples=examples)
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        require_variety(data)


def test_the_seed_decides_the_first_weights():
    weights = lambda seed: build_run(changed({"seed": seed})).module.model.core.latents
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_building_writes_nothing_and_leaves_the_model_ready_to_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = build_run(changed({"run_dir": "run"}))
    assert run.module.model.training and all(module.training for module in run.module.model.modules())
    with pytest.raises(UserError):
        build_run(changed({"run_dir": "run", "pipeline.sampler.steps": 5000}))
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_is_of_the_kind_and_for_the_classes_of_the_run():
    run = build_run(quick_config())
    pipeline = make_pipeline(quick_config(), run.module.model, run.data)
    assert type(pipeline).__name__ == "GeneratorPipeline" and pipeline.model is run.module.model
    assert pipeline.class_names == run.data.examples.class_names and pipeline.sampler.steps == 3


@pytest.mark.parametrize("module", ["build", "folder", "trainer", "sweep"])
def test_no_component_is_known_by_name(module):
    conf = Path(str(files("perceiver_moe_diffusion.conf")))
    options = {path.stem for path in conf.rglob("*.yaml") if path.parent != conf}
    code = ast.parse(Path(import_module(f"perceiver_moe_diffusion.runs.{module}").__file__).read_text(encoding="utf-8"))
    compared = {
        leaf.value
        for node in ast.walk(code) if isinstance(node, (ast.Compare, ast.match_case))
        for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)
    }
    assert {"digits", "top_k", "ddim"} <= options and not compared & options


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    first = build_run(changed({"seed": 1}))
    save_model(changed({"seed": 1}), first, tmp_path)
    second = build_run(changed({"seed": 2, "init": str(tmp_path), "fresh": ["core.decoder"]})).module.model
    own, given = build_run(changed({"seed": 2})).module.model.state_dict(), first.module.model.state_dict()
    for name, weight in second.state_dict().items():
        assert torch.equal(weight, own[name] if name.startswith("core.decoder.") else given[name])
    with pytest.raises(UserError, match="core.latents is .*a run of the same model"):
        build_run(changed({"init": str(tmp_path), "model.net.core.num_latents": 9}))


def test_weights_that_would_be_read_differently_are_refused_and_other_settings_are_told(tmp_path, capsys):
    save_model(changed({"seed": 1}), build_run(changed({"seed": 1})), tmp_path)
    build_run(changed({"init": str(tmp_path)}))
    assert capsys.readouterr().err == ""
    heads = {"init": str(tmp_path), "model.net.core.num_heads": 1}
    with pytest.raises(UserError, match="core.num_heads=1 with init=.* is not possible; allowed: 2, as in that"):
        build_run(changed(heads))
    with pytest.raises(UserError, match="num_heads=1"):
        build_run(changed({**heads, "fresh": ["core.decoder"]}))
    build_run(changed({**heads, "fresh": ["core"]}))
    capsys.readouterr()
    build_run(load_config([*QUICK, f"init={tmp_path}", "moe.top_k=1", "diffusion.prediction_type=eps"]))
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "diffusion.prediction_type=eps (there v)" in told
    assert "model.core.feed_forward.top_k=1 (there 2)" in told and "num_heads" not in told


def test_a_model_too_large_for_the_memory_is_one_sentence():
    with pytest.raises(UserError, match="not enough memory to make PerceiverDenoiser: lower the sizes"):
        build_run(changed({"model.net.core.num_latents": 10**14}))


def test_a_resumed_run_asks_nobody_for_weights():
    with pytest.raises(UserError, match="no model at nowhere"):
        build_run(changed({"init": "nowhere"}))
    build_run(changed({"init": "nowhere", "resume": "a-run"}))


def test_the_data_can_be_looked_at_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_data(load_config())
    line, parts, picture = capsys.readouterr().out.splitlines()
    assert line.startswith("1,797 images, 10 classes (0 178, 1 182, ") and line.endswith("8×8 grey")
    assert parts == "training 1,293, validation 144, test 360"
    assert picture == "check.png: up to 8 images of each class, as the model will see them"
    width, height = Image.open("check.png").size
    assert (height + 8, width) == (10 * 9 * 8, 16 + 8 * 9 * 8 - 8), "ten rows of eight digits, each 8 times as large"
    assert [path.name for path in tmp_path.iterdir()] == ["check.png"], "and nothing else is written"


def test_of_texts_the_line_is_told_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check_data(load_config(["data=docstrings"]))
    line, parts = capsys.readouterr().out.splitlines()
    assert "classes (" in line and parts.startswith("training ") and not list(tmp_path.iterdir())


def test_a_class_with_few_images_leaves_its_row_grey(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(22):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        for i in range(3 if number == 1 else 12):
            picture = Image.fromarray(rng.integers(256, size=(64, 64, 3), dtype=np.uint8))
            picture.save(tmp_path / f"data/{number}/{i}.png")
    check_data(load_config(["data=image_folder", "data.root=data", "data.dataset.image_size=64",
                            "data.dataset.cache=null", "data.val_fraction=0.4", "data.test_fraction=0.4"]))
    assert "(the first 20 of 22)" in capsys.readouterr().out
    sheet = np.asarray(Image.open("check.png"))
    assert sheet.shape == (20 * 65 - 1, 3 * 8 + 8 * 65 - 1, 3)
    row = sheet[65:129, 24:]
    assert row[:, 2 * 65 + 40].std() > 30 and (row[:, 3 * 65:4 * 65 - 1] == 128).all()


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        check_data(load_config(), tmp_path / "nowhere" / "check.png")
