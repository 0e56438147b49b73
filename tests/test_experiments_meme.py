# Made from nbs/73_meme.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.data.batches import random_examples
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM
from perceiver_moe_diffusion.evaluation.metrics import Mean
from perceiver_moe_diffusion.experiments.meme import (
    by_noise,
    denoiser_costs,
    frequency_rings,
    high_minus_low,
    linear_filter,
    loss_by_interval,
    relative_losses,
    removed_spectrum,
    ring_means,
    show_by_noise,
    wiener_gain,
)
from perceiver_moe_diffusion.models.adapters import PatchAdapter
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.mixture_of_denoisers import IntervalRouter, MixtureOfDenoisers
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline
from perceiver_moe_diffusion.runs.build import build_run, instantiate_node
from perceiver_moe_diffusion.runs.overrides import load_config


def tiny(input_shape=(1, 8, 8), num_classes=10, seed=0, **core):
    "A very small denoiser."
    torch.manual_seed(seed)
    core = partial(PerceiverIO, **{"dim": 16, "num_latents": 4, "depth": 1, "num_heads": 2, **core})
    return PerceiverDenoiser(input_shape, num_classes, partial(PatchAdapter, dim=16, patch_size=2), core=core,
                             condition_dim=16)


@functools.cache
def of_configuration(model):
    return build_run(load_config(["experiment=meme", f"model={model}"])).module.model.eval()


def test_the_three_models_compute_as_much_for_an_image_to_within_two_percent():
    mean = lambda name: torch.tensor([cost.flops for cost in denoiser_costs(of_configuration(name))]).double().mean()
    assert mean("same_experts") == mean("shared"), "the same architecture"
    each = torch.tensor([cost.flops for cost in denoiser_costs(of_configuration("meme"))]) / mean("shared")
    assert ((each - 1).abs() < 0.02).all(), each


def test_costs_are_those_of_the_whole_on_images_of_each_interval():
    net, t = of_configuration("meme"), torch.tensor([0, 300, 600, 999])
    each = denoiser_costs(net)
    whole = count_flops(lambda: net(torch.zeros(4, 1, 8, 8), t, torch.zeros(4, dtype=torch.long)))
    assert whole == pytest.approx(sum(cost.flops for cost in each), rel=1e-3)
    assert sum(cost.parameters for cost in each) == sum(p.numel() for p in net.parameters())


def test_the_cleaner_the_interval_the_more_convolution_and_the_less_attention():
    experts = of_configuration("meme").experts
    stems, depths = [e.adapter.fold.out_channels for e in experts], [len(e.core.stages[0].blocks) for e in experts]
    assert stems == sorted(stems, reverse=True) and depths == sorted(depths) and depths[0] == 0
    assert len(experts) == 4


def test_a_mixture_of_one_is_that_one():
    net = of_configuration("shared")
    x, t, label = torch.randn(5, 1, 8, 8), torch.tensor([0, 10, 400, 800, 999]), torch.arange(5)
    assert len(net.experts) == 1
    assert_close(net(x, t, label), net.experts[0](x, t, label))


def test_rings_hold_every_frequency_once_and_the_mean_is_alone():
    ring = frequency_rings(8)
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
    y = torch.fft.ifft2(torch.fft.fft2(x) * wanted[frequency_rings(8)]).real
    assert_close(wiener_gain(x, y), wanted.double(), atol=1e-5, rtol=0)
    assert high_minus_low(wanted) == pytest.approx(0.95 - 0.05) and high_minus_low(1 - wanted) == pytest.approx(-0.9)


def test_a_model_that_keeps_or_removes_everything():
    diffusion, labels = Diffusion(prediction_type="eps"), torch.zeros(20, dtype=torch.long)
    images = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    a, b = (float(rate.flatten()[0]) for rate in diffusion.rates(torch.tensor([400]), images[:1]))
    removed = lambda model: removed_spectrum(model, diffusion, images, labels, 400)
    assert_close(removed(lambda x, t, label: x / b), torch.ones(5, dtype=torch.float64))
    assert_close(removed(lambda x, t, label: 0 * x), torch.zeros(5, dtype=torch.float64))


def test_the_linear_filter_is_what_regression_finds():
    torch.manual_seed(0)
    shape = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2])[frequency_rings(8)]
    images = torch.fft.ifft2(torch.fft.fft2(torch.randn(4000, 1, 8, 8)) * shape).real
    diffusion, level = Diffusion(), torch.full((4000,), 500)
    eps = torch.randn_like(images)
    found = wiener_gain(diffusion.q_sample(images, level, eps), diffusion.rates(level, images)[1] * eps)
    assert_close(found, linear_filter(diffusion, images, 500), atol=0.03, rtol=0)


def test_a_loss_is_measured_in_its_part_of_the_timesteps():
    seen = []

    def model(x, t, label, return_routing):
        seen.append(t)
        return torch.zeros_like(x), []
    model.null_label = 10
    images = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = loss_by_interval(model, Diffusion(prediction_type="eps"), images, torch.zeros(50, dtype=torch.long))
    assert [(int(t.min()) // 250, int(t.max()) // 250) for t in seen] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert all(abs(loss - 1) < 0.1 for loss in losses), "the variance of the noise, which is not guessed"


def test_experts_are_evaluated_alone_and_compared_seed_by_seed():
    data, net = (tiny_data(),
                 MixtureOfDenoisers((1, 8, 8), 10, IntervalRouter, [partial(tiny, seed=i) for i in range(4)]).eval())
    results = by_noise(GeneratorPipeline(net, Diffusion(), DDIM(), [str(i) for i in range(10)]), data, max_images=40)
    images, labels = random_examples(data, "test", 40, 0)
    assert len(results) == 32
    assert [results[f"loss_2_{i}"] for i in range(4)] == loss_by_interval(net.experts[2], Diffusion(), images, labels)
    shares = [relative_losses([results, results], e, 1) for e in range(4)]
    assert sum(share[0] for share in shares) == pytest.approx(0, abs=1e-9)
    assert all(share[0] == share[1] for share in shares)
    assert relative_losses([{"loss_0_2": 3.0, "loss_1_2": 1.0}], 0, 2, 2) == [50.0]


def test_a_marker_for_each_expert_and_part():
    figure = show_by_noise({name: [Mean(1.0, 0.5, 1.5)] * 3 for name in "ab"})
    assert len(figure.axes[0].containers) == 2 and len(figure.axes[0].get_xticks()) == 3


@functools.cache
def tiny_data():
    return instantiate_node(load_config().data)
