# Made from nbs/81_schemas.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
from dataclasses import fields
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.schemas import ROOT_SCHEMAS
from perceiver_moe_diffusion.runs.schemas import SCHEMAS
from perceiver_moe_diffusion.runs.schemas import idiv
from perceiver_moe_diffusion.runs.schemas import mul


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
