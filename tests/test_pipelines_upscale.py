# Made from nbs/53_upscale.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM, DDPM, DPMSolverPP
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.mixture_of_denoisers import IntervalRouter
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.models.upscaler import Upscaler
from perceiver_moe_diffusion.pipelines.upscale import UpscalerPipeline
from perceiver_moe_diffusion.tools.testing import OneDevice

NAMES = [str(i) for i in range(10)]


def upscaler():
    "A mixture of two small upscalers, whose latents are mixtures of experts; always with the same weights."
    torch.manual_seed(0)
    moe = partial(build_moe, num_experts=4, top_k=2)
    core = partial(PerceiverIO, dim=32, num_latents=4, depth=1, num_heads=2, feed_forward=moe)
    adapter = partial(ConvAdapter, dim=32, stem_channels=16)
    expert = partial(PerceiverDenoiser, adapter=adapter, core=core, condition_dim=32)
    return Upscaler((1, 8, 8), 10, IntervalRouter, [expert, expert])


def enlarging(sampler=None):
    "A pipeline with fresh weights."
    return UpscalerPipeline(upscaler(), Diffusion(), sampler or DDIM(steps=3), NAMES)


SAMPLERS = pytest.mark.parametrize("sampler", [DDPM(steps=3), DDIM(steps=3, eta=1.0), DPMSolverPP(steps=3)],
                                   ids=lambda sampler: type(sampler).__name__)


@SAMPLERS
def test_small_images_on_the_cpu_are_enlarged_where_the_model_is(sampler):
    pipeline = enlarging(sampler).to("meta")
    with OneDevice():
        large = pipeline.upscale(torch.zeros(5, 1, 4, 4), batch_size=2)
    assert large.device.type == "meta" and large.shape == (5, 1, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
def test_a_graphics_card_enlarges_alike(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions in float32, as on the CPU
    pipeline, small = enlarging(), torch.linspace(-1, 1, 32).view(2, 1, 4, 4)
    expected, found = pipeline.upscale(small), pipeline.to("cuda").upscale(small)
    assert found.is_cuda and (found.cpu() - expected).abs().mean() < 1e-3


@SAMPLERS
def test_a_large_image_depends_on_its_seed_and_not_on_its_batch(sampler):
    pipeline, small = enlarging(sampler), torch.linspace(-1, 1, 48).view(3, 1, 4, 4)
    large = pipeline.upscale(small, seed=3)
    assert torch.equal(large, pipeline.upscale(small, seed=3))
    assert_close(pipeline.upscale(small, seed=3, batch_size=2), large, atol=1e-4, rtol=0)
    assert_close(pipeline.upscale(small[:1], seed=3), large[:1], atol=1e-4, rtol=0)
    assert (pipeline.upscale(small, seed=4) - large).abs().max() > 1e-2
    assert (pipeline.upscale(-small, seed=3) - large).abs().max() > 1e-2, "and on the small image"
    assert large.abs().max() <= 1


def test_no_label_is_shown_and_each_portion_is_asked_once_a_step():
    pipeline, asked = enlarging(), []
    pipeline.model.register_forward_pre_hook(lambda module, given: asked.append(given[2].tolist()))
    pipeline.upscale(torch.zeros(3, 1, 4, 4), batch_size=2)
    assert asked == [[10, 10]] * 3 + [[10]] * 3, "no second half for guidance"


@pytest.mark.parametrize("small", [torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), [[0.0]]])
def test_small_images_of_another_shape_are_refused(small):
    with pytest.raises(UserError, match=r"small images of .* is not possible; allowed: \(1, 4, 4\), which this model"):
        enlarging().upscale(small)


@pytest.mark.parametrize("arguments, said", [
    (dict(foo=1), "foo for the sampler DDIM is not possible; allowed: clip, eta"),
    (dict(seed=-1), "seed=-1 is not possible; allowed: a whole number"), (dict(seed=0.5), "seed=0.5"),
    (dict(guidance_scale=2), "guidance_scale for an upscaler is not possible.*nothing to guide"),
    (dict(guidance_scale=float("nan")), "guidance_scale for an upscaler"), (dict(eta=float("nan")), "eta=nan"),
    (dict(guidance_rescale=float("nan")), "guidance_rescale=nan"), (dict(steps=float("nan")), "steps=nan"),
    (dict(guidance_interval=[float("nan"), 1.0]), "guidance_interval"), (dict(steps=0), "steps=0"),
    (dict(steps=1001), "steps=1001"), (dict(batch_size=0), "batch_size=0"),
    (dict(batch_size=float("nan")), "batch_size=nan"),
])
def test_an_argument_that_cannot_work_is_one_sentence(arguments, said):
    with pytest.raises(UserError, match=said) as refused:
        enlarging().upscale(torch.zeros(2, 1, 4, 4), **arguments)
    assert "\n" not in str(refused.value)


def test_no_images_are_refused():
    with pytest.raises(UserError, match="no examples"):
        enlarging().upscale(torch.zeros(0, 1, 4, 4))


def test_parts_of_another_kind_are_refused():
    enlarging().check()
    denoiser = upscaler().experts[0]
    for parts in ((denoiser, Diffusion(), DDIM()), (upscaler(), None, DDIM()), (upscaler(), Diffusion(), None)):
        with pytest.raises(UserError, match="pipeline=upscaler with a .* Use experiment=meme_upscale"):
            UpscalerPipeline(*parts, NAMES).check()
    with pytest.raises(UserError, match="steps=1001"):
        enlarging(DDIM(steps=1001)).check()
