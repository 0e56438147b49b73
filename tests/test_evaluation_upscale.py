# Made from nbs/58_evaluate_upscaler.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
import json
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.data.batches import random_examples
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM
from perceiver_moe_diffusion.evaluation.metrics import FeatureSet, frechet_distance, train_classifier
from perceiver_moe_diffusion.evaluation.upscale import psnr, upscale_quality, upscaler_flops
from perceiver_moe_diffusion.models.adapters import PatchAdapter
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.mixture_of_denoisers import IntervalRouter
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.models.upscaler import Upscaler
from perceiver_moe_diffusion.pipelines.upscale import UpscalerPipeline
from perceiver_moe_diffusion.tools.testing import Elsewhere


def test_psnr_by_hand():
    half, third = torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.3)
    assert float(psnr(half, third)) == pytest.approx(20.0, abs=1e-3), "an error of a tenth of the range: 20 decibels"
    assert float(psnr(half, half)) == pytest.approx(106.02, abs=0.01), "not infinite"


def test_each_image_is_compared_with_its_own_truth():
    generator = torch.Generator().manual_seed(0)
    images, truth = (torch.randn(5, 3, 4, 4, generator=generator) for _ in range(2))
    alone = torch.cat([psnr(images[i:i + 1], truth[i:i + 1]) for i in range(5)])
    assert_close(psnr(images, truth), alone)
    assert_close(psnr(truth, images), alone)
    assert_close(psnr(images, (9 * images + truth) / 10), alone + 20)  # a tenth of the error, a hundredth of its square


@functools.cache
def data_and_judge():
    data = DataModule(digits)
    return data, train_classifier(data, 5)


def tiny_pipeline():
    "An upscaler with fresh weights, always the same: measuring works on any model."
    torch.manual_seed(0)
    core = partial(PerceiverIO, dim=16, num_latents=4, depth=1, num_heads=2)
    adapter = partial(PatchAdapter, dim=16, patch_size=2)
    expert = partial(PerceiverDenoiser, adapter=adapter, core=core, condition_dim=16)
    net = Upscaler((1, 8, 8), 10, IntervalRouter, [expert, expert])
    return UpscalerPipeline(net, Diffusion(), DDIM(steps=3), [str(i) for i in range(10)])


def measured(pipeline, **settings):
    data, judge = data_and_judge()
    return upscale_quality(pipeline, data, max_images=40, classifier=judge, **settings)


def test_a_perfect_answer_is_known_as_one():
    data, judge = data_and_judge()
    truth, labels = random_examples(data, "test", 40, 0)
    pipeline = tiny_pipeline()
    pipeline.upscale = lambda small, seed: truth
    results = measured(pipeline)
    assert results["psnr"] > 90 and results["fd"] < 1e-6 and results["accuracy"] == results["accuracy_real"]
    plain = pipeline.model.enlarge(pipeline.model.shrink(truth))
    assert results["psnr_bicubic"] == pytest.approx(float(psnr(plain, truth).mean()), rel=1e-5)
    of_plain, of_real = (FeatureSet.of(judge, images, labels) for images in (plain, truth))
    assert results["fd_bicubic"] == frechet_distance(of_plain.features, of_real.features) > 0


def test_every_figure_is_there_finite_and_decided_by_the_seed(tmp_path):
    results = measured(tiny_pipeline(), folder=tmp_path)
    figures = [f"{name}{of}{end}" for of in ("", "_bicubic") for name, end in (
        ("psnr", ""), ("psnr", "_interval"), ("fd", ""), ("accuracy", ""), ("accuracy", "_interval"))]
    assert list(results) == [*figures, "accuracy_real", "images", "steps", "fd_guidance_scale", "flops_per_step",
                             "parameters"]
    numbers = [n for value in results.values() for n in (value if isinstance(value, tuple) else [value])]
    assert torch.tensor(numbers, dtype=torch.float64).isfinite().all() and json.loads(json.dumps(results))
    assert results["images"] == 40 and results["steps"] == 3
    assert results == measured(tiny_pipeline()) and results["psnr"] != measured(tiny_pipeline(), seed=1)["psnr"]
    assert [path.name for path in tmp_path.iterdir()] == ["upscaled.png"]


def test_operations_are_counted_on_the_device_of_the_model():
    "The meta device has shapes and no values, and is on every machine: what mixes devices fails there too."
    small = torch.zeros(20, 1, 4, 4)
    assert upscaler_flops(tiny_pipeline().to("meta"), small) == upscaler_flops(tiny_pipeline(), small) > 0


def test_images_that_are_enlarged_on_another_device_are_judged_on_the_cpu(tmp_path):
    here, there = tiny_pipeline(), tiny_pipeline()
    there.upscale = lambda small, seed: here.upscale(small, seed).as_subclass(Elsewhere)
    assert measured(there, folder=tmp_path) == measured(here)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_upscaler_on_a_gpu_is_evaluated(tmp_path):
    here, there = measured(tiny_pipeline()), measured(tiny_pipeline().to("cuda"), folder=tmp_path)
    assert there["psnr"] == pytest.approx(here["psnr"], abs=0.1) and there["psnr_bicubic"] == here["psnr_bicubic"]
    assert there["flops_per_step"] == here["flops_per_step"]


def test_the_defaults_are_those_that_recorded_results_were_measured_with():
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(upscale_quality).parameters.items()}
    assert (defaults["max_images"], defaults["classifier_steps"], defaults["seed"]) == (2000, 800, 0)
