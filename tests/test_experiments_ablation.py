# Made from nbs/76_ablation.ipynb by `pmd-dev tests`. Edit the notebook.
import itertools

import numpy as np
import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.experiments.ablation import (
    cost_table,
    main_effects,
    matched_costs,
    show_effects,
    show_grid_of,
)
from perceiver_moe_diffusion.runs.overrides import load_config

SMALL = ("model.dim=32", "model.num_latents=4", "model.depth=1", "model.adapter.stem_channels=8",
         "diffusion.timesteps=100", "sampler.steps=4")


def small_costs():
    "Costs of the three kinds of feed-forward layers in a small model."
    return matched_costs({moe: load_config([f"moe={moe}", *SMALL]) for moe in ("mixture", "dense", "dense_wide")})


def test_costs_are_those_of_the_formulas():
    mixture, dense, wide = small_costs().values()
    block, d, rows, experts = "core.stages.0.blocks.0.feed_forward", 32, 5, 4  # four latents and the condition
    router = 2 * rows * d * experts
    assert dense[block]["flops"] == 2 * rows * 2 * d * 4 * d and wide[block]["flops"] == 2 * dense[block]["flops"]
    assert mixture[block]["flops"] == dense[block]["flops"] + router, "equal FLOPs, but for the router"
    more = experts * d + 3 * d  # the gate, and an output bias for each expert instead of one
    assert mixture[block]["parameters"] - wide[block]["parameters"] == more
    assert dense[block]["parameters"] == 8 * d * d + 5 * d


def test_layers_that_are_always_dense_cost_the_same_and_the_rest_adds_up():
    costs = small_costs()
    assert len({str(of["core.stages.0.read.feed_forward"]) for of in costs.values()}) == 1

    def rest(of, what):
        "What the other layers cost."
        return of["total"][what] - sum(layer[what] for name, layer in of.items() if name != "total")

    for what in ("parameters", "flops"):
        mixture, dense, wide = (rest(of, what) for of in costs.values())
        assert dense == wide and (mixture == dense if what == "parameters" else mixture == pytest.approx(dense))


def test_the_table_has_a_line_for_each_layer():
    costs = {name: {"total": {"parameters": n, "flops": 1e6 * n}} for name, n in (("a", 2000), ("b", 3000))}
    lines = cost_table(costs).splitlines()
    assert len(lines) == 3 and "(1.500)" in lines[2] and "3,000" in lines[2]


def design(effect, seeds=(0, 1, 2)):
    "Runs of a full two-level design of a, b and c whose result is `effect(a, b, c, seed)`."
    return [{"a": a, "b": b, "c": c, "seed": seed, "fd": effect(a, b, c, seed)}
            for a, b, c, seed in itertools.product((0, 1), ("off", "on"), (0, 0.5), seeds)]


def test_a_main_effect_is_found_whatever_else_varies():
    effects = main_effects(design(lambda a, b, c, seed: 3 * a - 2 * (b == "on") + 10 * seed + c), ["a", "b", "c"], "fd")
    wanted = {"a": (3, 3, 3), "b": (-2, -2, -2), "c": (0.5, 0.5, 0.5)}
    assert {name: pytest.approx(effect) for name, effect in effects.items()} == wanted


def test_an_interaction_widens_the_interval():
    effect = main_effects(design(lambda a, b, c, seed: a * (b == "on")), ["a", "b", "c"], "fd")["a"]
    assert effect.value == pytest.approx(0.5) and effect.low < 0.4 < 0.6 < effect.high


def test_a_run_that_failed_has_no_pair():
    rows = design(lambda a, b, c, seed: a + seed)
    del rows[0]["fd"]
    assert main_effects(rows, ["a", "b", "c"], "fd")["a"].value == pytest.approx(1)


@pytest.mark.parametrize("kept, message", [
    (lambda row: row["a"] == 0, r"factor a with 1 levels \(0\)"),
    (lambda row: (row["a"], row["seed"]) in ((0, 0), (1, 1)), "effect of a on fd without a pair"),
])
def test_a_design_without_pairs_is_refused(kept, message):
    with pytest.raises(UserError, match=message):
        main_effects([row for row in design(lambda *_: 1.0) if kept(row)], ["a", "b", "c"], "fd")


def test_the_map_shows_means_in_their_places_and_leaves_gaps():
    rows = [{"k": 1, "E": 4, "fd": 1.0}, {"k": 1, "E": 4, "fd": 2.0}, {"k": 2, "E": 8, "fd": 3.0},
            {"k": 1, "E": 8, "error": "it broke"}]
    axes = show_grid_of(rows, "k", "E", "fd", "FD").axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), [[1.5, np.nan], [np.nan, 3.0]])
    assert [t.get_text() for t in axes.texts] == ["1.5", "3"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["4", "8"]


def test_the_picture_of_effects_has_a_line_for_each_factor():
    effects = main_effects(design(lambda a, b, c, seed: a + 0.1 * seed), ["a", "b"], "fd", same=("c", "seed"))
    axes = show_effects({"FD": effects, "again": effects}, {"a": "first", "b": "second"}).axes
    assert len(axes) == 2 and [t.get_text() for t in axes[0].get_yticklabels()] == ["first", "second"]
