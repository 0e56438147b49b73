# Made from nbs/27_upscaler.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
import tempfile
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import Batch, random_examples
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM
from perceiver_moe_diffusion.models.adapters import PatchAdapter
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.mixture_of_denoisers import IntervalRouter
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.models.upscaler import ConditionedUpscaler, Upscaler
from perceiver_moe_diffusion.pipelines.files import load_pipeline, save_pipeline
from perceiver_moe_diffusion.pipelines.upscale import UpscalerPipeline
from perceiver_moe_diffusion.runs.build import build_run, instantiate_node
from perceiver_moe_diffusion.runs.folder import to_container
from perceiver_moe_diffusion.runs.overrides import load_config


def tiny(input_shape=(1, 8, 8), num_classes=10, seed=0, **core):
    "A very small denoiser; always with the same weights."
    torch.manual_seed(seed)
    core = partial(PerceiverIO, **{"dim": 16, "num_latents": 4, "depth": 1, "num_heads": 2, **core})
    adapter = partial(PatchAdapter, dim=16, patch_size=2)
    return PerceiverDenoiser(input_shape, num_classes, adapter, core=core, condition_dim=16)


def upscaler(seed=0, **more):
    "A mixture of two tiny upscalers."
    torch.manual_seed(seed)
    return Upscaler((1, 8, 8), 10, IntervalRouter, [partial(tiny, seed=i) for i in range(2)], **more).eval()


def test_an_upscaler_sees_the_small_image_and_answers_in_the_shape_of_the_large_one():
    net = upscaler()
    x, t, label = torch.randn(6, 1, 8, 8), torch.tensor([0, 100, 499, 500, 800, 999]), torch.arange(6)
    small = torch.randn(6, 1, 4, 4).clamp(-1, 1)
    y, (routing,) = net(x, t, label, small, return_routing=True)
    assert y.shape == x.shape and net.input_shape == (1, 8, 8)
    assert routing.expert_ids.flatten().tolist() == [0, 0, 0, 1, 1, 1]
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


def test_an_enlarged_image_has_the_range_of_an_image():
    "Bicubic interpolation overshoots at an edge; what it gives is cut at black and at white, and nowhere else."
    small = torch.tensor([-1.0, -1.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    free = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic")
    assert free.min() < -1 and free.max() > 1
    assert torch.equal(upscaler().enlarge(small), free.clamp(-1, 1))


@pytest.mark.parametrize("change, said", [
    (dict(x=torch.zeros(2, 2, 8, 8)), "images of shape (2, 2, 8, 8)"),
    (dict(x=torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), "images of shape (2, 1, 8, 8) and torch.uint8"),
    (dict(small=torch.zeros(2, 1, 8, 8)), "small images of shape (2, 1, 8, 8)"),
    (dict(small=torch.zeros(2, 1, 4, 4).byte()), "small images of shape (2, 1, 4, 4) and torch.uint8"),
    (dict(small=torch.zeros(1, 1, 4, 4)), "1 small images for 2 images"), (dict(t=3), "timesteps as int"),
    (dict(label=torch.tensor([0, 11])), "labels from 0 to 11"), (dict(label=torch.zeros(2)), "labels of shape"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_pair_of_images_is_refused_with_one_sentence(change, said):
    given = dict(x=torch.zeros(2, 1, 8, 8), t=torch.tensor([0, 1]), label=torch.tensor([0, 1]),
                 small=torch.zeros(2, 1, 4, 4))
    with pytest.raises(UserError, match="is not possible; allowed: ") as error:
        upscaler()(**{**given, **change})
    assert said in str(error.value)


def test_guidance_shows_the_same_small_image_to_both_halves():
    net, small = upscaler(), torch.randn(3, 1, 4, 4).clamp(-1, 1)
    x, t, label = torch.randn(3, 1, 8, 8), torch.tensor([3, 500, 900]), torch.arange(3)
    conditioned, no_label = ConditionedUpscaler(net, small), torch.full_like(label, 10)
    both = conditioned(torch.cat([x, x]), torch.cat([t, t]), torch.cat([label, no_label]))
    assert_close(both[:3], net(x, t, label, small))
    assert_close(both[3:], net(x, t, no_label, small))
    sampler, seeds = DDIM(steps=3, guidance_scale=2.0), [(0, i) for i in range(3)]
    assert sampler.sample(conditioned, Diffusion(), label, (1, 8, 8), seeds).shape == (3, 1, 8, 8)


@functools.cache
def tiny_data():
    return instantiate_node(load_config().data)


def test_training_shows_each_image_its_own_small_version():
    data = tiny_data()
    module = build_run(load_config(["experiment=meme_upscale"])).module
    images, labels = random_examples(data, "train", 64, 0)
    batch = Batch(images, labels, 0)
    given = module.denoiser(batch)
    assert_close(given.small, F.avg_pool2d(batch.input, 2))
    assert given.null_label == 10
    noise = module.diffusion.sample_noise(len(batch.label), (1, 8, 8))
    loss, _ = module.diffusion.loss(given, batch.input, batch.label, noise)
    loss.backward()
    assert all(p.grad is not None for p in module.model.experts.parameters() if p.requires_grad)


@pytest.mark.parametrize("override", ["task=upscale", "pipeline=upscaler"])
def test_what_belongs_to_an_upscaler_is_refused_for_other_models(override):
    with pytest.raises(UserError, match=f"{override} with a PerceiverDenoiser .* Use experiment=meme_upscale"):
        build_run(load_config([override]))


def enlarged(net):
    return UpscalerPipeline(net, Diffusion(), DDIM(steps=3), [str(i) for i in range(10)])


def test_an_image_is_enlarged_alike_in_any_company_and_shapes_are_checked():
    pipeline, small = enlarged(upscaler()), tiny_data().split("test")[0][:5, :, ::2, ::2]
    assert_close(pipeline.upscale(small, seed=3, batch_size=2), pipeline.upscale(small, seed=3))
    assert_close(pipeline.upscale(small[:2], seed=3), pipeline.upscale(small, seed=3)[:2])
    with pytest.raises(UserError, match=r"small images of shape \(1, 8, 8\) .* \(1, 4, 4\)"):
        pipeline.upscale(torch.zeros(1, 1, 8, 8))


def test_a_saved_upscaler_enlarges_as_before():
    overrides = ["experiment=meme_upscale", "model.dim=16", "sampler=ddim", "sampler.steps=3"]
    config = to_container(load_config(overrides))
    net = {**config["model"]["net"], "input_shape": [1, 8, 8], "num_classes": 10}
    nodes = {"model": net, "diffusion": config["diffusion"], "sampler": config["sampler"]}
    with tempfile.TemporaryDirectory() as folder:
        pipeline = enlarged(build_run(load_config(overrides[:2])).module.model)
        save_pipeline(folder, pipeline.model, nodes, pipeline.class_names, 17, "UpscalerPipeline")
        small = torch.zeros(2, 1, 4, 4)
        again = load_pipeline(folder)
        assert isinstance(again, UpscalerPipeline)
        assert_close(again.upscale(small), pipeline.upscale(small))
