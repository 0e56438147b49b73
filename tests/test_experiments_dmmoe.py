# Made from nbs/74_dmmoe.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.evaluation.classify import moe_layers, routings_of
from perceiver_moe_diffusion.evaluation.results import means_by
from perceiver_moe_diffusion.experiments.dmmoe import (
    classify_experts,
    expert_costs,
    expert_kinds,
    influence,
    routing_map,
    show_influence,
    show_loads,
    show_routing,
)
from perceiver_moe_diffusion.models.experts import AttentionExpert, ConvExpert, RecurrentExpert
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.moe import MLPExpert, TopKRouter, build_moe
from perceiver_moe_diffusion.pipelines.classify import ClassifierPipeline
from perceiver_moe_diffusion.runs.build import build_run, instantiate_node
from perceiver_moe_diffusion.runs.overrides import load_config


class ChannelConv(nn.Module):
    "A convolution along the channels of each token, as in the source."

    def __init__(self, dim):
        super().__init__()
        self.conv, self.out = nn.Conv1d(1, 4, 3, padding=1), nn.Linear(4 * dim, dim)

    def forward(self, rows, where, sequence, mask=None):
        return self.out(torch.relu(self.conv(rows.unsqueeze(1))).flatten(1))


class OneStep(nn.Module):
    "One step of an LSTM from a zero state, as in the source."

    def __init__(self, dim):
        super().__init__()
        self.cell = nn.LSTMCell(dim, dim)

    def forward(self, rows, where, sequence, mask=None):
        return self.cell(rows)[0]


@pytest.mark.parametrize("kind, sees", [
    (ChannelConv, [27]), (OneStep, [27]), (MLPExpert, [27]), (RecurrentExpert, range(28)),
    (AttentionExpert, range(64)), (ConvExpert, [18, 19, 20, 26, 27, 28, 34, 35, 36])])
def test_what_an_answer_depends_on(kind, sees):
    torch.manual_seed(0)
    found = influence(kind(8), torch.randn(1, 64, 8), place=27)
    assert found.nonzero().flatten().tolist() == list(sees)


def test_no_influence_is_white():
    figure = show_influence({"own": torch.eye(3), "all": torch.ones(3, 3)})
    own, everything = (axes.images[0].get_array().mask for axes in figure.axes[:2])
    assert own.sum() == 6 and not everything.any()


@cache
def model_of(moe, *more):
    "The classifier of the experiment, untrained."
    torch.manual_seed(0)
    config = load_config(["experiment=dmmoe", f"moe={moe}", *more])
    return instantiate_node(config.model.net, input_shape=(3, 32, 32), num_classes=10).eval()


def layer_of(kinds, top_k=2):
    "A small mixture; always the same."
    torch.manual_seed(0)
    return build_moe(12, len(kinds), top_k, TopKRouter, kinds)


def test_flops_are_those_of_the_formulas():
    kinds = [ConvExpert, partial(AttentionExpert, num_heads=2), partial(MLPExpert, mult=4)]
    layer, x, D, N = layer_of(kinds, top_k=3), torch.randn(2, 16, 12), 12, 16
    conv, attention, mlp = (cost["flops_per_row"] for cost in expert_costs(layer, x))
    assert mlp == 16 * D**2
    assert conv == 16 * D**2 + 2 * 9 * D, "and nine neighbours for each channel"
    assert attention == 8 * D**2 + 4 * N * D, "queries, keys, values and output; scores and sum"


def test_attention_pays_for_keys_of_tokens_that_were_not_routed_to_it():
    expert, x, D, N = AttentionExpert(12, 2), torch.randn(1, 16, 12), 12, 16
    cost = lambda n: count_flops(lambda: expert(x[0, :n], torch.arange(n), sequence=x))
    assert cost(16) == 16 * (8 * D**2 + 4 * N * D) and cost(4) == 4 * (4 * D**2 + 4 * N * D) + 16 * 4 * D**2


def test_every_parameter_of_the_experts_is_counted_and_every_row_goes_to_k_of_them():
    layer, x = layer_of([ConvExpert, AttentionExpert, RecurrentExpert, MLPExpert]), torch.randn(3, 16, 12)
    costs = expert_costs(layer, x)
    assert sum(cost["parameters"] for cost in costs) == sum(p.numel() for p in layer.experts.parameters())
    assert sum(cost["rows"] for cost in costs) == 2 * 48


def test_experts_are_named_by_kind_and_numbered_where_there_are_several():
    assert expert_kinds(layer_of([ConvExpert, MLPExpert, MLPExpert])) == ["Conv", "MLP1", "MLP2"]


def test_the_kinds_of_the_experiment_have_equal_parameters_and_sit_on_the_inputs_alone():
    assert list(moe_layers(model_of("heterogeneous"))) == ["input_layers.0", "input_layers.1"]
    assert moe_layers(model_of("dense_wide")) == {}
    for layer in moe_layers(model_of("heterogeneous")).values():
        sizes = [cost["parameters"] for cost in expert_costs(layer, torch.randn(1, 64, 48))]
        assert expert_kinds(layer) == ["Conv", "Attention", "Recurrent", "MLP"] and max(sizes) / min(sizes) < 1.07


def test_the_baselines_match_what_they_say_they_match():
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    models = {name: model_of(name) for name in ("heterogeneous", "homogeneous", "mixture", "dense_work", "dense_wide")}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    flops = {name: count_flops(partial(model, images)) for name, model in models.items()}
    for name in ("homogeneous", "mixture", "dense_wide"):
        assert parameters[name] == pytest.approx(parameters["heterogeneous"], rel=0.01)
    for name in ("homogeneous", "dense_work"):
        assert flops[name] == pytest.approx(flops["heterogeneous"], rel=0.1)
    assert flops["mixture"] < 0.9 * flops["heterogeneous"] and flops["dense_wide"] > 1.1 * flops["heterogeneous"]


@pytest.mark.parametrize("mistake, said", [("moe.grid=[4,4]", r"64 tokens .* grid \(4, 4\)"),
                                           ("model.preprocessor.dim=50", "dim=50 with num_heads=4")])
def test_a_grid_or_a_width_that_does_not_fit_is_refused(mistake, said):
    with pytest.raises(UserError, match=said):
        model_of("heterogeneous", mistake)(torch.zeros(1, 3, 32, 32))


WIDTHS = ("model.preprocessor.dim=16", "model.dim=16", "model.query_dim=16")


@cache
def tiny():
    "A small classifier of digits with experts, untrained, and the digits."
    config = load_config([*WIDTHS, "experiment=dmmoe_transfer", "model.num_latents=4"])
    parts = build_run(config)
    return ClassifierPipeline(parts.module.model, parts.data.examples.class_names), parts.data


def test_a_map_holds_the_weights_of_the_activated_experts_and_zero_for_the_others():
    pipeline, data = tiny()
    images = data.split("test")[0][:5]
    for routing in routings_of(pipeline, images):
        found = routing_map(routing, (4, 4))
        assert found.shape == (5, 4, 4, 4) and bool(((found > 0).sum(1) == 2).all())
        assert_close(found.sum(1), torch.ones(5, 4, 4))
        assert found[3, routing.expert_ids[3 * 16 + 6, 0], 1, 2] == routing.weight[3 * 16 + 6, 0], "row by row"
    with pytest.raises(UserError, match=r"grid=\(3, 4\) for 80 tokens"):
        routing_map(routing, (3, 4))


def test_images_and_maps_stand_side_by_side():
    figure = show_routing(torch.zeros(2, 1, 8, 8), torch.rand(2, 3, 4, 4), ["Conv", "MLP1", "MLP2"])
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "Conv", "MLP1", "MLP2"]
    assert len(figure.axes) == 2 * 4 + 1
    with pytest.raises(UserError, match="2 images and 1 names"):
        show_routing(torch.zeros(2, 1, 8, 8), torch.rand(2, 3, 4, 4), ["Conv"])


def test_loads_stand_under_their_kinds(tmp_path):
    pipeline, data = tiny()
    results = classify_experts(pipeline, data, folder=tmp_path)
    loads = {name: value for name, value in results.items() if name.startswith("load_")}
    assert list(loads) == [f"load_{n}_{kind}" for n in (0, 1) for kind in ("Conv", "Attention", "Recurrent", "MLP")]
    assert list(loads.values()) == sum(results["expert_load"], []) and sum(loads.values()) == pytest.approx(8)
    assert (tmp_path / "routing.png").is_file()


def test_a_dense_classifier_has_no_loads():
    _, data = tiny()
    dense = build_run(load_config([*WIDTHS, "experiment=dmmoe_transfer", "moe=dense"])).module.model
    results = classify_experts(ClassifierPipeline(dense, data.examples.class_names), data)
    assert not [name for name in results if name.startswith("load_")] and results["accuracy"] >= 0


def test_loads_have_a_panel_for_each_layer_and_a_colour_for_each_setting():
    names = [f"load_{layer}_{kind}" for layer in (0, 1) for kind in ("Conv", "MLP")]
    rows = [{"when": when, **{name: 1 + 0.1 * i * seed for i, name in enumerate(names)}} for when in ("before", "after")
            for seed in (0, 1, 2)]
    figure = show_loads(means_by(rows, "when", names))
    assert [axes.get_title() for axes in figure.axes] == ["layer 1", "layer 2"]
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["Conv", "MLP"]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom == 0 and top > 1.6, "the largest load, in the last panel, is inside"
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["before", "after"]
    with pytest.raises(UserError, match="loads of no experts"):
        show_loads(means_by([{"moe": "dense", "accuracy": 1.0}], "moe", ["accuracy"]))
