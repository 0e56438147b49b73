# Made from nbs/64_routing.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DPMSolverPP
from perceiver_moe_diffusion.explore.routing import (
    STATISTICS,
    RoutingRecord,
    blind_ratio,
    choice_shares,
    co_activation,
    record_routing,
    router_statistics,
    shares_over_class,
    shares_over_time,
    show_classes,
    show_co_activation,
    show_router_history,
    show_time,
)
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.attention import Dense
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.moe import Routing, build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline

FOUR_EXPERTS = functools.partial(build_moe, num_experts=4, top_k=2)


def small_pipeline(feed_forward=FOUR_EXPERTS, image_shape=(1, 8, 8), depth=1):
    "A pipeline with fresh weights: routing can be counted in any model."
    torch.manual_seed(0)
    core = functools.partial(PerceiverIO, dim=16, num_latents=4, depth=depth, num_heads=2, feed_forward=feed_forward)
    model = PerceiverDenoiser(
        image_shape, 10, functools.partial(ConvAdapter, dim=16, stem_channels=8), core=core, condition_dim=16
    )
    return GeneratorPipeline(model, Diffusion(50), DPMSolverPP(steps=4), [str(i) for i in range(10)])


def some_digits(n=40):
    "[n, 1, 8, 8] and [n]"
    return digits().inputs(torch.arange(n)), digits().labels[:n]


def routing_of(index, experts):
    "A `Routing` made by hand: the choices [R, k] alone matter, and the first of a row weighs most."
    index = torch.as_tensor(index)
    return Routing(
        index, torch.linspace(0.9, 0.1, index.shape[1]).expand(index.shape), torch.zeros(len(index), experts)
    )


def test_each_image_stands_beside_the_noise_level_and_the_label_that_the_model_was_given():
    pipeline, (images, labels), given = small_pipeline(depth=2), some_digits(260), []
    pipeline.model.register_forward_pre_hook(lambda model, arguments: given.append(arguments))
    seen = record_routing(pipeline, images, labels, seed=3)
    assert_close(seen.t, torch.cat([t for _, t, _ in given]))
    assert_close(seen.label, torch.cat([label for _, _, label in given]))
    assert list(seen.routings) == ["latent block 0", "latent block 1", "decoder"]
    assert [len(routing.expert_ids) for routing in seen.routings.values()] == [260 * 5, 260 * 5, 260 * 16]


def test_of_classes_keeps_the_rows_of_their_images():
    seen = RoutingRecord(
        {"decoder": routing_of([[0], [1], [2], [3], [0], [2]], 4)}, torch.tensor([10, 20, 30]), torch.tensor([7, 5, 7])
    )
    part = seen.of_classes([7])
    assert part.routings["decoder"].expert_ids.flatten().tolist() == [0, 1, 0, 2]
    assert part.t.tolist() == [10, 30] and part.label.tolist() == [7, 7]
    assert_close(seen.of_classes(range(10)).routings["decoder"].expert_ids, seen.routings["decoder"].expert_ids)
    refused = r"classes \[3\] is not possible; allowed: classes of the images watched: \[5, 7\]"
    with pytest.raises(UserError, match=refused):
        seen.of_classes([3])


@pytest.mark.parametrize("labels, seed, message", [
    ([10] * 4, 0, "label="), ([1] * 3, 0, "4 images with 3 labels"), ([1] * 4, -1, "seed=-1")])
def test_mistakes_of_watching_are_sentences(labels, seed, message):
    with pytest.raises(UserError, match=message):
        record_routing(small_pipeline(), some_digits(4)[0], torch.tensor(labels), seed)


def test_a_dense_model_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="no mixture-of-experts layers.*moe=mixture"):
        record_routing(small_pipeline(Dense), *some_digits(4))


def test_shares_of_a_table_counted_by_hand():
    routing = routing_of([[0, 1], [0, 2], [3, 2], [3, 2], [1, 0], [1, 0]], 4)   # three images of two tokens
    table = choice_shares(routing, torch.tensor([1, 0, 1]), 3)
    assert_close(table[:2], torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.375, 0.125, 0]], dtype=torch.float64))
    assert bool(table[2].isnan().all()), "no image, no share"


def test_a_token_without_an_expert_is_no_choice():
    routing = routing_of([[0, -1], [-1, -1], [1, 0], [0, -1]], 2)
    assert_close(
        choice_shares(routing, torch.tensor([0, 1]), 2), torch.tensor([[1, 0], [2 / 3, 1 / 3]], dtype=torch.float64)
    )


def test_a_router_that_goes_by_the_noise_level_shows_a_diagonal():
    T, E, tokens = 40, 4, 3
    t = torch.randperm(T, generator=torch.Generator().manual_seed(0))
    seen = RoutingRecord({"decoder": routing_of((t * E // T).repeat_interleave(tokens).unsqueeze(1), E)}, t, t % 10)
    assert_close(shares_over_time(seen, T, bins=4)["decoder"], torch.eye(4, dtype=torch.float64))
    table = shares_over_time(seen, T, bins=20)["decoder"]
    assert_close(table.sum(dim=1), torch.ones(20, dtype=torch.float64))
    assert table.argmax(dim=1).tolist() == [i // 5 for i in range(20)]


def test_a_router_that_goes_by_the_class_shows_the_class():
    label = torch.tensor([2, 0, 1, 1, 2])
    seen = RoutingRecord(
        {"decoder": routing_of(label.repeat_interleave(4).unsqueeze(1), 3)}, torch.zeros(5, dtype=torch.long), label
    )
    assert_close(shares_over_class(seen, 3)["decoder"], torch.eye(3, dtype=torch.float64))


def test_shares_of_a_model_sum_to_one_in_each_group():
    seen = record_routing(small_pipeline(), *some_digits(50))
    for table in (*shares_over_time(seen, 50, 10).values(), *shares_over_class(seen, 10).values()):
        assert_close(table.sum(dim=1), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize("bins", [0, 51])
def test_bins_without_a_noise_level_are_refused(bins):
    with pytest.raises(UserError, match=f"bins={bins} is not possible; allowed: 1 to 50"):
        shares_over_time(record_routing(small_pipeline(), *some_digits(4)), 50, bins)


def test_rows_that_do_not_belong_to_images_are_refused():
    with pytest.raises(UserError, match="3 rows for 2 images"):
        choice_shares(routing_of([[0], [1], [0]], 2), torch.tensor([0, 1]), 2)


def test_heat_maps_have_a_panel_per_layer_with_labelled_axes_and_the_table_in_them():
    seen = record_routing(small_pipeline(depth=3), *some_digits(30))
    for figure, xlabel, tables in (
        (show_time(seen, 50), "timestep t", shares_over_time(seen, 50)),
        (show_classes(seen, [str(i) for i in range(10)]), "class", shares_over_class(seen, 10)),
    ):
        *maps, bar = figure.axes
        assert [axes.get_title() for axes in maps] == list(tables) and "(uniform: 0.25)" in bar.get_ylabel()
        for axes, table in zip(maps, tables.values()):
            assert (axes.get_xlabel(), axes.get_ylabel()) == (xlabel, "expert")
            np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), table.T.numpy())


def test_statistics_of_an_undecided_and_of_a_certain_router():
    undecided = routing_of([[0], [1], [2], [3]], 4)
    certain = undecided._replace(logits=50 * torch.eye(4))
    collapsed = routing_of([[1]] * 4, 4)._replace(logits=50 * torch.eye(4)[[1] * 4])
    approx = lambda entropy, confidence, load: pytest.approx(
        {"entropy": entropy, "confidence": confidence, "least_load": load}, abs=1e-6
    )
    assert router_statistics([undecided]) == approx(1, 0.25, 1)
    assert router_statistics([certain]) == approx(0, 1, 1)
    assert router_statistics([collapsed]) == approx(0, 1, 0)
    assert router_statistics([undecided, collapsed]) == approx(0.5, 0.625, 0)


def test_entropy_by_hand_and_in_units_of_log_e():
    # probabilities 1/4 and 3/4
    routing = routing_of([[0], [1]], 2)._replace(logits=torch.tensor([[0.0, math.log(3.0)]] * 2))
    by_hand = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    statistics = router_statistics([routing])
    assert statistics["entropy"] == pytest.approx(by_hand) and statistics["confidence"] == pytest.approx(0.75)


def test_a_single_expert_has_nothing_to_decide():
    assert router_statistics([routing_of([[0], [0]], 1)]) == {"entropy": 0.0, "confidence": 1.0, "least_load": 1.0}


def test_a_dense_model_has_no_statistics():
    with pytest.raises(UserError, match="no mixture-of-experts layers"):
        router_statistics([])


def test_the_history_has_three_labelled_panels_with_a_line_for_each_run():
    histories = {
        "a": [dict(entropy=0.9, confidence=0.3, least_load=0.5)] * 3,
        "b": [dict(entropy=0.1, confidence=0.8, least_load=0.0)] * 4,
    }
    figure = show_router_history(histories)
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
    assert labels == [("step", label) for label in STATISTICS.values()]
    lines = [[line.get_ydata()[0] for line in axes.lines] for axes in figure.axes]
    assert lines == [[0.9, 0.1], [0.3, 0.8], [0.5, 0.0]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b"]


def test_independent_choices_have_ratio_one():
    "Two experts, each chosen by half of the tokens, whatever the other does."
    table = co_activation(routing_of([[0, 1], [0, -1], [1, -1], [-1, -1]], 2))
    assert_close(table, torch.tensor([[math.nan, 1], [1, math.nan]], dtype=torch.float64), equal_nan=True)


def test_perfect_pairs_have_the_largest_ratio_and_strangers_zero():
    table = co_activation(routing_of([[0, 1], [1, 0], [2, 3], [3, 2]], 4))
    n = math.nan
    assert_close(table, torch.tensor([[n, 2, 0, 0], [2, n, 0, 0], [0, 0, n, 2], [0, 0, 2, n]], dtype=torch.float64),
                 equal_nan=True)


@pytest.mark.parametrize("experts, top_k", [(4, 2), (5, 3), (3, 3)])
def test_every_team_equally_often_is_the_blind_router(experts, top_k):
    table = co_activation(routing_of(torch.combinations(torch.arange(experts), top_k), experts))
    assert_close(table[~torch.eye(experts, dtype=torch.bool)],
                 torch.full((experts * (experts - 1),), blind_ratio(experts, top_k), dtype=torch.float64))


def test_an_expert_that_is_never_chosen_has_no_ratio():
    assert bool(co_activation(routing_of([[0, 1], [1, 0]], 3))[2].isnan().all())


def test_one_expert_per_token_is_no_team():
    with pytest.raises(UserError, match="top_k=1.*allowed: top_k of 2 or more"):
        co_activation(routing_of([[0], [1]], 2))


def test_the_picture_of_teams_has_labelled_axes_and_its_numbers():
    figure = show_co_activation({"decoder": routing_of([[0, 1], [1, 0], [2, 3], [3, 2]], 4)})
    axes, bar = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("decoder", "expert", "expert")
    assert "blind: 0.67" in bar.get_ylabel()
    assert len(axes.texts) == 12 and {text.get_text() for text in axes.texts} == {"0.00", "2.00"}
