# Made from nbs/27_meme.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
import pytest
import tempfile
import torch
from functools import partial
from perceiver_moe_diffusion.adapters import PatchAdapter
from perceiver_moe_diffusion.commands import build
from perceiver_moe_diffusion.commands import make
from perceiver_moe_diffusion.commands import plain
from perceiver_moe_diffusion.config import load_config
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data import Batch
from perceiver_moe_diffusion.denoiser import Denoiser
from perceiver_moe_diffusion.diffusion import Diffusion
from perceiver_moe_diffusion.experts import count_flops
from perceiver_moe_diffusion.meme import Given
from perceiver_moe_diffusion.meme import Upscaler
from perceiver_moe_diffusion.meme import UpscalerPipeline
from perceiver_moe_diffusion.meme import by_noise
from perceiver_moe_diffusion.meme import costs
from perceiver_moe_diffusion.meme import gain
from perceiver_moe_diffusion.meme import linear_filter
from perceiver_moe_diffusion.meme import loss_by_interval
from perceiver_moe_diffusion.meme import psnr
from perceiver_moe_diffusion.meme import relative_losses
from perceiver_moe_diffusion.meme import removed
from perceiver_moe_diffusion.meme import ring_means
from perceiver_moe_diffusion.meme import rings
from perceiver_moe_diffusion.meme import show_by_noise
from perceiver_moe_diffusion.meme import tilt
from perceiver_moe_diffusion.meme import upscale_quality
from perceiver_moe_diffusion.metrics import Mean
from perceiver_moe_diffusion.metrics import random_part
from perceiver_moe_diffusion.mixture_of_denoisers import IntervalRouter
from perceiver_moe_diffusion.mixture_of_denoisers import MixtureOfDenoisers
from perceiver_moe_diffusion.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipeline import Pipeline
from perceiver_moe_diffusion.pipeline import load_pipeline
from perceiver_moe_diffusion.pipeline import save_pipeline
from perceiver_moe_diffusion.sampling import DDIM
from torch.nn import functional as F
from torch.testing import assert_close


def tiny(image_shape=(1, 8, 8), num_classes=10, seed=0, **core):
    "A very small denoiser."
    torch.manual_seed(seed)
    core = partial(PerceiverIO, **{"dim": 16, "num_latents": 4, "depth": 1, "num_heads": 2, **core})
    return Denoiser(image_shape, num_classes, partial(PatchAdapter, dim=16, patch_size=2), core=core, condition_dim=16)


@functools.cache
def of_configuration(model):
    return build(load_config(["experiment=meme", f"model={model}"])).module.model.eval()


def test_the_three_models_compute_as_much_for_an_image_to_within_two_percent():
    mean = lambda name: torch.tensor([cost.flops for cost in costs(of_configuration(name))]).double().mean()
    assert mean("same_experts") == mean("shared"), "the same architecture"
    each = torch.tensor([cost.flops for cost in costs(of_configuration("meme"))]) / mean("shared")
    assert ((each - 1).abs() < 0.02).all(), each


def test_costs_are_those_of_the_whole_on_images_of_each_interval():
    net, t = of_configuration("meme"), torch.tensor([0, 300, 600, 999])
    each = costs(net)
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


def test_a_loss_is_measured_in_its_part_of_the_noise_levels():
    seen = []

    def model(x, t, label, return_routing):
        seen.append(t)
        return torch.zeros_like(x), []
    model.null_label = 10
    images = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    losses = loss_by_interval(model, Diffusion(objective="eps"), images, torch.zeros(50, dtype=torch.long))
    assert [(int(t.min()) // 250, int(t.max()) // 250) for t in seen] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert all(abs(loss - 1) < 0.1 for loss in losses), "the variance of the noise, which is not guessed"


def test_experts_are_judged_alone_and_compared_seed_by_seed():
    data, net = tiny_data(), MixtureOfDenoisers((1, 8, 8), 10, IntervalRouter, [partial(tiny, seed=i) for i in range(4)]).eval()
    results = by_noise(Pipeline(net, Diffusion(), DDIM(), [str(i) for i in range(10)]), data, max_images=40)
    images, labels = random_part(data, "test", 40, 0)
    assert len(results) == 32
    assert [results[f"loss_2_{i}"] for i in range(4)] == loss_by_interval(net.experts[2], Diffusion(), images, labels)
    shares = [relative_losses([results, results], e, 1) for e in range(4)]
    assert sum(share[0] for share in shares) == pytest.approx(0, abs=1e-9) and all(share[0] == share[1] for share in shares)
    assert relative_losses([{"loss_0_2": 3.0, "loss_1_2": 1.0}], 0, 2, 2) == [50.0]


def test_a_marker_for_each_expert_and_part():
    figure = show_by_noise({name: [Mean(1.0, 0.5, 1.5)] * 3 for name in "ab"})
    assert len(figure.axes[0].containers) == 2 and len(figure.axes[0].get_xticks()) == 3


@functools.cache
def tiny_data():
    return make(load_config().data)


def upscaler(seed=0, **more):
    "A mixture of two tiny upscalers."
    torch.manual_seed(seed)
    return Upscaler((1, 8, 8), 10, IntervalRouter, [partial(tiny, seed=i) for i in range(2)], **more).eval()


def test_an_upscaler_sees_the_small_image_and_answers_in_the_shape_of_the_large_one():
    net = upscaler()
    x, t, label, small = torch.randn(6, 1, 8, 8), torch.tensor([0, 100, 499, 500, 800, 999]), torch.arange(6), torch.randn(6, 1, 4, 4).clamp(-1, 1)
    y, (routing,) = net(x, t, label, small, return_routing=True)
    assert y.shape == x.shape and routing.index.flatten().tolist() == [0, 0, 0, 1, 1, 1] and net.image_shape == (1, 8, 8)
    shown = torch.cat([x, net.enlarge(small)], dim=1)
    assert_close(y[3:], net.experts[1](shown[3:], t[3:], label[3:])[:, :1])
    assert (net(x, t, label, -small) - y).abs().max() > 1e-3


def test_shrinking_takes_means_and_enlarging_keeps_what_is_flat():
    net, image = upscaler(), torch.arange(64.0).view(1, 1, 8, 8) / 64
    assert_close(net.shrink(image)[0, 0, 0, 0], image[0, 0, :2, :2].mean())
    assert_close(net.enlarge(torch.full((1, 1, 4, 4), 0.3)), torch.full((1, 1, 8, 8), 0.3))


@pytest.mark.parametrize("factor", [1, 3, 16])
def test_a_factor_that_does_not_divide_is_refused(factor):
    with pytest.raises(UserError, match=f"factor={factor} for images of 8×8"):
        upscaler(factor=factor)


def test_guidance_shows_the_same_small_image_to_both_halves():
    net, small = upscaler(), torch.randn(3, 1, 4, 4).clamp(-1, 1)
    x, t, label = torch.randn(3, 1, 8, 8), torch.tensor([3, 500, 900]), torch.arange(3)
    both = Given(net, small)(torch.cat([x, x]), torch.cat([t, t]), torch.cat([label, torch.full_like(label, 10)]))
    assert_close(both[:3], net(x, t, label, small))
    assert_close(both[3:], net(x, t, torch.full_like(label, 10), small))
    draw = lambda model: DDIM(steps=3, guidance_scale=2.0).sample(model, Diffusion(), label, (1, 8, 8), [(0, i) for i in range(3)])
    assert draw(Given(net, small)).shape == (3, 1, 8, 8)


def test_training_shows_each_image_its_own_small_version():
    data = tiny_data()
    module = build(load_config(["experiment=meme_upscale"])).module
    images, labels = random_part(data, "train", 64, 0)
    batch = Batch(images, labels, 0)
    given = module.denoiser(batch)
    assert_close(given.small, F.avg_pool2d(batch.input, 2))
    assert given.null_label == 10
    loss, _ = module.diffusion.loss(given, batch.input, batch.label, module.diffusion.draw(len(batch.label), (1, 8, 8)))
    loss.backward()
    assert all(p.grad is not None for p in module.model.experts.parameters() if p.requires_grad)


@pytest.mark.parametrize("override", ["task=upscale", "pipeline=upscaler"])
def test_what_belongs_to_an_upscaler_is_refused_for_other_models(override):
    with pytest.raises(UserError, match=f"{override} with a Denoiser .* Use experiment=meme_upscale"):
        build(load_config([override]))


def enlarged(net):
    return UpscalerPipeline(net, Diffusion(), DDIM(steps=3), [str(i) for i in range(10)])


def test_an_image_is_enlarged_alike_in_any_company_and_shapes_are_checked():
    pipeline, small = enlarged(upscaler()), tiny_data().part("test")[0][:5, :, ::2, ::2]
    assert_close(pipeline.upscale(small, seed=3, batch_size=2), pipeline.upscale(small, seed=3))
    assert_close(pipeline.upscale(small[:2], seed=3), pipeline.upscale(small, seed=3)[:2])
    with pytest.raises(UserError, match=r"small images of shape \(1, 8, 8\) .* \(1, 4, 4\)"):
        pipeline.upscale(torch.zeros(1, 1, 8, 8))


def test_the_judge_knows_a_perfect_answer_and_bicubic():
    data, pipeline = tiny_data(), enlarged(upscaler())
    truth, _ = random_part(data, "test", 40, 0)
    pipeline.upscale = lambda small, seed: truth
    results = upscale_quality(pipeline, data, max_images=40, classifier_steps=5)
    assert results["psnr"] > 90 and results["fd"] < 1e-6 and results["accuracy"] == results["accuracy_real"]
    plain = pipeline.model.enlarge(pipeline.model.shrink(truth))
    assert results["psnr_bicubic"] == pytest.approx(float(psnr(plain, truth).mean()), rel=1e-5) and results["psnr_bicubic"] < 30
    assert float(psnr(torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.3))) == pytest.approx(20.0, abs=1e-3)


def test_a_saved_upscaler_enlarges_as_before():
    with tempfile.TemporaryDirectory() as folder:
        pipeline = enlarged(build(load_config(["experiment=meme_upscale", "model.dim=16"])).module.model)
        config = plain(load_config(["experiment=meme_upscale", "model.dim=16", "sampler=ddim", "sampler.steps=3"]))
        net = {**config["model"]["net"], "image_shape": [1, 8, 8], "num_classes": 10}
        save_pipeline(folder, pipeline.model, {"model": net, "diffusion": config["diffusion"], "sampler": config["sampler"]}, pipeline.class_names, 17, "UpscalerPipeline")
        small = torch.zeros(2, 1, 4, 4)
        again = load_pipeline(folder)
        assert isinstance(again, UpscalerPipeline)
        assert_close(again.upscale(small), pipeline.upscale(small))
