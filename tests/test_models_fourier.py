# Made from nbs/20_fourier.ipynb by `pmd-dev tests`. Edit the notebook.
import math

import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.fourier import fourier_encode, grid_positions


@pytest.mark.parametrize("centres", [True, False])
@pytest.mark.parametrize("shape", [(7,), (4, 6), (2, 3, 5), (2, 1, 3, 2)])
def test_a_grid_holds_every_point_once_in_reading_order(shape, centres):
    positions = grid_positions(shape, centres)
    assert positions.shape == (math.prod(shape), len(shape))
    field = positions.view(*shape, len(shape))
    for axis, n in enumerate(shape):
        along = field.select(-1, axis).movedim(axis, 0).reshape(n, -1)
        assert (along == along[:, :1]).all(), "a coordinate depends on its own axis alone"
        expected = [(2 * j + 1) / n - 1 if centres else 2 * j / max(n - 1, 1) - 1 for j in range(n)]
        torch.testing.assert_close(along[:, 0], torch.tensor(expected), rtol=0, atol=1e-6)


def test_centres_are_symmetric_and_inside_and_end_points_reach_the_ends():
    centres, ends = grid_positions((9,)), grid_positions((9,), centres=False)
    torch.testing.assert_close(centres, -centres.flip(0), rtol=0, atol=1e-6)
    assert centres.abs().max() < 1 and ends.min() == -1 and ends.max() == 1


def test_finer_pixels_cover_the_same_ground():
    fine = grid_positions((16,)).view(8, 2).mean(dim=1)
    torch.testing.assert_close(fine, grid_positions((8,)).flatten(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (4, -1)])
def test_a_grid_without_points_is_explained(shape):
    with pytest.raises(UserError, match="a grid of shape"):
        grid_positions(shape)


def naive_encode(point: list[float], num_bands: int, max_freq: list[float]) -> list[float]:
    "The formula, one number after the other."
    code = list(point)
    for wave in (math.sin, math.cos):
        for x, rate in zip(point, max_freq):
            for k in range(num_bands):
                share = k / (num_bands - 1) if num_bands > 1 else 0.0
                code.append(wave(math.pi * (1 + share * (rate / 2 - 1)) * x))
    return code


@pytest.mark.parametrize("num_bands", [0, 1, 2, 6])
@pytest.mark.parametrize("shape", [(7,), (4, 6), (2, 3, 5)])
def test_the_encoding_is_the_formula(shape, num_bands):
    positions, rates = grid_positions(shape).double(), [n + 0.5 for n in shape]
    code = fourier_encode(positions, num_bands, tuple(rates))
    assert code.shape == (math.prod(shape), len(shape) * (2 * num_bands + 1))
    expected = torch.tensor([naive_encode(point, num_bands, rates) for point in positions.tolist()], dtype=torch.double)
    torch.testing.assert_close(code, expected, rtol=0, atol=1e-12)


def test_precision_is_that_of_the_positions():
    positions = grid_positions((28, 28))
    single, double = fourier_encode(positions, 8, 28), fourier_encode(positions.double(), 8, 28)
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_every_channel_stays_within_one_and_every_wave_keeps_its_length():
    d, K = 2, 6
    code = fourier_encode(grid_positions((8, 12)), K, (8.0, 12.0))
    assert code.abs().max() <= 1
    sines, cosines = code[:, d:d + d * K], code[:, d + d * K:]
    torch.testing.assert_close(sines**2 + cosines**2, torch.ones(96, d * K), rtol=0, atol=1e-6)


def test_one_rate_means_the_same_rate_for_each_axis():
    positions = grid_positions((4, 6))
    torch.testing.assert_close(fourier_encode(positions, 3, 6), fourier_encode(positions, 3, (6.0, 6.0)),
                               rtol=0, atol=0)


@pytest.mark.parametrize("num_bands, max_freq, message", [
    (4, (8.0, 8.0, 8.0), "max_freq with 3 values for positions of 2 axes"), (4, (8.0,), "max_freq with 1 values"),
    (-1, 8, "num_bands=-1"), (4, 0, "max_freq=0 "), (4, float("nan"), "max_freq=nan"),
    (4, (8.0, float("inf")), "max_freq=inf"),
])
def test_a_wrong_band_or_rate_is_explained(num_bands, max_freq, message):
    with pytest.raises(UserError, match=message):
        fourier_encode(grid_positions((4, 4)), num_bands, max_freq)


def test_the_waves_are_where_the_positions_are():
    "The meta device has shapes and no values, and is on every machine: what mixes devices fails there too."
    waves = fourier_encode(torch.empty(5, 2, device="meta", dtype=torch.float64), num_bands=3, max_freq=8)
    assert waves.is_meta and waves.dtype == torch.float64 and waves.shape == (5, 14)


@pytest.mark.parametrize("max_freq", [1, 0.5])
def test_an_axis_may_have_one_point_or_a_rate_below_one(max_freq):
    encoded = fourier_encode(torch.tensor([[0.5]]), 2, max_freq)
    bands = torch.linspace(1, max_freq / 2, 2)
    expected = torch.cat([torch.tensor([0.5]), (torch.pi * 0.5 * bands).sin(), (torch.pi * 0.5 * bands).cos()])
    torch.testing.assert_close(encoded[0], expected)


def test_the_similarity_of_two_waves_depends_on_their_distance_alone():
    waves = fourier_encode(grid_positions((20,)).double(), 7, 20)[:, 1:]
    gram = waves @ waves.T
    for lag in range(20):
        along = gram.diagonal(lag)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-4)
        expected = sum(math.cos(math.pi * f * 2 * lag / 20)
                       for f in torch.linspace(1, 10, 7, dtype=torch.double).tolist())
        assert abs(along[0].item() - expected) < 1e-4
    assert (gram.argmax(dim=1) == torch.arange(20)).all(), "nothing is more similar to a point than itself"


def waves_of(positions: torch.Tensor, num_bands: int, max_freq: float) -> tuple[torch.Tensor, torch.Tensor]:
    "Sines and cosines [N, K] of positions on one axis."
    return fourier_encode(positions.double(), num_bands, max_freq)[:, 1:].chunk(2, dim=1)


@pytest.mark.parametrize("n", [8, 32, 33])
def test_end_points_alias_the_top_band_onto_the_one_below(n):
    positions = grid_positions((n,), centres=False)
    step = (positions[1] - positions[0]).item() * n / 2
    assert step == pytest.approx(n / (n - 1), abs=1e-5) and step > 1  # in units of π; 1.032 for n = 32
    sines, cosines = waves_of(positions, 2, n)
    alias, sign = math.pi * (n / 2 - 1) * positions[:, 0].double(), 1 if n % 2 == 0 else -1
    torch.testing.assert_close(sines[:, 1], sign * alias.sin(), rtol=0, atol=1e-4)
    torch.testing.assert_close(cosines[:, 1], -sign * alias.cos(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("n", [8, 32, 7, 33])
def test_the_top_band_at_pixel_centres_has_one_blank_wave_and_one_that_alternates(n):
    sines, cosines = waves_of(grid_positions((n,)), 4, n)
    blank, full = (cosines, sines) if n % 2 == 0 else (sines, cosines)
    assert blank[:, -1].abs().max() < 1e-4
    torch.testing.assert_close(full[1:, -1], -full[:-1, -1], rtol=0, atol=1e-4)
    torch.testing.assert_close(full[:, -1].abs(), torch.ones(n, dtype=torch.double), rtol=0, atol=1e-4)
    assert torch.stack([sines[:, :-1], cosines[:, :-1]]).abs().amax(dim=1).min() > 0.5, "no other wave is blank"


def test_end_points_with_one_less_than_their_number_are_not_aliased():
    positions = grid_positions((32,), centres=False)
    assert (positions[1] - positions[0]).item() * 31 / 2 == pytest.approx(1, abs=1e-6)
    code = torch.cat(waves_of(positions, 15, 31), dim=1)
    assert torch.linalg.matrix_rank(code, atol=1e-3) == 29, "fifteen bands, and only the blank wave adds nothing"


def test_each_axis_has_the_bands_of_its_own_rate():
    code = fourier_encode(grid_positions((8, 32)).double(), 4, (8.0, 32.0)).view(8, 32, -1)
    rows, columns = (fourier_encode(grid_positions((8,)).double(), 4, 8),
                     fourier_encode(grid_positions((32,)).double(), 4, 32))
    together = lambda a, b: torch.cat([torch.cat([p, q]) for p, q in zip(a.split([1, 4, 4]), b.split([1, 4, 4]))])
    for y, x in [(0, 0), (3, 17), (7, 31)]:
        torch.testing.assert_close(code[y, x], together(rows[y], columns[x]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("frequency", [0.5, 3.0, 4.7, 6.1])
def test_a_wave_above_the_nyquist_frequency_folds(frequency):
    x = grid_positions((8,)).double()[:, 0]
    wave, folded = torch.pi * frequency * x, torch.pi * (8 - frequency) * x
    torch.testing.assert_close(folded.sin(), wave.sin(), rtol=0, atol=1e-12)
    torch.testing.assert_close(folded.cos(), -wave.cos(), rtol=0, atol=1e-12)


def test_a_rate_too_high_for_an_axis_adds_channels_but_no_knowledge():
    own, foreign = (torch.cat(waves_of(grid_positions((8,)), rate // 2, rate), dim=1) for rate in (8, 32))
    assert own.shape == (8, 8) and foreign.shape == (8, 32)
    assert torch.linalg.matrix_rank(own, atol=1e-3) == 7, "one wave of the top band is blank"
    assert torch.linalg.matrix_rank(foreign, atol=1e-3) == 8, "24 more channels, and one of them new: a constant"
