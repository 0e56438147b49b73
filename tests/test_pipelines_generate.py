# Made from nbs/51_generate.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch
from dataclasses import replace
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.sampling import DDIM
from perceiver_moe_diffusion.diffusion.sampling import DDPM
from perceiver_moe_diffusion.diffusion.sampling import DPMSolverPP
from perceiver_moe_diffusion.pipelines.files import LOADABLE
from perceiver_moe_diffusion.pipelines.files import from_plain
from perceiver_moe_diffusion.pipelines.files import to_plain
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline
from torch.testing import assert_close


PACKAGE = "perceiver_moe_diffusion."
SETTINGS = {
    "model": {
        "_target_": PACKAGE + "models.denoiser.PerceiverDenoiser",
        "input_shape": [1, 8, 8],
        "num_classes": 10,
        "condition_dim": 32,
        "adapter": {
            "_target_": PACKAGE + "models.adapters.ConvAdapter",
            "_partial_": True,
            "dim": 32,
            "stem_channels": 16,
        },
        "query": {"_target_": PACKAGE + "models.adapters.InputQuery", "_partial_": True},
        "core": {
            "_target_": PACKAGE + "models.perceiver.PerceiverIO",
            "_partial_": True,
            "dim": 32,
            "num_latents": 4,
            "depth": 1,
            "num_heads": 2,
            "feed_forward": {
                "_target_": PACKAGE + "models.moe.build_moe",
                "_partial_": True,
                "num_experts": 4,
                "top_k": 2,
                "router": {"_target_": PACKAGE + "models.moe.TopKRouter", "_partial_": True},
                "experts": [{"_target_": PACKAGE + "models.moe.MLPExpert", "_partial_": True, "mult": 2}],
            },
        },
    },
    "diffusion": {
        "_target_": PACKAGE + "diffusion.process.Diffusion",
        "timesteps": 100,
        "schedule": {"_target_": PACKAGE + "diffusion.process.cosine", "_partial_": True},
    },
    "sampler": {"_target_": PACKAGE + "diffusion.sampling.DPMSolverPP", "steps": 4, "guidance_scale": 2.0},
}
NAMES = [str(i) for i in range(10)]


def parts(settings=SETTINGS, extra=()):
    "Denoiser, diffusion and sampler with fresh weights."
    torch.manual_seed(0)
    return [from_plain(to_plain(settings[name]), (*LOADABLE, *extra)) for name in ("model", "diffusion", "sampler")]


@pytest.fixture(scope="module")
def drawing():
    "A pipeline with fresh weights: enough for everything but beauty."
    return GeneratorPipeline(*parts(), NAMES)


@pytest.mark.parametrize("sampler", [DDPM(steps=5), DDIM(steps=5, eta=1.0), DPMSolverPP(steps=5)])
def test_an_image_does_not_depend_on_its_batch(drawing, sampler):
    pipeline = GeneratorPipeline(drawing.model, drawing.diffusion, sampler, NAMES)
    labels = [3, 1, 4, 1, 5]
    together = pipeline.sample(labels, seed=7)
    assert_close(pipeline.sample(labels, seed=7, batch_size=2), together, atol=1e-4, rtol=0)
    assert_close(pipeline.sample(labels[:1], seed=7), together[:1], atol=1e-4, rtol=0)
    assert not torch.equal(together[1], together[3]), "the same label twice is not the same image"


def test_the_seed_decides(drawing):
    first = drawing.sample([2, 2], seed=1)
    assert torch.equal(first, drawing.sample([2, 2], seed=1))
    assert not torch.equal(first, drawing.sample([2, 2], seed=2))
    assert first.shape == (2, 1, 8, 8) and bool((first.abs() <= 1).all())


def test_drawing_leaves_the_global_random_numbers_alone(drawing):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawing.sample([0, 1])
    assert torch.equal(torch.rand(3), expected)


def test_a_trajectory_ends_in_the_image_that_sample_draws(drawing):
    steps = drawing.trajectory([4, 5], seed=3, steps=6)
    assert [step.t_next for step in steps][-1] == -1 and len(steps) == 6
    assert torch.equal(steps[-1].x_next, drawing.sample([4, 5], seed=3, steps=6))


def test_a_guidance_scale_for_each_image(drawing):
    scales = torch.tensor([0.5, 2.0, 4.0])
    drawn = drawing.sample([6, 7, 8], guidance_scale=scales, batch_size=2)
    for i, scale in enumerate(scales.tolist()):
        assert_close(drawn[i], drawing.sample([6, 7, 8], guidance_scale=scale)[i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("labels", [10, -1, 3.0, True, [], [3, 10], [0.5], "three", None, [[3], [1, 2]], float("nan")])
def test_a_label_outside_the_classes_is_refused(drawing, labels):
    with pytest.raises(UserError, match="whole numbers from 0 to 9"):
        drawing.sample(labels)


@pytest.mark.parametrize("changes, said", [
    ({"guidance_scale": float("nan")}, "guidance_scale=nan"), ({"guidance_scale": -1}, "guidance_scale=-1"),
    ({"guidance_scale": torch.tensor([1.0, float("inf")])}, "guidance_scale=inf"), ({"guidance_scale": torch.ones(3)}, "another length"),
    ({"guidance_rescale": 1.5}, "guidance_rescale=1.5"), ({"guidance_interval": [2, 1]}, "guidance_interval"),
    ({"steps": 0}, "steps=0"), ({"steps": -1}, "steps=-1"), ({"steps": 101}, "steps=101"), ({"steps": 2.5}, "steps=2.5"),
    ({"temperature": 1}, "temperature"), ({"eta": 1}, "eta"), ({"seed": -1}, "seed=-1"), ({"seed": 0.5}, "seed=0.5")])
def test_a_setting_that_cannot_work_is_refused(drawing, changes, said):
    with pytest.raises(UserError) as refused:
        drawing.sample([1, 2], **changes)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_refused_setting_changes_nothing(drawing):
    before = replace(drawing.sampler)
    with pytest.raises(UserError):
        drawing.settings(guidance_scale=5.0, steps=0)
    assert drawing.settings(guidance_scale=5.0).guidance_scale == 5.0
    assert drawing.sampler == before
