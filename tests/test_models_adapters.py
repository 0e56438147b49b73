# Made from nbs/23_adapters.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import pytest
import torch
from torch import nn

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.adapters import (
    ConvAdapter,
    ConvBlock,
    ConvPreprocessor,
    FiLM,
    ImagePreprocessor,
    InputQuery,
    LearnedQuery,
    PatchAdapter,
    PositionQuery,
    Projected,
)
from perceiver_moe_diffusion.models.fourier import grid_positions
from perceiver_moe_diffusion.models.modalities import TextPreprocessor
from perceiver_moe_diffusion.models.perceiver import PerceiverIO

SHAPES = [(1, 8, 8), (3, 12, 8), (2, 4, 20)]  # square, tall, wide


def random_image(shape, batch=2, seed=0):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_put_back_are_the_image(shape, patch_size):
    image = random_image(shape)
    tokens = ImagePreprocessor(shape, patch_size, num_bands=3)(image)
    channels, height, width = shape
    assert tokens.shape == (2, height * width // patch_size**2, channels * patch_size**2 + 2 * (2 * 3 + 1))
    back = torch.empty_like(image)
    for i, token in enumerate(tokens.unbind(dim=1)):  # written out, so as not to test einops against itself
        y, x = (patch_size * n for n in divmod(i, width // patch_size))
        patch = token[:, : channels * patch_size**2].view(2, channels, patch_size, patch_size)
        back[:, :, y : y + patch_size, x : x + patch_size] = patch
    torch.testing.assert_close(back, image, rtol=0, atol=0)


def test_the_position_channels_tell_every_patch_apart_and_ignore_the_image():
    preprocess = ImagePreprocessor((3, 12, 8), patch_size=2)
    tokens = preprocess(random_image((3, 12, 8)))
    torch.testing.assert_close(tokens[:, :, 12:], preprocess.positions.expand(2, -1, -1))
    torch.testing.assert_close(preprocess.positions[:, :2], grid_positions((6, 4)))
    assert torch.pdist(preprocess.positions).min() > 0.1


@pytest.mark.parametrize(
    "shape,patch_size", [((1, 28, 28), 3), ((1, 8, 12), 8), ((1, 12, 8), 8), ((1, 8, 8), 0), ((1, 8, 8), -2)]
)
def test_a_patch_that_does_not_fit_is_refused(shape, patch_size):
    with pytest.raises(UserError, match=f"{patch_size} pixels.*{shape[1]}×{shape[2]}.*divides"):
        ImagePreprocessor(shape, patch_size)


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(UserError, match=r"images of shape \(1, 1, 8, 12\) .*\(any, 1, 8, 8\)"):
        ImagePreprocessor((1, 8, 8), 2)(torch.zeros(1, 1, 8, 12))


def test_a_changed_pixel_changes_the_token_of_its_patch_alone():
    preprocess, image = ImagePreprocessor((1, 12, 8), patch_size=4), random_image((1, 12, 8), batch=1)
    changed = image.clone()
    changed[..., 9, 2] += 1  # third row of patches, first column
    differs = (preprocess(changed) != preprocess(image)).any(dim=-1)[0]
    assert differs.nonzero().flatten().tolist() == [4]


def test_each_token_of_the_stem_sees_its_own_part_of_the_image():
    torch.manual_seed(0)
    stem = ConvPreprocessor((1, 16, 16), channels=(8, 8), num_bands=2).eval()
    image = torch.randn(1, 1, 16, 16)
    before, moved = stem(image), image.clone()
    moved[..., 0, 0] += 5                                                       # the upper left corner
    changed = (stem(moved) - before).abs().amax(-1).view(4, 4) > 0
    assert before.shape == (1, 16, stem.token_dim)
    assert changed[0, 0] and not changed[3].any() and not changed[:, 3].any()


def test_a_stem_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="a patch of 8 pixels .* 12×12"):
        ConvPreprocessor((1, 12, 12))
    with pytest.raises(UserError, match="channels="):
        ConvPreprocessor((1, 8, 8), channels=())
    with pytest.raises(UserError, match=r"\(1, 1, 4, 8\)"):
        ConvPreprocessor((1, 8, 8), channels=(8,))(torch.zeros(1, 1, 4, 8))


def test_a_projection_is_a_linear_map_of_each_token():
    torch.manual_seed(0)
    projected, image = Projected((3, 8, 8), partial(ImagePreprocessor, patch_size=4), dim=24), torch.randn(2, 3, 8, 8)
    assert projected.inner.token_dim == 48 + 26 and projected.token_dim == 24
    by_hand = projected.inner(image) @ projected.project.weight.T + projected.project.bias
    torch.testing.assert_close(projected(image), by_hand)


def test_a_projection_hands_on_what_is_padding():
    torch.manual_seed(0)
    projected = Projected((12,), lambda shape: TextPreprocessor(*shape, dim=8), dim=24)
    tokens, mask = projected(projected.inner.encode(["four", "eight so"]))
    assert tokens.shape == (2, 12, 24) and mask.sum(1).tolist() == [4, 8]


def silenced_core(query_dim, query_residual):
    "A Perceiver IO whose decoder reads nothing and adds nothing."
    core = PerceiverIO(query_dim, query_dim, dim=8, num_latents=2, depth=1, num_heads=2, query_residual=query_residual)
    for layer in (core.decoder.attention.to_out, core.decoder.feed_forward.mlp[-1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return core


@pytest.mark.parametrize("residual", [True, False])
def test_the_residual_of_the_decoder_carries_the_query_past_the_latents(residual):
    torch.manual_seed(0)
    preprocess = ImagePreprocessor((1, 4, 4))
    tokens = preprocess(random_image((1, 4, 4)))
    asked = InputQuery(preprocess.positions, preprocess.token_dim, 8)(tokens)
    output = silenced_core(8, residual)(asked, asked).output
    torch.testing.assert_close(output, asked if residual else torch.zeros_like(asked))


def test_queries_have_one_row_per_place_and_only_the_input_query_looks_at_the_image():
    torch.manual_seed(0)
    preprocess = ImagePreprocessor((3, 6, 4), patch_size=2)
    tokens = preprocess(random_image((3, 6, 4)))
    by_position = PositionQuery(preprocess.positions, preprocess.token_dim, 16)(tokens)
    by_input = InputQuery(preprocess.positions, preprocess.token_dim, 16)
    asked = by_input(tokens)
    assert by_position.shape == asked.shape == (2, 6, 16)
    torch.testing.assert_close(by_position[0], by_position[1])
    changed = tokens.clone()
    changed[0, 4] += 1
    different = (by_input(changed) != asked).any(dim=-1)
    assert different.nonzero().tolist() == [[0, 4]], "a query looks at the token of its own place and image alone"
    equal = by_input(torch.zeros_like(tokens))[0]
    assert torch.pdist(equal).min() > 0.01, "equal tokens at different places ask differently"


def test_learned_queries_are_the_same_for_every_input_and_are_learned():
    query = LearnedQuery(16, num_queries=3)
    asked = query(torch.zeros(5, 7, 2))
    assert asked.shape == (5, 3, 16) and [name for name, _ in query.named_parameters()] == ["query"]
    torch.testing.assert_close(asked[0], asked[4])
    asked.sum().backward()
    torch.testing.assert_close(query.query.grad, torch.full((3, 16), 5.0))


def test_film_starts_as_the_identity_yet_can_learn_from_the_first_step():
    film, x = FiLM(4, 6), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    condition = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(film(x, condition), x, rtol=0, atol=0)
    film(x, condition).square().sum().backward()
    assert (film.to_scale_shift.weight.grad.abs().sum(dim=1) > 0).all(), "every scale and shift gets a gradient"


def test_film_is_its_equation_and_keeps_the_samples_apart():
    torch.manual_seed(0)
    film, x, condition = FiLM(4, 6), torch.randn(2, 5, 6), torch.randn(2, 4)
    nn.init.normal_(film.to_scale_shift.weight)
    gamma, beta = film.to_scale_shift(condition).split(6, dim=-1)
    expected = torch.stack([x[i] * (1 + gamma[i]) + beta[i] for i in range(2)])
    torch.testing.assert_close(film(x, condition), expected)


def set_identity(linear):
    "Let a linear layer hand its first channels on unchanged."
    with torch.no_grad():
        linear.weight.copy_(torch.eye(*linear.weight.shape))
        linear.bias.zero_()


@pytest.mark.parametrize("shape", SHAPES)
def test_with_identity_maps_the_patch_adapter_gives_the_image_back(shape):
    adapter = PatchAdapter(shape, condition_dim=4, dim=4 * shape[0], patch_size=2)
    set_identity(adapter.to_tokens)
    set_identity(adapter.from_tokens)
    image, condition = random_image(shape), torch.zeros(2, 4)
    tokens, skip = adapter.tokens(image, condition)
    assert tokens.shape == (2, shape[1] * shape[2] // 4, adapter.token_dim) and skip is None
    torch.testing.assert_close(adapter.image(tokens, skip, condition), image)


@pytest.mark.parametrize("kind", ["PatchAdapter", "ConvAdapter"])
def test_positions_follow_the_module_and_are_not_saved(kind):
    adapter = {"PatchAdapter": PatchAdapter, "ConvAdapter": ConvAdapter}[kind]((1, 8, 16), condition_dim=4, dim=8)
    before = adapter.positions
    assert adapter.double().positions.dtype == torch.float64
    torch.testing.assert_close(adapter.positions.float(), before)
    assert adapter.to("meta").positions.device.type == "meta"
    assert not [name for name in adapter.state_dict() if "positions" in name]


def test_tokens_of_equal_patches_differ_by_their_position():
    torch.manual_seed(0)
    adapter = ConvAdapter((1, 16, 16), 4, dim=8, stem_patch=2, stem_channels=8)
    nn.init.zeros_(adapter.to_tokens.weight)  # as if all patches were alike
    tokens, _ = adapter.tokens(random_image((1, 16, 16)), torch.zeros(2, 4))
    assert torch.pdist(tokens[0]).min() > 1e-3


@pytest.mark.parametrize("size, patch", [(8, 1), (28, 2), (32, 2)])
def test_small_images_are_not_folded_and_larger_ones_are(size, patch):
    assert ConvAdapter((1, size, size), 4, dim=8, stem_channels=8).stem_patch == patch


@pytest.mark.parametrize("make", [
    lambda: ImagePreprocessor((1, 8, 8)), lambda: ConvPreprocessor((1, 8, 8), channels=(8, 16)),
    lambda: ConvAdapter((1, 8, 8), 4, dim=8, stem_channels=8), lambda: PatchAdapter((1, 8, 8), 4)])
def test_positions_follow_from_the_shape_and_are_not_stored_with_the_weights(make):
    part = make()
    assert any("positions" in name for name, _ in part.named_buffers())
    assert not any("positions" in name for name in part.state_dict())


def test_learned_queries_start_near_zero():
    torch.manual_seed(0)
    query = LearnedQuery(64, num_queries=50).query
    assert query.shape == (50, 64) and query.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_convolutional_block_is_its_equation_and_starts_without_the_condition():
    "x + conv(silu(norm(x)·(1 + γ(c)) + β(c)))"
    torch.manual_seed(0)
    block, x, condition = ConvBlock(8, 3), torch.randn(2, 8, 4, 4), torch.randn(2, 3)
    torch.testing.assert_close(block(x, condition), x + block.conv(nn.functional.silu(block.norm(x))))
    nn.init.normal_(block.to_scale_shift.weight)
    nn.init.normal_(block.to_scale_shift.bias)
    gamma, beta = (part[:, :, None, None] for part in block.to_scale_shift(condition).chunk(2, dim=1))
    expected = x + block.conv(nn.functional.silu(block.norm(x) * (1 + gamma) + beta))
    torch.testing.assert_close(block(x, condition), expected)


@pytest.mark.parametrize("height, width, patch", [(14, 14, 1), (16, 16, 2), (8, 16, 1), (16, 8, 1), (20, 16, 2)])
def test_pixels_are_folded_from_16_on_along_the_shorter_side(height, width, patch):
    assert ConvAdapter((1, height, width), 4, dim=8, stem_channels=8).stem_patch == patch


def test_the_stem_has_a_residual_at_each_width_but_the_first():
    stem = ConvPreprocessor((1, 16, 16), channels=(8, 16, 24)).stem
    parts = [type(part).__name__ for part in stem]
    assert parts == ["Sequential", "MaxPool2d"] + 2 * ["Sequential", "MaxPool2d", "Residual"]


def test_the_conv_adapter_spreads_each_token_over_the_cells_it_came_from():
    for shape in SHAPES:
        adapter = ConvAdapter(shape, condition_dim=4, dim=16 * 4, stem_patch=1, stem_channels=16)
        set_identity(adapter.to_tokens)
        set_identity(adapter.from_tokens)
        nn.init.zeros_(adapter.from_position.weight)
        nn.init.zeros_(adapter.from_position.bias)
        seen, condition = [], torch.zeros(2, 4)
        adapter.head.register_forward_pre_hook(lambda part, args, seen=seen: seen.append(args[0]))
        tokens, skip = adapter.tokens(random_image(shape), condition)
        assert tokens.shape == (2, shape[1] * shape[2] // 4, adapter.token_dim) and skip.shape == (2, 16, *shape[1:])
        adapter.image(tokens, skip, condition)
        torch.testing.assert_close(seen[0], 2 * skip)  # once from the tokens, put back in place, and once from the skip


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 8), (1, 8, 20)])
@pytest.mark.parametrize("stem_patch,token_patch", [(1, 2), (2, 1), (2, 2), (1, 4)])
def test_the_conv_adapter_answers_in_the_shape_of_its_image(shape, stem_patch, token_patch):
    adapter = ConvAdapter(shape, 4, dim=8, stem_patch=stem_patch, token_patch=token_patch, stem_channels=8)
    tokens, skip = adapter.tokens(random_image(shape), torch.randn(2, 4))
    assert tokens.shape == (2, len(adapter.positions), 8)
    assert adapter.image(tokens, skip, torch.randn(2, 4)).shape == (2, *shape)


def test_the_skip_carries_the_image_when_the_core_says_nothing():
    torch.manual_seed(0)
    adapter, condition = ConvAdapter((1, 8, 12), 4, dim=8, stem_channels=8), torch.zeros(2, 4)
    tokens, skip = adapter.tokens(random_image((1, 8, 12)), condition)
    silent = adapter.image(torch.zeros_like(tokens), skip, condition)
    assert (silent[0] - silent[1]).abs().max() > 0.01
    cut = adapter.image(torch.zeros_like(tokens), torch.zeros_like(skip), condition)
    torch.testing.assert_close(cut[0], cut[1])


def test_every_part_of_the_conv_adapter_learns_and_the_condition_reaches_all_three_places():
    torch.manual_seed(0)
    adapter = ConvAdapter((1, 8, 12), 4, dim=8, stem_channels=8)
    condition = torch.randn(2, 4)
    tokens, skip = adapter.tokens(random_image((1, 8, 12)), condition)
    adapter.image(tokens, skip, condition).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("stem_channels", [12, 4, 0, -8])
def test_stem_channels_are_a_multiple_of_8(stem_channels):
    with pytest.raises(UserError, match=f"stem_channels={stem_channels} .*multiple of 8"):
        ConvAdapter((1, 8, 8), 4, stem_channels=stem_channels)


def test_stem_and_token_patch_together_must_divide_the_image():
    with pytest.raises(UserError, match="6 pixels.*stem_patch · token_patch.*28×28"):
        ConvAdapter((1, 28, 28), 4, stem_patch=2, token_patch=3)
