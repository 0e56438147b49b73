# Made from nbs/67_attention_maps.ipynb by `pmd-dev tests`. Edit the notebook.
import copy
import functools
import html
import math
from functools import partial

import ipywidgets
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DPMSolverPP
from perceiver_moe_diffusion.explore.attention_maps import (
    as_maps,
    attention_explorer,
    attention_figure,
    attention_weights,
    entropy,
    noised_images,
    read_by_latents,
    read_by_queries,
    read_by_the_question,
    reading_over_time,
    record_attention,
    show_latent_maps,
    show_levels,
    show_query_reading,
    show_reading,
)
from perceiver_moe_diffusion.explore.patches import patch_grid
from perceiver_moe_diffusion.explore.widgets import LiveFigure
from perceiver_moe_diffusion.models.adapters import ConvAdapter, PatchAdapter
from perceiver_moe_diffusion.models.attention import Attention, Block
from perceiver_moe_diffusion.models.classifier import Classifier
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline


def layer_and_inputs(num_heads=2, context_dim=11, seed=0):
    "An attention layer with large random weights, queries, a context and a mask; `context_dim` None: self-attention."
    torch.manual_seed(seed)
    layer = Attention(16, context_dim, num_heads)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    x, context = torch.randn(3, 5, 16), None if context_dim is None else torch.randn(3, 7, context_dim)
    mask = torch.arange(5 if context is None else 7) < torch.tensor([[2], [5], [4]])
    return layer, x, context, mask


def output_from(weights, layer, context):
    "Weighted values, projected: what attention should return, given its weights."
    values = layer.to_kv(context)[..., layer.to_q.out_features:]
    read = torch.einsum("bhqm,bmhd->bqhd", weights, values.unflatten(-1, (layer.num_heads, -1)))
    return layer.to_out(read.flatten(-2))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("context_dim", [11, 16, None], ids=["cross", "cross, same width", "self"])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_weights_times_values_are_the_output_of_the_layer(num_heads, context_dim, masked):
    layer, x, context, mask = layer_and_inputs(num_heads, context_dim)
    mask = mask if masked else None
    weights = attention_weights(layer, x, context, mask)
    assert weights.shape == (3, num_heads, 5, 5 if context is None else 7)
    assert_close(
        output_from(weights, layer, x if context is None else context), layer(x, context, mask), rtol=1e-5, atol=1e-5
    )


def test_weights_are_positive_and_sum_to_one_and_what_is_masked_is_not_read():
    layer, x, context, mask = layer_and_inputs()
    for weights in (attention_weights(layer, x, context), attention_weights(layer, x, context, mask)):
        assert bool((weights >= 0).all()) and not weights.requires_grad
        assert_close(weights.sum(dim=-1), torch.ones(3, 2, 5))
    assert bool((weights[~mask[:, None, None].expand_as(weights)] == 0).all())


def test_where_nothing_may_be_read_nothing_is():
    layer, x, context, mask = layer_and_inputs()
    weights = attention_weights(layer, x, context, mask & (torch.arange(3) > 0)[:, None])
    assert bool((weights[0] == 0).all()) and bool(weights.isfinite().all())


def test_a_mask_that_does_not_fit_is_explained_as_the_layer_explains_it():
    layer, x, context, mask = layer_and_inputs()
    with pytest.raises(UserError, match="a mask of"):
        attention_weights(layer, x, context, mask[:, :3])


def hooks_on(module):
    "How many forward hooks hang on a module and its parts."
    return sum(len(part._forward_hooks) for part in module.modules())


def test_a_recorded_layer_returns_what_it_always_does_with_its_gradient():
    layer, x, context, mask = layer_and_inputs()
    expected = layer(x, context, mask)
    with record_attention(layer) as recorded:
        output = layer(x, context=context, mask=mask)
    assert_close(output, expected, rtol=0, atol=0)
    assert output.requires_grad and list(recorded) == [""] and len(recorded[""]) == 1
    assert_close(output_from(recorded[""][0], layer, context), output, rtol=1e-5, atol=1e-5)


def test_layers_have_the_names_of_their_module_and_every_call_is_kept():
    torch.manual_seed(0)
    two = nn.ModuleDict({"read": Block(16, context_dim=11), "think": Block(16)})
    with record_attention(two) as recorded:
        two["read"](torch.randn(3, 5, 16), torch.randn(3, 7, 11))
        two["read"](torch.randn(2, 5, 16), torch.randn(2, 4, 11))
    assert {name: [tuple(w.shape) for w in calls] for name, calls in recorded.items()} == {
        "read.attention": [(3, 4, 5, 7), (2, 4, 5, 4)], "think.attention": []}


def test_hooks_are_gone_afterwards_also_after_an_error():
    layer, x, context, _ = layer_and_inputs()
    with record_attention(layer):
        assert hooks_on(layer) == 1
    assert hooks_on(layer) == 0
    with pytest.raises(RuntimeError, match="on purpose"):
        with record_attention(layer):
            raise RuntimeError("on purpose")
    assert hooks_on(layer) == 0
    with pytest.raises(RuntimeError), record_attention(layer) as recorded:
        layer(x[..., :3], context)
    assert hooks_on(layer) == 0 and recorded[""] == []


def test_recording_leaves_the_hooks_of_others_alone_and_can_be_nested():
    layer, x, context, _ = layer_and_inputs()
    seen = []
    layer.register_forward_hook(lambda *_: seen.append("other"))
    with record_attention(layer) as outer, record_attention(layer) as inner:
        layer(x, context)
    assert hooks_on(layer) == 1 and seen == ["other"]
    assert_close(outer[""][0], inner[""][0])


def test_a_module_without_attention_is_refused():
    with pytest.raises(UserError, match="a Linear without attention is not possible"):
        with record_attention(nn.Linear(2, 2)):
            pass


@functools.cache
def small():
    "A pipeline for 8×8 images with fresh weights: 4×4 tokens, 6 latents and the condition, 2 heads. And four images."
    torch.manual_seed(0)
    core = partial(PerceiverIO, dim=16, num_latents=6, depth=1, num_heads=2, num_stages=2, share_weights=False)
    model = PerceiverDenoiser((1, 8, 8), 3, partial(ConvAdapter, dim=16, stem_channels=8), core=core, condition_dim=16)
    pipeline = GeneratorPipeline(model, Diffusion(20), DPMSolverPP(steps=3), ["a", "b", "c"])
    return pipeline, torch.rand(4, 1, 8, 8) * 2 - 1


def test_the_readings_have_their_shapes_and_sum_to_one():
    pipeline, images = small()
    latents, queries = (read(pipeline, images, 7, [0, 1, 2, 0]) for read in (read_by_latents, read_by_queries))
    assert latents.shape == (4, 2, 7, 16) and queries.shape == (4, 2, 16, 7)
    for weights in (latents, queries):
        assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


def test_the_readings_are_those_of_the_first_stage_and_the_decoder():
    pipeline, images = small()
    with record_attention(pipeline.model.core) as recorded, torch.no_grad():
        pipeline.model(images, torch.full((4,), 7), torch.tensor([0, 1, 2, 0]))
    assert_close(read_by_latents(pipeline, images, 7, [0, 1, 2, 0]), recorded["stages.0.read.attention"][0])
    assert_close(read_by_queries(pipeline, images, 7, [0, 1, 2, 0]), recorded["decoder.attention"][0])
    assert not torch.equal(recorded["stages.0.read.attention"][0], recorded["stages.1.read.attention"][0])


def test_a_reading_does_not_depend_on_the_other_images():
    pipeline, images = small()
    for read in (read_by_latents, read_by_queries):
        assert_close(read(pipeline, images[1:2], 7, [1]), read(pipeline, images, 7, [0, 1, 2, 0])[1:2])


def test_the_last_latent_is_the_condition_and_depends_on_the_class():
    pipeline, images = small()
    encoder = pipeline.model.core.stages[0].read
    with torch.no_grad():
        condition = pipeline.model.condition(torch.tensor([7]), torch.tensor([2]))
        tokens, _ = pipeline.model.adapter.tokens(images[:1], condition)
        expected = attention_weights(encoder.attention, encoder.norm_x(pipeline.model.to_latent(condition)[:, None]),
                                     encoder.norm_context(tokens))
    assert_close(read_by_latents(pipeline, images[:1], 7, 2)[:, :, -1:], expected)


@pytest.mark.parametrize("read", [read_by_latents, read_by_queries])
def test_the_model_is_called_where_it_is(read):
    "On a device without values: whatever meets a tensor of the CPU fails."
    pipeline, images = small()
    pipeline = copy.deepcopy(pipeline).to("meta")
    x_t = noised_images(pipeline, images, 7)
    assert x_t.device.type == "meta" and x_t.shape == images.shape
    for given in (x_t, images):
        assert read(pipeline, given, 7, [0, 1, 2, 0]).device.type == "meta"


def test_noise_has_one_pattern_at_all_levels():
    pipeline, images = small()
    diffusion, eps = pipeline.diffusion, torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    for t in (0, 19):
        assert_close(noised_images(pipeline, images, t, seed=3), diffusion.q_sample(images, torch.full((4,), t), eps))


@pytest.mark.parametrize("read", [read_by_latents, read_by_queries])
@pytest.mark.parametrize("t,labels,sentence", [
    (20, [0, 0, 0, 0], "t=20 is not possible; allowed: a whole number from 0 to 19."),
    (-1, [0, 0, 0, 0], "t=-1 is not possible; allowed: a whole number from 0 to 19."),
    (float("nan"), [0, 0, 0, 0], "t=nan is not possible; allowed: a whole number from 0 to 19."),
    (7, [0, 0, 3, 0], "label=3 is not possible; allowed: whole numbers from 0 to 2 (a, b, c), or these names."),
    (7, [0, 0], "2 labels for 4 images is not possible; allowed: as many of each."),
])
def test_a_wrong_level_or_class_is_one_sentence(read, t, labels, sentence):
    pipeline, images = small()
    with pytest.raises(UserError) as error:
        read(pipeline, images, t, labels)
    assert str(error.value) == sentence and hooks_on(pipeline.model) == 0


def test_a_model_of_another_kind_is_refused():
    pipeline, images = small()
    other = GeneratorPipeline(nn.Linear(2, 2), pipeline.diffusion, pipeline.sampler, pipeline.class_names)
    other.model.num_classes = 3
    with pytest.raises(UserError, match="attention maps of a Linear"):
        read_by_latents(other, images, 7, [0, 0, 0, 0])
    with pytest.raises(UserError, match="attention maps of a Linear"):
        attention_explorer(other)


def test_tokens_are_patches_row_by_row():
    adapter = PatchAdapter((1, 8, 12), condition_dim=4, dim=6, patch_size=2)
    rows, columns = patch_grid((1, 8, 12), len(adapter.positions))
    assert (rows, columns) == (4, 6)
    for row, column in [(0, 0), (0, 5), (2, 1), (3, 4)]:
        image, condition = torch.zeros(1, 1, 8, 12), torch.zeros(1, 4)
        before, _ = adapter.tokens(image, condition)
        image[..., 2 * row:2 * row + 2, 2 * column:2 * column + 2] = 1
        changed = (adapter.tokens(image, condition)[0] - before).abs().sum(dim=-1)
        assert as_maps(changed[0], (1, 8, 12)).nonzero().tolist() == [[row, column]]


@pytest.mark.parametrize("shape,tokens,grid", [
    ((1, 28, 28), 49, (7, 7)), ((3, 32, 32), 64, (8, 8)), ((1, 8, 12), 96, (8, 12)), ((1, 8, 8), 1, (1, 1))])
def test_the_grid_follows_from_the_image_and_the_number_of_tokens(shape, tokens, grid):
    assert patch_grid(shape, tokens) == grid


@pytest.mark.parametrize("tokens", [0, 5, 48, 785])
def test_tokens_that_make_no_grid_are_refused(tokens):
    with pytest.raises(UserError, match=f"{tokens} tokens for images of 28×28"):
        patch_grid((1, 28, 28), tokens)


def test_entropy_is_zero_for_one_and_log_m_for_all():
    assert_close(entropy(torch.full((2, 8), 1 / 8)), torch.full((2,), math.log(8)))
    assert_close(entropy(torch.eye(4)), torch.zeros(4))
    w = torch.tensor([0.5, 0.25, 0.25])
    assert_close(entropy(w), torch.tensor(1.5 * math.log(2)))


def test_the_maps_that_are_drawn_are_the_mean_weights():
    pipeline, images = small()
    weights = read_by_latents(pipeline, images, 7, [0, 1, 2, 0])[1]
    shown = [axes for axes in show_latent_maps(images[1], weights, columns=3).axes if axes.images]
    assert shown[0].get_title() == "x_t" and shown[-1].get_title().startswith("condition") and len(shown) == 8
    assert_close(torch.as_tensor(shown[0].images[0].get_array()).float(), images[1, 0] / 2 + 0.5)
    for i in range(7):
        assert_close(torch.as_tensor(shown[i + 1].images[0].get_array()).flatten(), 16 * weights.mean(dim=0)[i])


def test_the_rows_that_are_drawn_are_those_of_the_places():
    pipeline, images = small()
    weights = read_by_queries(pipeline, images, 7, [0, 1, 2, 0])[1]
    left, right = show_query_reading(images[1], weights, [5, 0, 15]).axes[:2]
    assert_close(torch.as_tensor(right.images[0].get_array()), 7 * weights.mean(dim=0)[[5, 0, 15]])
    assert [label.get_text() for label in right.get_yticklabels()] == ["patch 5", "patch 0", "patch 15"]
    assert [patch.get_xy() for patch in left.patches] == [(1.5, 1.5), (-0.5, -0.5), (5.5, 5.5)], "patches of 2×2 pixels"


@pytest.mark.parametrize("places", [[16], [-1], [float("nan")], []])
def test_a_place_that_does_not_exist_is_one_sentence(places):
    pipeline, images = small()
    with pytest.raises(UserError, match="place.* is not possible; allowed: .*from 0 to 15"):
        show_query_reading(images[0], read_by_queries(pipeline, images[:1], 7, [0])[0], places)


def test_each_row_of_the_levels_shows_its_level():
    pipeline, images = small()
    grid = [axes for axes in show_levels(pipeline, images[0], 1, (19, 3), latents=(2, 6), seed=4).axes if axes.images]
    assert [axes.get_title() for axes in grid] == ["x_t, t=19", "latent 2", "condition", "x_t, t=3", "latent 2",
                                                   "condition"]
    for first, t in ((0, 19), (3, 3)):
        expected = read_by_latents(pipeline, noised_images(pipeline, images[:1], t, 4), t, 1)[0].mean(dim=0)
        for axes, latent in zip(grid[first + 1:first + 3], (2, 6)):
            assert_close(torch.as_tensor(axes.images[0].get_array()).flatten(), 16 * expected[latent])


def test_a_latent_that_does_not_exist_is_one_sentence():
    pipeline, images = small()
    with pytest.raises(UserError) as error:
        show_levels(pipeline, images[0], 1, (3,), latents=(7,))
    assert str(error.value) == "latent=7 is not possible; allowed: a whole number from 0 to 6 (6 is the condition)."


def test_the_reading_over_time_is_the_mean_of_its_parts():
    pipeline, images = small()
    reading = reading_over_time(pipeline, images, [0, 1, 2, 0], [2, 18])
    x_t = noised_images(pipeline, images, 18)
    latents, queries = (read_by_latents(pipeline, x_t, 18, [0, 1, 2, 0]),
                        read_by_queries(pipeline, x_t, 18, [0, 1, 2, 0]))
    assert reading.levels == [2, 18]
    assert_close(
        torch.tensor([reading.patches_per_latent[1], reading.latents_per_query[1], reading.condition[1]]),
        torch.stack([entropy(latents).exp().mean(), entropy(queries).exp().mean(), 7 * queries[..., 6].mean()]),
    )
    assert all(1 <= n <= 16 for n in reading.patches_per_latent) and all(1 <= n <= 7 for n in reading.latents_per_query)


def small_classifier(**core):
    "A very small classifier of digits with fresh weights; always the same."
    torch.manual_seed(0)
    settings = {"dim": 32, "num_latents": 6, "depth": 1, "num_heads": 2, **core}
    return Classifier((1, 8, 8), 10, core=partial(PerceiverIO, **settings), query_dim=32)


@pytest.mark.parametrize("core", [{}, {"num_stages": 2}])
def test_what_the_query_reads_of_the_image_adds_up_to_one(core):
    model, images = small_classifier(**core), digits().inputs(slice(0, 5))
    maps = read_by_the_question(model, images)
    assert maps.shape == (5, 8, 8) and bool((maps >= 0).all()) and not maps.requires_grad
    assert_close(maps.sum((1, 2)), torch.ones(5))


def test_what_the_query_reads_is_followed_latent_by_latent():
    model, images = small_classifier(), digits().inputs(slice(0, 2))
    with record_attention(model.core) as recorded, torch.no_grad():
        model(images)
    encoder, decoder = (recorded[name][0].mean(dim=1) for name in ("stages.0.read.attention", "decoder.attention"))
    expected = sum(decoder[1, 0, latent] * encoder[1, latent] for latent in range(6))
    assert_close(read_by_the_question(model, images)[1].flatten(), expected)


def test_the_reading_is_drawn_below_its_image():
    model, images = small_classifier(), digits().inputs(slice(0, 3))
    shown = [np.asarray(axes.images[0].get_array()) for axes in show_reading(model, images).axes]
    assert len(shown) == 6
    for i, shares in enumerate(read_by_the_question(model, images)):
        np.testing.assert_allclose(shown[i], images[i, 0] / 2 + 0.5)
        np.testing.assert_allclose(shown[3 + i], shares)


def test_a_classifier_with_another_core_is_refused():
    class Flat(nn.Module):
        "A core without attention."

        def __init__(self, *args, **settings):
            super().__init__()

    with pytest.raises(UserError, match="attention maps of a Flat .* a classifier with a PerceiverIO as its core"):
        read_by_the_question(Classifier((1, 8, 8), 10, core=Flat), digits().inputs(slice(0, 1)))


def settled(live):
    "The picture and the sentence, once the worker has nothing left to do."
    assert live.worker.wait(20)
    return bytes(live.image.value), html.unescape(live.status.value)


def test_what_is_drawn_of_one_latent_is_what_was_read():
    pipeline, images = small()
    shown = [
        torch.as_tensor(axes.images[0].get_array())
        for axes in attention_figure(pipeline, images[:3], 4, 11, 2, seed=5).axes
        if axes.images
    ]
    x_t = noised_images(pipeline, images[2:3], 11, 5)
    reads, asked = read_by_latents(pipeline, x_t, 11, 2)[0], read_by_queries(pipeline, x_t, 11, 2)[0]
    assert_close(shown[0].float(), x_t[0, 0].clamp(-1, 1) / 2 + 0.5)
    for head in range(2):
        assert_close(shown[1 + head].flatten(), 16 * reads[head, 4])
    assert_close(shown[3].flatten(), 7 * asked[:, :, 4].mean(dim=0))


def test_every_control_changes_the_picture():
    live = attention_explorer(small()[0])
    seen = [settled(live)[0]]
    for name, value in dict(latent=6, t=3, label=1, seed=2).items():
        live.controls[name].value = value
        picture, sentence = settled(live)
        assert picture.startswith(b"\x89PNG") and sentence == "", name
        seen.append(picture)
    assert len(set(seen)) == len(seen)


def test_the_explorer_recovers_from_a_wrong_seed():
    live = attention_explorer(small()[0])
    good, _ = settled(live)
    live.controls["seed"].value = -1
    picture, sentence = settled(live)
    assert picture == good and "seed=-1 is not possible" in sentence
    live.controls["seed"].value = 1
    picture, sentence = settled(live)
    assert picture != good and sentence == ""


@pytest.mark.parametrize("name,bad,sentence", [
    ("latent", 7.0, "latent=7.0 is not possible; allowed: a whole number from 0 to 6 (6 is the condition)."),
    ("latent", -1.0, "latent=-1.0 is not possible"),
    ("latent", float("nan"), "latent=nan is not possible"),
    ("t", 20.0, "t=20.0 is not possible; allowed: a whole number from 0 to 19."),
    ("t", float("nan"), "t=nan is not possible"),
    ("t", 2.5, "t=2.5 is not possible"),
])
def test_a_mistake_is_a_sentence_and_the_next_value_works(name, bad, sentence):
    pipeline, images = small()
    live = LiveFigure(partial(attention_figure, pipeline, images[:3], label=0),
                      {"latent": ipywidgets.FloatText(1.0), "t": ipywidgets.FloatText(3.0)})
    good, _ = settled(live)
    live.controls[name].value = bad
    picture, said = settled(live)
    assert picture == good and sentence in said
    live.controls[name].value = 2.0
    picture, said = settled(live)
    assert picture != good and said == ""


def test_a_class_that_does_not_exist_is_one_sentence():
    pipeline, images = small()
    with pytest.raises(UserError) as error:
        attention_figure(pipeline, images[:3], 0, 3, label=3)
    told = "label=3 is not possible; allowed: whole numbers from 0 to 2 (a, b, c), or these names."
    assert str(error.value) == told
