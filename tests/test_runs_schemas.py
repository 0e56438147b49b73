# Made from nbs/81_schemas.ipynb by `pmd-dev tests`. Edit the notebook.
import inspect
import pytest
from dataclasses import fields
from enum import Enum
from importlib.resources import files
from omegaconf import OmegaConf
from pathlib import Path
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.schemas import ROOT_SCHEMAS
from perceiver_moe_diffusion.runs.schemas import SCHEMAS
from perceiver_moe_diffusion.runs.schemas import idiv
from perceiver_moe_diffusion.runs.schemas import mul
from pkgutil import resolve_name


SCHEMA_CLASSES = [schema for schemas in [*SCHEMAS.values(), ROOT_SCHEMAS.values()] for schema in schemas]


@pytest.mark.parametrize("schema", SCHEMA_CLASSES, ids=lambda schema: schema.__name__)
def test_every_number_has_a_range_that_holds_its_default(schema):
    for f in fields(schema):
        numbers = {int, float, int | None, float | None, list[float], list[float] | None}
        assert (f.type in numbers) == ("low" in f.metadata), f"{schema.__name__}.{f.name}"
        default = f.default_factory() if callable(f.default_factory) else f.default
        for number in default if isinstance(default, list) else [default]:
            if f.type in numbers and number is not None:
                assert f.metadata["low"] <= number <= f.metadata["high"], f"{schema.__name__}.{f.name}"


def test_division_must_come_out_even():
    assert idiv(128, 4) == 32 and idiv(-6, 3) == -2
    for a, b in [(7, 2), (7, 0), (7.0, 7), ("8", 2)]:
        with pytest.raises(UserError, match="without remainder"):
            idiv(a, b)


def test_product_is_of_numbers():
    assert mul(2, 1.5) == 3.0
    with pytest.raises(UserError, match="two numbers"):
        mul("ab", 2)


ON_PURPOSE = {  # (class, setting): why a configuration gives it another value than its signature
    ("Dense", "mult"): "dense_work and dense_wide match a mixture's FLOPs and its parameters",
    ("MLPExpert", "mult"): "homogeneous matches the parameters of heterogeneous",
    ("ConvExpert", "mult"): "experts of different kinds are matched to each other",
    ("RecurrentExpert", "mult"): "experts of different kinds are matched to each other",
    ("AttentionExpert", "num_heads"): "experts of different kinds are matched to each other",
    ("ConvAdapter", "stem_channels"): "MEME's experts differ in it",
    ("PerceiverIO", "depth"): "MEME's experts differ in it",
    ("resized", "grey"): "describes a data set", ("text_csv", "label"): "describes a data set", ("text_csv", "text"): "describes a data set",
    ("text_csv", "columns"): "describes a data set", ("text_csv", "class_names"): "describes a data set",
    ("build_moe", "experts"): "nodes, compared on their own", ("DiffusionModule", "balance_weight"): "a dense model has no router losses",
    ("DiffusionModule", "z_weight"): "a dense model has no router losses",
}
CLASSIFY = ["model=classifier", "task=classify", "pipeline=classifier", "evaluation=classify"]
DATA_OF = {"text": "docstrings", "image_and_text": "digit_questions"}


def option_sets() -> list[list[str]]:
    "Overrides that choose each option of each group once."
    conf = Path(str(files("perceiver_moe_diffusion.conf")))
    names = lambda group: sorted(path.stem for path in (conf / group).glob("*.yaml"))
    plain = [[f"{group}={name}"] for group in ("data", "moe", "model", "sampler", "evaluation", "model/adapter", "model/query", "moe/router")
             for name in names(group) if (group, name) != ("evaluation", "grown")]
    preprocessors = [[*CLASSIFY, f"model/preprocessor={name}", f"data={DATA_OF.get(name, 'digits')}"] for name in names("model/preprocessor")]
    return [[], *plain, CLASSIFY, *preprocessors]


def nodes_of(tree):
    "Every node that names a class."
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return ([tree] if isinstance(tree, dict) and "_target_" in tree else []) + [node for child in children for node in nodes_of(child)]


@pytest.mark.parametrize("overrides", option_sets(), ids=" ".join)
def test_a_configuration_and_the_signature_of_its_class_agree(overrides):
    config = OmegaConf.to_container(load_config(overrides), enum_to_str=True)
    for node in nodes_of(config):
        if not node["_target_"].startswith("perceiver_moe_diffusion."):
            continue
        target = resolve_name(node["_target_"])
        for name, parameter in inspect.signature(target).parameters.items():
            default = parameter.default
            if name not in node or default is parameter.empty or callable(default) or isinstance(node[name], dict):
                continue
            default = default.name if isinstance(default, Enum) else list(default) if isinstance(default, tuple) else default
            assert default == node[name] or (target.__name__, name) in ON_PURPOSE, f"{target.__name__}({name}={default!r}) against {node[name]!r}"
