# Made from nbs/51_generate.ipynb by `pmd-dev tests`. Edit the notebook.
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM, DDPM, DPMSolverPP, NoiseStream
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline
from perceiver_moe_diffusion.tools.testing import OneDevice

NAMES = [str(i) for i in range(10)]


def parts():
    "Denoiser, diffusion and sampler; always with the same fresh weights."
    torch.manual_seed(0)
    moe = partial(build_moe, num_experts=4, top_k=2)
    core = partial(PerceiverIO, dim=32, num_latents=4, depth=1, num_heads=2, feed_forward=moe)
    adapter = partial(ConvAdapter, dim=32, stem_channels=16)
    model = PerceiverDenoiser((1, 8, 8), 10, adapter=adapter, core=core, condition_dim=32)
    return model, Diffusion(timesteps=100), DPMSolverPP(steps=4, guidance_scale=2.0)


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
    for same in (scales.tolist(), tuple(scales.tolist()), scales.numpy(), scales.double(), [*map(np.float16, scales)]):
        assert torch.equal(drawing.sample([6, 7, 8], guidance_scale=same, batch_size=2), drawn)
        assert drawing.trajectory([6, 7, 8], guidance_scale=same)[-1].x_next.shape == drawn.shape
    for i, scale in enumerate(scales.tolist()):
        assert_close(drawn[i], drawing.sample([6, 7, 8], guidance_scale=scale)[i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64, torch.tensor])
def test_numbers_of_numpy_and_tensors_draw_the_same_image(drawing, kind):
    plain = drawing.sample([3, 1], seed=1, steps=4, guidance_scale=2, batch_size=1)
    labels = [kind(3), kind(1)]
    same = drawing.sample(labels, seed=kind(1), steps=kind(4), guidance_scale=kind(2), batch_size=kind(1))
    assert torch.equal(same, plain)
    assert torch.equal(drawing.sample(np.array(labels), seed=1, steps=4, batch_size=1), plain)


def test_classes_are_drawn_by_name():
    model, diffusion, sampler = parts()
    pipeline = GeneratorPipeline(model, diffusion, sampler, ["cat", "dog", *NAMES[2:]])
    for names, labels in (("dog", 1), (["dog", "cat"], [1, 0]), (np.array(["dog", "7"]), [1, 7])):
        assert torch.equal(pipeline.sample(names), pipeline.sample(labels))
        assert torch.equal(pipeline.trajectory(names)[-1].x_next, pipeline.sample(labels))
    with pytest.raises(UserError, match=r"label=dgo .*Did you mean dog\?"):
        pipeline.steps(["cat", "dgo"])


def test_portions_are_the_images_of_sample_and_do_not_stay_in_memory(drawing):
    labels, alive, together = torch.arange(10).repeat(3), [], drawing.sample(torch.arange(10).repeat(3), seed=4)
    found: list[int] = []
    for numbers, images in drawing.sample_in_portions(labels, seed=4, batch_size=7):
        assert_close(images, together[numbers], atol=1e-4, rtol=0)
        alive.append(weakref.ref(images))
        assert len(images) <= 7 and sum(one() is not None for one in alive) == 1
        found += numbers
    assert found == list(range(30))


def test_some_of_the_images_are_the_same_images(drawing):
    labels, chosen = [1, 2, 3, 4, 5], [4, 0, 2]
    scales = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])
    (numbers, images), = drawing.sample_in_portions(labels, seed=4, numbers=chosen, guidance_scale=scales)
    together = drawing.sample(labels, seed=4, guidance_scale=scales)
    assert numbers == chosen and assert_close(images, together[chosen], atol=1e-4, rtol=0) is None


def test_mistakes_are_told_before_the_first_portion_is_asked_for(drawing):
    for wrong in ({"labels": 12}, {"labels": 1, "steps": 0}, {"labels": 1, "batch_size": 0}, {"labels": 1, "seed": -1}):
        with pytest.raises(UserError):
            drawing.sample_in_portions(**wrong)


def test_the_bar_counts_images_over_all_portions_and_tells_the_time_left(drawing, capsys):
    drawing.sample([1] * 6, batch_size=4, progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown and "6/6 images [" in shown and "<00:00]" in shown
    drawing.sample([1])
    assert capsys.readouterr().err == "", "who did not ask for it sees none"


SHORT = """
import resource, torch
from perceiver_moe_diffusion.pipelines.files import from_pretrained
# oneDNN maps memory for each new shape: a limit on addresses refuses it for ever, where a real lack of memory would end
torch.backends.mkldnn.enabled = False
pipeline, labels = from_pretrained("digits"), torch.arange(10).repeat(200)
pipeline.sample([1], steps=2)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20, resource.RLIM_INFINITY))
sizes = [len(numbers) for numbers, _ in pipeline.sample_in_portions(labels, steps=2, batch_size=2000)]
print(sizes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit on memory is Linux's")
def test_where_the_memory_is_short_fewer_images_are_drawn_at_a_time():
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=False)
    sizes = [int(size) for size in done.stdout.strip("[]\n").split(",") if size]
    assert sum(sizes) == 2000 and 1 < max(sizes) < 2000, done.stderr


SAMPLERS = pytest.mark.parametrize("sampler", [DDPM(steps=4), DDIM(steps=4, eta=1.0), DPMSolverPP(steps=4)],
                                   ids=lambda sampler: type(sampler).__name__)


@SAMPLERS
def test_sampling_is_where_the_model_is_and_never_mixes_devices(sampler):
    pipeline = GeneratorPipeline(*parts()[:2], sampler, NAMES).to("meta")
    with OneDevice():
        images = pipeline.sample([3, 1, 4], batch_size=2, guidance_rescale=0.5)
        own_scales = pipeline.sample([3, 1, 4], guidance_scale=torch.tensor([0.0, 1.0, 2.0]), batch_size=2)
        steps = list(pipeline.steps(torch.tensor([3, 1])))
    assert images.shape == own_scales.shape == (3, 1, 8, 8) and len(steps) == 4
    made = [images, own_scales, *(x for step in steps for x in (step.x, step.x0, step.eps, step.x_next))]
    assert {x.device.type for x in made} == {"meta"} and steps[-1].x_next.shape == (2, 1, 8, 8)


@SAMPLERS
def test_on_the_cpu_the_same_call_gives_the_same_images(sampler):
    first, again = (GeneratorPipeline(*parts()[:2], sampler, NAMES).to("cpu").sample([3, 1], seed=5) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
@SAMPLERS
def test_a_graphics_card_gets_the_same_noise_and_draws_the_same_images(sampler, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions in float32, as on the CPU
    pipeline = GeneratorPipeline(*parts()[:2], sampler, NAMES)
    on_cpu, seeds = pipeline.trajectory([3, 1], seed=5), pipeline.seeds(5, 2)
    pipeline.to("cuda")
    assert torch.equal(NoiseStream(seeds, (1, 8, 8), "cuda").draw(2).cpu(), NoiseStream(seeds, (1, 8, 8)).draw(2))
    with OneDevice():
        on_cuda = pipeline.trajectory([3, 1], seed=5)
    assert torch.equal(on_cuda[0].x.cpu(), on_cpu[0].x), "the same noise to start from, to the bit"
    assert on_cuda[-1].x_next.is_cuda and on_cuda[-1].x_next.shape == (2, 1, 8, 8)
    # in the mean: where two experts are almost equally good for a token, rounding may choose the other
    assert (on_cuda[-1].x_next.cpu() - on_cpu[-1].x_next).abs().mean() < 1e-3


for sampler in (DDPM(steps=4), DDIM(steps=4, eta=1.0), DPMSolverPP(steps=4)):
    test_sampling_is_where_the_model_is_and_never_mixes_devices(sampler)


@pytest.mark.parametrize("labels", [10, -1, 3.0, True, [], [3, 10], [0.5], "three", None, [[3], [1, 2]], float("nan")])
def test_a_label_outside_the_classes_is_refused(drawing, labels):
    with pytest.raises(UserError, match="whole numbers from 0 to 9"):
        drawing.sample(labels)


@pytest.mark.parametrize("changes, said", [
    ({"guidance_scale": float("nan")}, "guidance_scale=nan"), ({"guidance_scale": -1}, "guidance_scale=-1"),
    ({"guidance_scale": torch.tensor([1.0, float("inf")])}, "guidance_scale=inf"),
    ({"guidance_scale": torch.ones(3)}, "another length"),
    ({"guidance_rescale": 1.5}, "guidance_rescale=1.5"), ({"guidance_interval": [2, 1]}, "guidance_interval"),
    ({"steps": 0}, "steps=0"), ({"steps": -1}, "steps=-1"), ({"steps": 101}, "steps=101"),
    ({"steps": 2.5}, "steps=2.5"), ({"temperature": 1}, "temperature"), ({"eta": 1}, "eta"),
    ({"seed": -1}, "seed=-1"), ({"seed": 0.5}, "seed=0.5"),
    ({"batch_size": 0}, "batch_size=0")])
def test_a_setting_that_cannot_work_is_refused(drawing, changes, said):
    with pytest.raises(UserError) as refused:
        drawing.sample([1, 2], **changes)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"temperature": 1}, {"seed": -1}])
def test_a_mistake_is_told_before_the_first_step(drawing, changes):
    with pytest.raises(UserError):
        drawing.steps([1, 2], **changes)  # and no step is asked for


def test_a_refused_setting_changes_nothing(drawing):
    before = replace(drawing.sampler)
    with pytest.raises(UserError):
        drawing.settings(guidance_scale=5.0, steps=0)
    assert drawing.settings(guidance_scale=5.0).guidance_scale == 5.0
    assert drawing.sampler == before


def test_parts_of_another_kind_are_refused():
    model, diffusion, sampler = parts()
    GeneratorPipeline(model, diffusion, sampler, NAMES).check()
    for other in ((sampler, sampler, NAMES), (diffusion, diffusion, NAMES), (diffusion, sampler, NAMES[1:])):
        with pytest.raises(UserError, match="a pipeline of other parts is not possible"):
            GeneratorPipeline(model, *other).check()
    with pytest.raises(UserError, match="steps=101"):
        GeneratorPipeline(model, diffusion, DDIM(steps=101), NAMES).check()
