# Made from nbs/27_meme.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch
from functools import partial
from perceiver_moe_diffusion.adapters import PatchAdapter
from perceiver_moe_diffusion.commands import build
from perceiver_moe_diffusion.config import load_config
from perceiver_moe_diffusion.denoiser import Denoiser
from perceiver_moe_diffusion.diffusion import Diffusion
from perceiver_moe_diffusion.experts import count_flops
from perceiver_moe_diffusion.meme import costs
from perceiver_moe_diffusion.meme import gain
from perceiver_moe_diffusion.meme import linear_filter
from perceiver_moe_diffusion.meme import removed
from perceiver_moe_diffusion.meme import ring_means
from perceiver_moe_diffusion.meme import rings
from perceiver_moe_diffusion.meme import tilt
from perceiver_moe_diffusion.perceiver import PerceiverIO
from torch.testing import assert_close


def tiny(image_shape=(1, 8, 8), num_classes=10, seed=0, **core):
    "A very small denoiser."
    torch.manual_seed(seed)
    core = partial(PerceiverIO, **{"dim": 16, "num_latents": 4, "depth": 1, "num_heads": 2, **core})
    return Denoiser(image_shape, num_classes, partial(PatchAdapter, dim=16, patch_size=2), core=core, condition_dim=16)


def of_experiment_in_test(model, *overrides, experiment="meme"):
    return build(load_config([f"experiment={experiment}", f"model={model}", *overrides])).module.model.eval()


def test_the_three_models_compute_as_much_for_an_image_to_within_two_percent():
    mean = lambda name: torch.tensor([cost.flops for cost in costs(of_experiment_in_test(name))]).double().mean()
    assert mean("same_experts") == mean("shared"), "the same architecture"
    each = torch.tensor([cost.flops for cost in costs(of_experiment_in_test("meme"))]) / mean("shared")
    assert ((each - 1).abs() < 0.02).all(), each


def test_costs_are_those_of_the_whole_on_images_of_each_interval():
    net, t = of_experiment_in_test("meme"), torch.tensor([0, 300, 600, 999])
    each = costs(net)
    whole = count_flops(lambda: net(torch.zeros(4, 1, 8, 8), t, torch.zeros(4, dtype=torch.long)))
    assert whole == pytest.approx(sum(cost.flops for cost in each), rel=1e-3)
    assert sum(cost.parameters for cost in each) == sum(p.numel() for p in net.parameters())


def test_the_cleaner_the_interval_the_more_convolution_and_the_less_attention():
    experts = of_experiment_in_test("meme").experts
    stems, depths = [e.adapter.fold.out_channels for e in experts], [len(e.core.stages[0].blocks) for e in experts]
    assert stems == sorted(stems, reverse=True) and depths == sorted(depths) and depths[0] == 0
    assert len(set(map(len, (stems, depths)))) == 1 and len(experts) == 4


def test_a_mixture_of_one_is_that_one():
    net = of_experiment_in_test("shared")
    x, t, label = torch.randn(5, 1, 8, 8), torch.tensor([0, 10, 400, 800, 999]), torch.arange(5)
    assert len(net.experts) == 1
    assert_close(net(x, t, label), net.experts[0](x, t, label))


def test_rings_hold_every_frequency_once_and_the_mean_is_alone():
    ring = rings(8)
    assert (ring == 0).sum() == 1 and ring[0, 0] == 0 and ring.max() == 4
    assert ring[0, 1] == ring[1, 0] == ring[0, -1] == ring[-1, 0] == 1 and ring[4, 4] == 4


def test_power_of_a_wave_is_in_its_ring_and_white_noise_is_flat():
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(8) / 8).expand(1, 1, 8, 8)
    power = ring_means(torch.fft.fft2(wave, norm="ortho").abs().square())
    assert power[3] > 0 and power[[0, 1, 2, 4]].abs().max() < 1e-9
    torch.manual_seed(0)
    assert (ring_means(torch.fft.fft2(torch.randn(2000, 1, 8, 8), norm="ortho").abs().square()) - 1).abs().max() < 0.05


def test_the_gain_of_a_known_filter_is_found():
    torch.manual_seed(0)
    x = torch.randn(50, 1, 8, 8)
    wanted = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    y = torch.fft.ifft2(torch.fft.fft2(x) * wanted[rings(8)]).real
    assert_close(gain(x, y), wanted.double(), atol=1e-5, rtol=0)
    assert tilt(wanted) == pytest.approx(0.95 - 0.05) and tilt(1 - wanted) == pytest.approx(-0.9)


def test_a_model_that_keeps_or_removes_everything():
    diffusion, images, labels = Diffusion(objective="eps"), torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(20, dtype=torch.long)
    a, b = (float(rate.flatten()[0]) for rate in diffusion.rates(torch.tensor([400]), images[:1]))
    assert_close(removed(lambda x, t, label: x / b, diffusion, images, labels, 400), torch.ones(5, dtype=torch.float64))
    assert_close(removed(lambda x, t, label: 0 * x, diffusion, images, labels, 400), torch.zeros(5, dtype=torch.float64))


def test_the_linear_filter_is_what_regression_finds():
    torch.manual_seed(0)
    shape = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2])[rings(8)]
    images = torch.fft.ifft2(torch.fft.fft2(torch.randn(4000, 1, 8, 8)) * shape).real
    diffusion, level = Diffusion(), torch.full((4000,), 500)
    eps = torch.randn_like(images)
    found = gain(diffusion.q_sample(images, level, eps), diffusion.rates(level, images)[1] * eps)
    assert_close(found, linear_filter(diffusion, images, 500), atol=0.03, rtol=0)
