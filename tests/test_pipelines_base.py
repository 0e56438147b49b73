# Made from nbs/50_base.ipynb by `pmd-dev tests`. Edit the notebook.
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver_moe_diffusion.compat import OutOfMemory
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM, NoiseStream
from perceiver_moe_diffusion.pipelines.base import Pipeline, SamplingPipeline, in_portions, portions

NAMES = ["cat", "dog", "owl"]


def three_classes():
    "A model of three classes."
    model = nn.Linear(2, 3)
    model.num_classes = 3
    return model


def test_a_pipeline_is_where_its_model_is():
    pipeline = Pipeline(three_classes(), NAMES)
    assert pipeline.device == torch.device("cpu") and pipeline.dtype == torch.float32
    assert pipeline.to("meta") is pipeline and pipeline.device.type == "meta"
    assert pipeline.labels([1, 2]).device.type == "meta"
    pipeline = Pipeline(three_classes().double(), NAMES)
    assert pipeline.dtype == torch.float64


def test_a_model_in_a_pipeline_is_for_use_and_not_for_training():
    model = three_classes().train()
    assert Pipeline(model, NAMES).model is model and not model.training


@pytest.mark.parametrize("device", ["gpu", "tpu:0", 3.5, "cuda:99", None, ""])
def test_a_device_that_is_not_there_is_refused(device):
    pipeline = Pipeline(three_classes(), NAMES)
    with pytest.raises(UserError, match="device=.*allowed: auto, .*cpu"):
        pipeline.to(device)
    assert pipeline.device.type == "cpu", "and the model stays where it was"


@pytest.mark.parametrize("labels", [
    2, [2], (2,), torch.tensor(2), torch.tensor([[2]]), torch.tensor([2]).byte(), torch.tensor([2]).short(), np.int8(2),
    np.array([2], dtype=np.uint64), [np.int16(2)], "owl", ["owl"], np.array(["owl"])])
def test_labels_may_be_given_in_any_usual_way(labels):
    assert_close(Pipeline(three_classes(), NAMES).labels(labels), torch.tensor([2]))


@pytest.mark.parametrize("label", [3, -1, 0.5, [0, 3], "bird", None, [], float("nan"), True, 2**70, [[0], [1, 2]]])
def test_a_label_that_the_model_lacks_is_refused(label):
    with pytest.raises(UserError, match=r"label=.*whole numbers from 0 to 2 \(cat, dog, owl\)"):
        Pipeline(three_classes(), NAMES).labels(label)


def test_a_name_for_each_class():
    Pipeline(three_classes(), ["a", "b", "c"]).check()
    with pytest.raises(UserError, match="2 names for 3 classes"):
        Pipeline(three_classes(), ["a", "b"]).check()


def sampling():
    return SamplingPipeline(three_classes(), Diffusion(100), DDIM(steps=5), NAMES)


def draws_at_most(limit: int, asked: list[int]) -> Callable[[slice], torch.Tensor]:
    "Draws image i as the number i; more than `limit` at a time are more than any machine has memory for."
    def draw(part):
        asked.append(part.stop - part.start)
        if asked[-1] > limit:
            torch.empty(2**60)
        return torch.arange(part.start, part.stop)
    return draw


def test_a_portion_that_does_not_fit_is_halved_and_every_image_is_drawn_once():
    asked: list[int] = []
    drawn = torch.cat([images for _, images in in_portions(11, 8, draws_at_most(3, asked))])
    assert drawn.tolist() == list(range(11)) and asked == [8, 4, 2, 2, 2, 2, 2, 1], "and no size is tried twice in vain"


def test_where_one_image_does_not_fit_that_is_said():
    with pytest.raises(OutOfMemory, match="not enough memory for one image at a time .batch_size=1.: take a sm"):
        list(in_portions(5, 4, draws_at_most(0, [])))


def test_other_errors_are_not_tried_again():
    def broken(part):
        raise RuntimeError("sizes do not match")
    with pytest.raises(RuntimeError, match="sizes do not match"):
        list(in_portions(5, 4, broken))


@pytest.mark.parametrize("changes, message", [
    (dict(foo=1), "foo for the sampler DDIM is not possible; allowed: clip, eta"),
    (dict(steps=0), "steps=0"), (dict(steps=101), "steps=101"),
    (dict(eta=2), "eta=2"), (dict(eta=float("nan")), "eta=nan"),
    (dict(guidance_scale=float("nan")), "guidance_scale=nan"), (dict(guidance_scale=-1.0), "guidance_scale=-1"),
    (dict(steps=True), "steps=True"), (dict(steps="4"), "steps=4"), (dict(steps=np.float32(4)), "steps=4.0"),
    (dict(steps=torch.tensor([4])), "steps="), (dict(guidance_scale="2"), "guidance_scale=2"),
    (dict(guidance_scale=None), "guidance_scale=None"), (dict(guidance_scale=[]), "guidance_scale"),
    (dict(guidance_scale=[1, float("inf")]), "guidance_scale=inf"), (dict(guidance_scale=[[1], [2]]), "guidance_scale"),
    (dict(guidance_scale=["a", 1]), "guidance_scale=a"), (dict(guidance_scale=torch.ones(2, 1)), "guidance_scale"),
    (dict(guidance_scale=torch.tensor([True])), "guidance_scale=True"), (dict(guidance_scale={1: 2}), "guidance_scale"),
    (dict(guidance_interval=torch.tensor(3)), "guidance_interval=3"),
    (dict(guidance_interval=3), "guidance_interval=3"), (dict(guidance_interval=[1, 2, 3]), "guidance_interval"),
    (dict(guidance_interval=[2, 1]), "guidance_interval"), (dict(guidance_interval=[0, "1"]), "guidance_interval"),
    (dict(guidance_interval=[float("nan"), 1]), "guidance_interval"), (dict(clip="no"), "clip=no"),
])
def test_a_setting_that_cannot_work_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        sampling().settings(**changes)


def test_settings_are_for_one_call():
    pipeline = sampling()
    assert pipeline.settings(steps=7).steps == 7 and pipeline.settings().steps == pipeline.sampler.steps == 5


@pytest.mark.parametrize("seed", [-1, 0.5, True, None, "1", float("nan")])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UserError, match="seed=.*a whole number, 0 or more"):
        sampling().seeds(seed, 2)


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.uint64, torch.tensor])
def test_numbers_of_numpy_and_tensors_are_numbers(kind):
    pipeline = sampling()
    assert pipeline.seeds(kind(7), 2) == [(7, 0), (7, 1)] and type(pipeline.seeds(kind(7), 2)[0][0]) is int
    assert portions(5, kind(3)) == portions(5, 3)
    settings = pipeline.settings(steps=kind(4), guidance_scale=kind(3), eta=kind(1))
    assert settings == DDIM(steps=4, guidance_scale=3, eta=1) and type(settings.steps) is int


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, torch.tensor])
def test_scales_of_every_width_are_numbers(kind):
    settings = sampling().settings(guidance_scale=kind(2.5), guidance_rescale=kind(0.5), eta=kind(0.25),
                                   guidance_interval=(kind(0.5), kind(4.0)))
    assert settings == DDIM(5, 2.5, 0.5, [0.5, 4.0], eta=0.25) and type(settings.guidance_scale) is float


@pytest.mark.parametrize("scales", [
    [1, 2.5], (1, 2.5), np.array([1, 2.5]), np.float32([1, 2.5]), torch.tensor([1, 2.5]),
    [np.float32(1), torch.tensor(2.5)]], ids=repr)
def test_a_list_of_scales_is_one_for_each_image(scales):
    scale = sampling().settings(guidance_scale=scales).guidance_scale
    assert torch.is_tensor(scale) and scale.tolist() == [1, 2.5]


def test_no_two_images_share_their_noise():
    pairs = [pair for seed in range(3) for pair in sampling().seeds(seed, 4)]
    noise = NoiseStream(pairs, (1, 2, 2)).draw(1)[0].flatten(1)
    assert len(set(pairs)) == len(noise.unique(dim=0)) == 12


def test_portions_cover_everything_once():
    assert [list(range(7))[part] for part in portions(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    for size in (0, -1, 1.5):
        with pytest.raises(UserError, match="batch_size="):
            portions(7, size)
    with pytest.raises(UserError, match="no examples"):
        portions(0, 3)
