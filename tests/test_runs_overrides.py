# Made from nbs/82_overrides.ipynb by `pmd-dev tests`. Edit the notebook.
import copy
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from hydra.version import VersionBase
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.labels import suggestion
from perceiver_moe_diffusion.models.moe import TopKRouter
from perceiver_moe_diffusion.runs.overrides import (
    check_parameter,
    check_root,
    closest,
    flatten_nodes,
    folder_exists,
    load_config,
    read_override,
)
from perceiver_moe_diffusion.runs.schemas import ROOT_SCHEMAS


def test_loading_leaves_hydra_as_it_was(tmp_path):
    (tmp_path / "mine.yaml").write_text("answer: 42")
    assert load_config(["seed=1"]) == load_config(["seed=1"])
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        before, version = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        load_config(["seed=1"])
        with pytest.raises(UserError):
            load_config(["seeed=1"])
        assert GlobalHydra.instance().hydra is before and VersionBase.instance().getbase() == version
        assert compose("mine").answer == 42
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("path", ["runs/000-seed=1", "~/runs/a b", "C:/runs", "it's"])
def test_a_path_is_taken_as_it_stands(path):
    assert read_override(f"run_dir={path}").value() == path


def test_the_nearest_name_is_suggested_and_none_that_is_far():
    assert suggestion("noisy", ["noisy_top_k", "top_k"]) == " Did you mean noisy_top_k?"
    assert suggestion("banana", ["noisy_top_k", "top_k"]) == ""
    assert closest("dim", ["din", "dims"], cutoff=0) in (["din"], ["dims"]) and closest("dim", []) == []


def test_a_folder_of_settings_is_a_path_or_a_package(tmp_path):
    assert folder_exists(str(tmp_path)) and folder_exists(f"file://{tmp_path}")
    assert folder_exists("pkg://perceiver_moe_diffusion.conf")
    for nowhere in (f"{tmp_path}/no", f"file://{tmp_path}/no", "pkg://no_package", "pkg://no_package.conf"):
        assert not folder_exists(nowhere)


def test_a_setting_that_was_renamed_tells_its_new_name():
    with pytest.raises(UserError, match="objective is now prediction_type: write diffusion.prediction_type=eps"):
        load_config(["diffusion.objective=eps"])


def test_what_stands_at_the_top_gets_its_type_and_is_checked():
    config = OmegaConf.create({**OmegaConf.structured(ROOT_SCHEMAS["train"]), "seed": "7", "ema_decay": 1})
    check_root(config, ROOT_SCHEMAS["train"])
    assert config.seed == 7 and isinstance(config.ema_decay, float)
    for name, value in (("seed", -1), ("ema_decay", 1.5), ("checkpoint_every", 0)):
        with pytest.raises(UserError, match=f"{name}={value} is not possible"):
            check_root(OmegaConf.merge(config, {name: value}), ROOT_SCHEMAS["train"])


@pytest.mark.parametrize("old, new", [
    ("perceiver_moe_diffusion.moe.TopKRouter", "perceiver_moe_diffusion.models.moe.TopKRouter"),
    ("perceiver_moe_diffusion.denoiser.Denoiser", "perceiver_moe_diffusion.models.denoiser.PerceiverDenoiser"),
    ("perceiver_moe_diffusion.data.ImageDataModule", ""),
])
def test_a_class_that_has_moved_tells_its_new_place(old, new):
    said = f"It is now {new}" if new else "Give the full name"
    with pytest.raises(UserError, match=f"_target_={old} cannot be imported .*{said}"):
        load_config([f"model.adapter._target_={old}"])


@pytest.mark.parametrize("value, kind, fits", [
    (3, int, True), (3, float, True), (3.5, float, True), (3.5, int, False), (True, int, False), (True, bool, True),
    (1, bool, False), ("3", str, True), (3, str, False), ("wide", int, False), ([1], list, True), (None, Any, True)])
def test_a_value_is_held_against_the_annotation(value, kind, fits):
    check = lambda: check_parameter("node.x", "x", value, {"x": kind}, "package.Class")
    if fits:
        check()
    else:
        with pytest.raises(UserError, match=f"node.x={value!r} .* allowed: a value of type {kind.__name__}"):
            check()


def test_a_configuration_survives_its_file():
    config = load_config(["seed=3"])
    saved = OmegaConf.create(OmegaConf.to_yaml(config))
    assert OmegaConf.to_container(saved) == OmegaConf.to_container(config, enum_to_str=True)


MISTAKES = {
    "model.num_latent=8": "There is no setting 'model.num_latent'. Did you mean model.num_latents?",
    "+model.foo=1": "There is no setting 'model.foo'. model has dim, num_latents",
    "lr=0.1": "Did you mean optimizer.lr?",
    "batchsize=8": "Did you mean data.batch_size?",
    "task.diffusion.timesteps=9": "Did you mean diffusion.timesteps?",
    "trainer.limit_val_batches=2": "Did you mean +trainer.limit_val_batches?",
    "+moe.router.foo=1": "moe.router has no settings of its own",
    "+trainer.limit_val_batchs=2": "Did you mean +trainer.limit_val_batches?",
    "samplr=ddim": "Did you mean sampler?",
    "data=mnits": ". Did you mean mnist?",
    "moe/router=noisy": "Did you mean noisy_top_k?",
    "data=DataConfig": "allowed for data: ag_news, cifar10",
    "experiment=null": "allowed for experiment",
    "+data=mnist": "leave out the +",
    "+model.dim=8": "+model.dim=8 is not possible; allowed: model.dim=VALUE without the +",
    "moe.router=noisy_top_k": "moe.router is a group: choose with moe/router=NAME, one of bias_balanced",
    "model.net=3": "model.net is a node, not a setting; it holds _target_",
    "moe.num_experts=four": "moe.num_experts: Value 'four' of type 'str' could not be converted to Integer",
    "model.num_latents=1.5": "model.num_latents: Value '1.5'",
    "model.dim=null": "model.dim",
    "model.adapter.stem_channels=wide":
        "model.adapter.stem_channels='wide' is not possible; allowed: a value of type int",
    "seed=one": "seed: Value 'one'",
    "diffusion.prediction_type=velocity": "expected one of [eps, x0, v]",
    "diffusion.timesteps=-4": "diffusion.timesteps=-4 is not possible; allowed: 2 to 100000",
    "seed=-1": "seed=-1 is not possible; allowed: 0 or more",
    "sampler.guidance_scale=nan": "sampler.guidance_scale=nan is not possible; allowed: 0 to 1000",
    "optimizer.lr=inf": "optimizer.lr=inf is not possible",
    "optimizer.betas=[0.9]": "allowed: 2 numbers",
    "optimizer.betas=[0.9,1.5]": "optimizer.betas=[0.9, 1.5] is not possible; allowed: 0 to 0.99999",
    "ema_decay=2": "ema_decay=2.0 is not possible; allowed: 0 to 1",
    "checkpoint_every=often": "checkpoint_every: Value 'often'",
    "~data": "Keys cannot be deleted",
    "moe.num_experts=2,4": "Add -m to run every combination",
    "nonsense": "cannot be read; write KEY=VALUE",
    "=3": "allowed: KEY=VALUE",
    "model.dim=[1,2": "model.dim: Value '[1,2'",
    "model.dim=${nothing}": "model.dim: Interpolation key 'nothing' not found",
    "model.dim=${idiv:100,3}": "model.dim: 100 ÷ 3 in a configuration is not possible",
    "moe.router._target_=nobody.Router":
        "moe.router._target_=nobody.Router cannot be imported (No module named 'nobody')",
    "hydra.searchpath=[nowhere]": "hydra.searchpath=[nowhere] is not possible; allowed: a folder that exists",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake):
    with pytest.raises(UserError) as caught:
        load_config([mistake])
    assert MISTAKES[mistake] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_has_no_default_must_be_given():
    with pytest.raises(UserError, match="run is not given and has no default; add run=VALUE"):
        load_config([], "evaluate")


def test_an_option_decides_which_settings_there_are():
    with pytest.raises(UserError, match="There is no setting 'moe.top_k'. moe has"):
        load_config(["moe=dense", "moe.top_k=1"])
    with pytest.raises(UserError, match="needs moe=mixture"):
        load_config(["moe=dense", "moe/router=top_k"])
    assert load_config(["sampler=ddim", "sampler.eta=0.5"]).sampler.eta == 0.5


VALUES = ["", "null", "true", "1", "-1", "1e3", "0.5", "nan", "inf", "[1,2]", "[]", "{a:1}", "${seed}", "${nothing}",
          "${", "${oc.env:NO_SUCH}", "'", '"', "\\", "a=b", "a,b", "[", "{", "!!python/object:os.system", "$", "1:2",
          "é猫", "9" * 400, "choice(1,2)", "range(1,3)", "???", "[[1],[2]]", "int(3.5)", "${idiv:1,0}", "${mul:a,b}",
          "\n", "\x00", "dense", "ddim", "../train", "[pkg://nothing]", "[cat,dog]"]
GROUPS = ["moe", "data", "model", "sampler", "experiment", "moe/router", "hydra.searchpath", "hydra", "defaults"]


@st.composite
def lines(draw, keys):
    "A line as a person might type it: a key that is there, nearly there, or not; and any value."
    key = draw(st.sampled_from(keys))
    odd = [key[:-1], key.upper(), f"{key}.a", f".{key}", key.replace(".", "/"), ""]
    key, value = draw(st.sampled_from([key] * 4 + odd)), draw(st.sampled_from(VALUES) | st.text(max_size=8))
    before = draw(st.sampled_from([*[""] * 5, "+", "++", "~", "-"]))
    return f"{before}{key}{draw(st.sampled_from(['=', '=', '=', '==']))}{value}"


def test_whatever_is_typed_is_a_configuration_or_one_sentence(monkeypatch):
    compose_once, composed = load_config.__globals__["compose_config"], {}

    def remembered(name, overrides):
        key = (name, *(override.input_line for override in overrides))
        composed[key] = composed.get(key) or compose_once(name, overrides)
        return copy.deepcopy(composed[key])
    monkeypatch.setitem(load_config.__globals__, "compose_config", remembered)

    @settings(derandomize=True, database=None, deadline=None, max_examples=40)
    @given(lines(sorted(flatten_nodes(load_config())) + GROUPS))
    @example("model.adapter._target_=1")
    def typed(line):
        try:
            config = load_config([line])
        except UserError as error:
            assert str(error) and "\n" not in str(error), line
            return
        assert "???" not in OmegaConf.to_yaml(config, resolve=True)
    typed()


CONF = Path(str(files("perceiver_moe_diffusion.conf")))
CONF_FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
# what has no default, and what a part belongs to
NEEDED = {
    "evaluate": ["run=runs/a"],
    "model/preprocessor": ["model=classifier"],
    "model/router": ["model=mixture"],
    "model/expert": ["model=mixture"],
}


def targets(tree) -> set[str]:
    "All classes that a tree names."
    if isinstance(tree, list):
        return set().union(*map(targets, tree))
    if not isinstance(tree, dict):
        return set()
    return {tree["_target_"] for key in tree if key == "_target_"} | targets(list(tree.values()))


@pytest.mark.parametrize("file", CONF_FILES)
def test_every_file_composes_and_its_classes_accept_its_keys(file):
    group, _, option = file.rpartition("/")
    if group:
        config = load_config([*NEEDED.get(group, []), f"{group}={option}"])
    else:
        config = load_config(NEEDED.get(option, []), option)
    text = OmegaConf.to_yaml(config)
    assert "${" not in text and "???" not in text, "no link is left, and nothing is missing"
    named = targets(yaml.safe_load((CONF / f"{file}.yaml").read_text()))
    assert named <= targets(OmegaConf.to_container(config)), "the file was used"


def test_the_names_that_people_type():
    config = load_config([
        "data=mnist", "data.root=/somewhere", "model.num_latents=64", "moe.num_experts=8", "moe.top_k=2",
        "diffusion.timesteps=200", "diffusion.prediction_type=v", "sampler=ddim", "sampler.steps=20",
        "sampler.guidance_scale=2", "optimizer.lr=1e-3", "trainer.max_steps=500", "seed=1", "trainer.devices=2",
        "trainer.strategy=ddp",
    ])
    assert config.data.dataset._target_.endswith("mnist") and config.data.root == "/somewhere"
    assert config.model.net.core.num_latents == 64
    assert (config.model.net.core.feed_forward.num_experts, config.model.net.core.feed_forward.top_k) == (8, 2)
    assert (config.task.diffusion.timesteps, config.task.diffusion.prediction_type.name) == (200, "v")
    assert config.sampler._target_.endswith("DDIM")
    assert (config.sampler.steps, config.sampler.guidance_scale) == (20, 2.0)
    assert config.task.optimizer.lr == 1e-3
    assert (config.trainer.max_steps, config.trainer.devices, config.trainer.strategy) == (500, 2, "ddp")
    assert config.data.seed == config.task.seed == config.evaluation.seed == config.seed == 1


def test_a_plus_reaches_what_the_configuration_does_not_name():
    config = load_config(["+trainer.limit_val_batches=2", "moe/router=bias_balanced", "+moe.router.rate=0.01"])
    assert config.trainer.limit_val_batches == 2
    assert config.model.net.core.feed_forward.router.rate == 0.01


def test_what_is_given_wins_over_an_experiment():
    assert load_config(["experiment=mnist", "trainer.max_steps=7"]).trainer.max_steps == 7


@pytest.mark.parametrize("overrides", [
    ["moe=dense"],
    ["moe/router=noisy_top_k", "model/adapter=patch"],
    ["moe/router=bias_balanced", "model/query=position"],
    ["model.num_stages=3", "model.share_weights=true", "moe.top_k=1"],
], ids=" ".join)
def test_what_composes_can_be_built_and_run(overrides):
    net = load_config(["model.dim=16", "model.num_latents=4", "model.depth=1", *overrides]).model.net
    model = instantiate(net, input_shape=(1, 8, 8), num_classes=10, _convert_="all")
    assert model(torch.zeros(2, 1, 8, 8), torch.tensor([0, 9]), torch.tensor([1, 10])).shape == (2, 1, 8, 8)


ROUTER = '''
from torch.nn import functional as F
from perceiver_moe_diffusion.models.moe import TopKRouter


class CosineRouter(TopKRouter):
    "Top-k by the cosine between token and gate, divided by a temperature."

    def __init__(self, dim: int, num_experts: int, top_k: int = 2, temperature: float = 0.1):
        super().__init__(dim, num_experts, top_k)
        self.temperature = temperature

    def scores(self, rows, logits):
        return F.linear(F.normalize(rows, dim=-1), F.normalize(self.gate.weight, dim=-1)) / self.temperature
'''
YAML = """
_target_: my_routers.CosineRouter
_partial_: true
temperature: 0.2
"""
EXPERIMENT = """# @package _global_
defaults:
  - override /moe/router: cosine

moe:
  router:
    temperature: 0.5
"""


def project_of_mine(folder: Path) -> Path:
    "A folder with a class and a file of settings, as a person would lay it out."
    (folder / "conf" / "moe" / "router").mkdir(parents=True)
    (folder / "my_routers.py").write_text(ROUTER)
    (folder / "conf" / "moe" / "router" / "cosine.yaml").write_text(YAML)
    (folder / "conf" / "experiment").mkdir()
    (folder / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    return folder


@pytest.fixture
def my_project(tmp_path, monkeypatch) -> Path:
    "A project of one's own, importable while the test runs."
    monkeypatch.syspath_prepend(str(project_of_mine(tmp_path)))
    monkeypatch.delitem(sys.modules, "my_routers", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("overrides", [
    ["hydra.searchpath=[conf]", "moe/router=cosine", "moe.router.temperature=0.5"],
    ["hydra.searchpath=[conf]", "experiment=mine"],
    ["moe.router._target_=my_routers.CosineRouter", "+moe.router.temperature=0.5"],
], ids=["a YAML file", "an experiment", "only the class"])
def test_a_router_of_ones_own(my_project, overrides):
    config = load_config([*overrides, "model.dim=16"])
    node = {"_target_": "my_routers.CosineRouter", "_partial_": True, "temperature": 0.5}
    assert config.model.net.core.feed_forward.router == node
    model = instantiate(config.model.net, input_shape=(1, 8, 8), num_classes=10, _convert_="all")
    routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
    assert routers and all(type(router).__name__ == "CosineRouter" and router.temperature == 0.5 for router in routers)


def test_mistakes_in_files_of_ones_own_are_sentences_too(my_project):
    search, file = f"hydra.searchpath=[{my_project / 'conf'}]", my_project / "conf" / "moe" / "router" / "cosine.yaml"
    for wrong, said in [("temprature: 1.0", "takes dim, num_experts, temperature, top_k. Did you mean temperature?"),
                        ("temperature: hot", "a value of type float"), ("temperature: .nan", "a finite number"),
                        ("temperature: [1", "A YAML file cannot be read")]:
        file.write_text(YAML.replace("temperature: 0.2", wrong))
        with pytest.raises(UserError, match=said) as caught:
            load_config([search, "moe/router=cosine"])
        assert "\n" not in str(caught.value)
    said = "allowed for moe/router: bias_balanced, cosine, noisy_top_k, top_k. Did you mean cosine?"
    with pytest.raises(UserError, match=said):
        load_config([search, "moe/router=cosin"])
