# Made from nbs/65_patches.ipynb by `pmd-dev tests`. Edit the notebook.
import functools

import numpy as np
import pytest
import torch
from torch import nn

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DPMSolverPP
from perceiver_moe_diffusion.explore.patches import (
    expert_colours,
    patch_experts,
    patch_grid,
    patch_maps,
    show_patches,
    tint_patches,
)
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.attention import Dense
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.moe import Routing, build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline


@pytest.mark.parametrize("patches, image_shape, grid", [
    (16, (1, 8, 8), (4, 4)), (24, (1, 8, 12), (4, 6)), (49, (1, 28, 28), (7, 7)), (1, (3, 5, 5), (1, 1))])
def test_the_grid_has_the_aspect_of_the_image(patches, image_shape, grid):
    assert patch_grid(image_shape, patches) == grid


@pytest.mark.parametrize("patches", [1, 10, 17])
def test_queries_that_are_no_grid_are_refused(patches):
    with pytest.raises(UserError, match=f"{patches} tokens for images of 8×12"):
        patch_grid((1, 8, 12), patches)


def test_the_top_expert_is_the_one_that_weighs_most_wherever_it_stands():
    routing = Routing(torch.tensor([[0, 1], [2, 3], [-1, 1], [-1, -1]]),
                      torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.7, 0.3], [0.5, 0.5]]), torch.zeros(4, 4))
    assert patch_experts(routing, 1, (1, 4, 4)).tolist() == [[[1, 2], [1, -1]]]


FOUR_EXPERTS = functools.partial(build_moe, num_experts=4, top_k=2)


def small_pipeline(feed_forward=FOUR_EXPERTS, image_shape=(1, 8, 8), depth=1):
    "A pipeline with fresh weights: routing can be counted in any model."
    torch.manual_seed(0)
    core = functools.partial(PerceiverIO, dim=16, num_latents=4, depth=depth, num_heads=2, feed_forward=feed_forward)
    model = PerceiverDenoiser(
        image_shape, 10, functools.partial(ConvAdapter, dim=16, stem_channels=8), core=core, condition_dim=16
    )
    return GeneratorPipeline(model, Diffusion(50), DPMSolverPP(steps=4), [str(i) for i in range(10)])


class LeftOrRight(nn.Module):
    "Row-major patches of images with so many columns: the left half to expert 0, the right half to expert 1."

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, rows):
        index = (torch.arange(len(rows)) % self.columns >= self.columns // 2).long().unsqueeze(1)
        return Routing(index, torch.ones(index.shape), torch.zeros(len(rows), 4))


def left_or_right(image_shape=(1, 8, 8)):
    "A pipeline whose decoder routes by place."
    pipeline = small_pipeline(image_shape=image_shape)
    pipeline.model.core.decoder.feed_forward.router = LeftOrRight(columns=image_shape[2] // 2)
    return pipeline


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (1, 8, 12), (3, 12, 8)])
def test_a_router_that_sends_the_left_half_to_expert_0_gives_a_map_that_shows_it(image_shape):
    _, height, width = image_shape
    maps = patch_maps(left_or_right(image_shape), [1, 2, 3], columns=2)
    assert len(maps) == 2 and maps[0].step.t == 49 and maps[0].num_experts == 4
    for patch_map in maps:
        assert patch_map.expert.shape == (3, height // 2, width // 2)
        assert bool((patch_map.expert[:, :, : width // 4] == 0).all())
        assert bool((patch_map.expert[:, :, width // 4 :] == 1).all())


def test_the_maps_are_made_where_the_model_is():
    "On a device without values: whatever meets a tensor of the CPU fails."
    maps = patch_maps(small_pipeline().to("meta"), [1, 2], columns=2)
    assert [m.expert.shape for m in maps] == [(2, 4, 4)] * 2 and {m.expert.device.type for m in maps} == {"meta"}


def test_the_colours_lie_on_the_pixels_of_their_patch():
    black, white = torch.full((1, 4, 4), -1.0), torch.ones(1, 4, 4)
    blue, orange = expert_colours(2)
    expert = torch.tensor([[0, 1], [-1, 0]])
    for image, in_blue, in_orange, bare in ((black, blue, orange, 0),
                                            (white, blue + 0.75 * (1 - blue), orange + 0.75 * (1 - orange), 1)):
        seen = tint_patches(image, expert, 2)
        np.testing.assert_allclose(seen[:2, :2], np.broadcast_to(in_blue, (2, 2, 3)))
        np.testing.assert_allclose(seen[:2, 2:], np.broadcast_to(in_orange, (2, 2, 3)))
        np.testing.assert_allclose(seen[2:, :2], bare)
        np.testing.assert_allclose(seen[2:, 2:], seen[:2, :2])


def test_experts_of_any_number_have_colours_of_their_own():
    assert all(len(np.unique(expert_colours(n), axis=0)) == n for n in (1, 4, 8, 9, 30))


def test_the_picture_of_patches_names_its_rows_its_steps_and_its_experts():
    maps = patch_maps(small_pipeline(), [4, 5], columns=3)
    figure = show_patches(maps, ["four", "five"])
    cells = np.array(figure.axes).reshape(2, 3)
    assert [cell.get_ylabel() for cell in cells[:, 0]] == ["four", "five"]
    assert [cell.get_xlabel() for cell in cells[-1]] == [f"t={m.step.t}" for m in maps]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"expert {i}" for i in range(4)]
    np.testing.assert_allclose(
        np.asarray(cells[1, 2].images[0].get_array()), tint_patches(maps[2].step.x0[1], maps[2].expert[1], 4)
    )


@pytest.mark.parametrize("make, message", [
    (lambda: patch_maps(small_pipeline(Dense), 3), "no mixture-of-experts layers"),
    (lambda: patch_maps(small_pipeline(), 10), "label=10"),
    (lambda: patch_maps(small_pipeline(), 3, columns=0), "columns=0"),
    (lambda: patch_maps(small_pipeline(), 3, seed=-1), "seed=-1"),
    (lambda: show_patches(patch_maps(small_pipeline(), 3), ["a", "b"]), "2 names for 1 images"),
])
def test_mistakes_with_patches_are_sentences(make, message):
    with pytest.raises(UserError, match=message):
        make()
