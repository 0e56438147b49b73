# Made from nbs/81_schemas.ipynb by `pmd-dev tests`. Edit the notebook.
import inspect
import math
import re
from dataclasses import fields, make_dataclass
from enum import Enum
from importlib.resources import files
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.schemas import (
    ROOT_SCHEMAS,
    SCHEMAS,
    bounded,
    check_number,
    check_ranges,
    idiv,
    mul,
    register,
    settings_before_nodes,
)


def test_a_bounded_field_keeps_its_range_and_hands_out_a_list_of_its_own():
    betas = bounded([0.9], 0, 1, length=1)
    schema = make_dataclass("Schema", [("lr", float, bounded(0.1, 0, 1)), ("betas", list, betas)])
    lr, betas = fields(schema)
    assert dict(lr.metadata) == {"low": 0, "high": 1, "length": None} and betas.metadata["length"] == 1
    schema().betas.append(2)
    assert schema().betas == [0.9], "the list of one configuration is not that of the next"


ROOT_FILES = Path(str(files("perceiver_moe_diffusion.conf")))
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


def test_every_schema_is_where_a_file_of_its_group_starts_from():
    for group, schemas in SCHEMAS.items():
        texts = [path.read_text() for path in (ROOT_FILES / group).glob("*.yaml")]
        first = {re.match(r"\w+", text.partition("defaults: [")[2])[0] for text in texts if "defaults: [" in text}
        assert {schema.__name__ for schema in schemas} <= first, group


@pytest.mark.parametrize("name", ROOT_SCHEMAS)
def test_a_root_file_and_its_schema_have_the_same_settings_and_defaults(name):
    written = yaml.safe_load((ROOT_FILES / f"{name}.yaml").read_text())
    schema = OmegaConf.to_container(OmegaConf.structured(ROOT_SCHEMAS[name]))
    assert {key: written[key] for key in written if key not in ("defaults", "sampler")} == schema


def test_settings_come_before_the_nodes_and_links_to_nodes_are_left_out():
    toy = OmegaConf.create({"part": {"x": 1}, "linked": "${size}", "whole": "${part}", "size": 3})
    assert settings_before_nodes(toy) == [("size", 3), ("linked", 3), ("part", {"x": 1})]


@pytest.mark.parametrize("value, low, high, said", [
    (3, 4, 5, "x=3 is not possible; allowed: 4 to 5."), (6, 4, 5, "allowed: 4 to 5"),
    (-1, 0, math.inf, "allowed: 0 or more"), (math.inf, 0, math.inf, "allowed: 0 or more"),
    (math.nan, -math.inf, math.inf, "allowed: a finite number"),
    (4, 4, 5, ""), (5, 4, 5, ""), (1e9, -math.inf, math.inf, ""),
])
def test_a_number_is_held_against_its_range_ends_included(value, low, high, said):
    if not said:
        check_number(f"x={value}", value, low, high)
        return
    with pytest.raises(UserError, match=said):
        check_number(f"x={value}", value, low, high)


def test_a_number_without_a_range_must_still_be_finite():
    check_ranges(OmegaConf.create({"node": {"x": [1, -1e30]}, "text": "nan", "nothing": None}))
    with pytest.raises(UserError, match=r"node.x=\[1, nan\] is not possible; allowed: a finite number"):
        check_ranges(OmegaConf.create({"node": {"x": [1, math.nan]}}))


def test_division_must_come_out_even():
    assert idiv(128, 4) == 32 and idiv(-6, 3) == -2
    for a, b in [(7, 2), (7, 0), (7.0, 7), ("8", 2)]:
        with pytest.raises(UserError, match="without remainder"):
            idiv(a, b)


def test_product_is_of_numbers():
    assert mul(2, 1.5) == 3.0
    with pytest.raises(UserError, match="two numbers"):
        mul("ab", 2)

def test_schemas_and_resolvers_may_be_registered_again():
    register()
    register()
    assert OmegaConf.create({"a": "${idiv:6,3}", "b": "${mul:2,1.5}"}) == {"a": 2, "b": 3.0}
    assert ConfigStore.instance().load("moe/MixtureConfig.yaml").node.top_k == 2


def nodes_of(tree) -> list[dict]:
    "Every node that names a class of this package."
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    ours = isinstance(tree, dict) and tree.get("_target_", "").startswith("perceiver_moe_diffusion.")
    return ([tree] if ours else []) + [node for child in children for node in nodes_of(child)]


def written_twice(overrides):
    "Yields (class, setting, default in the signature, value in the configuration), where both are plain values."
    for node in nodes_of(OmegaConf.to_container(load_config(overrides), enum_to_str=True)):
        target = resolve_name(node["_target_"])
        for name, parameter in inspect.signature(target).parameters.items():
            default = parameter.default
            if name not in node or default is parameter.empty or callable(default) or isinstance(node[name], dict):
                continue
            if isinstance(default, Enum):
                default = default.name
            elif isinstance(default, tuple):
                default = list(default)
            yield target.__name__, name, default, node[name]


# (class, setting): why a configuration gives it another value than its signature
ON_PURPOSE = {
    ("Dense", "mult"): "dense_work and dense_wide match a mixture's FLOPs and its parameters",
    ("MLPExpert", "mult"): "homogeneous matches the parameters of heterogeneous",
    ("ConvExpert", "mult"): "experts of different kinds are matched to each other",
    ("RecurrentExpert", "mult"): "experts of different kinds are matched to each other",
    ("AttentionExpert", "num_heads"): "experts of different kinds are matched to each other",
    ("ConvAdapter", "stem_channels"): "MEME's experts differ in it",
    ("PerceiverIO", "depth"): "MEME's experts differ in it",
    ("resized", "grey"): "describes a data set",
    ("text_csv", "label"): "describes a data set",
    ("text_csv", "text"): "describes a data set",
    ("text_csv", "columns"): "describes a data set",
    ("text_csv", "class_names"): "describes a data set",
    ("image_folder", "cache"): "commands keep pixels beside the runs; a function that is called writes nothing unasked",
    ("build_moe", "experts"): "nodes, compared on their own",
    ("DiffusionModule", "balance_weight"): "a dense model has no router losses",
    ("DiffusionModule", "z_weight"): "a dense model has no router losses",
}
CLASSIFY = ["model=classifier", "task=classify", "pipeline=classifier", "evaluation=classify"]
DATA_OF = {"text": "docstrings", "image_and_text": "digit_questions"}
GROUPS = ("data", "moe", "model", "sampler", "evaluation", "model/adapter", "model/query", "moe/router")


def option_sets() -> list[list[str]]:
    "Overrides that choose each option of each group once."
    names = lambda group: sorted(path.stem for path in (ROOT_FILES / group).glob("*.yaml"))
    plain = [[f"{group}={name}"] for group in GROUPS for name in names(group) if name != "grown"]
    preprocessors = [[*CLASSIFY, f"model/preprocessor={name}", f"data={DATA_OF.get(name, 'digits')}"]
                     for name in names("model/preprocessor")]
    return [[], *plain, CLASSIFY, *preprocessors]


@pytest.mark.parametrize("overrides", option_sets(), ids=" ".join)
def test_a_configuration_and_the_signature_of_its_class_agree(overrides):
    for target, name, default, value in written_twice(overrides):
        assert default == value or (target, name) in ON_PURPOSE, f"{target}({name}={default!r}) against {value!r}"


def test_no_reason_to_differ_is_left_over():
    differ = {found[:2] for overrides in option_sets() for found in written_twice(overrides) if found[2] != found[3]}
    assert set(ON_PURPOSE) == differ
