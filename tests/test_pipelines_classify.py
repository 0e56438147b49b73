# Made from nbs/52_classify.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.models.adapters import ImagePreprocessor
from perceiver_moe_diffusion.models.classifier import Classifier
from perceiver_moe_diffusion.models.modalities import MultiModalPreprocessor, TextPreprocessor
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.classify import ClassifierPipeline, move_inputs, split_batches
from perceiver_moe_diffusion.tools.testing import OneDevice


def test_inputs_of_one_modality_are_split_in_order():
    images = torch.arange(7.0).view(7, 1, 1, 1)
    parts = split_batches(images, 3)
    assert [len(part) for part in parts] == [3, 3, 1] and torch.equal(torch.cat(parts), images)


def test_modalities_are_split_together():
    inputs = {"image": torch.arange(5.0).view(5, 1), "text": 10 * torch.arange(5)}
    parts = split_batches(inputs, 2)
    assert [list(part) for part in parts] == [["image", "text"]] * 3
    assert [len(part["text"]) for part in parts] == [2, 2, 1]
    for part in parts:
        assert torch.equal(10 * part["image"].flatten().long(), part["text"]), "an image keeps its own text"
    for name, value in inputs.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value)


@pytest.mark.parametrize("inputs", [torch.zeros(3, 2), {"a": torch.zeros(3, 2), "b": torch.zeros(3)}])
def test_inputs_are_moved_whatever_they_are(inputs):
    moved = move_inputs(inputs, torch.device("meta"))
    assert {x.device.type for x in tree_leaves(moved)} == {"meta"} and type(moved) is type(inputs)
    assert {x.device.type for x in tree_leaves(inputs)} == {"cpu"}, "what was given is left as it was"


NAMES = [str(i) for i in range(10)]


def small(seed=0, **options):
    "A very small classifier of digits whose latents are mixtures of experts; the same weights for the same seed."
    torch.manual_seed(seed)
    moe = partial(build_moe, num_experts=4, top_k=2)
    core = partial(PerceiverIO, dim=32, num_latents=8, depth=1, num_heads=2, feed_forward=moe)
    options = {"preprocessor": partial(ImagePreprocessor, patch_size=2), **options}
    return Classifier((1, 8, 8), 10, core=core, query_dim=32, **options)


def test_inputs_on_the_cpu_are_classified_where_the_model_is():
    pipeline = ClassifierPipeline(small(), NAMES).to("meta")
    with OneDevice():
        probs = pipeline.predict(torch.zeros(5, 1, 8, 8), batch_size=2)
    assert probs.device.type == "meta" and probs.shape == (5, 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card")
def test_a_graphics_card_finds_the_same_probabilities():
    pipeline, images = ClassifierPipeline(small(), NAMES), digits().inputs(slice(0, 20))
    expected, found = pipeline.predict(images), pipeline.to("cuda").predict(images)
    assert found.is_cuda and (found.cpu() - expected).abs().mean() < 1e-3


def test_several_modalities_give_the_same_in_any_portions():
    both = lambda shape: MultiModalPreprocessor({"image": ImagePreprocessor(shape), "text": TextPreprocessor(8, 16)})
    pipeline = ClassifierPipeline(small(preprocessor=both), NAMES)
    text = TextPreprocessor(8).encode(["a", "ab", "", "abc", "b"])
    inputs = {"image": digits().inputs(slice(0, 5)), "text": text}
    whole = pipeline.predict(inputs)
    assert whole.shape == (5, 10)
    assert_close(pipeline.predict(inputs, batch_size=2), whole)


def test_predictions_are_probabilities_without_a_gradient_and_repeatable():
    pipeline, images = ClassifierPipeline(small().train(), NAMES), digits().inputs(slice(0, 20))
    probs = pipeline.predict(images)
    assert not probs.requires_grad and torch.equal(probs, pipeline.predict(images))
    assert bool((probs >= 0).all())
    assert_close(probs.sum(dim=-1), torch.ones(20))
    assert_close(probs, pipeline.model(images).softmax(dim=-1).detach())


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_a_portion_of_nothing_is_refused(batch_size):
    with pytest.raises(UserError, match=f"batch_size={batch_size} is not possible"):
        ClassifierPipeline(small(), NAMES).predict(torch.zeros(3, 1, 8, 8), batch_size)


def test_no_inputs_are_refused():
    with pytest.raises(UserError, match="no examples"):
        ClassifierPipeline(small(), NAMES).predict(torch.zeros(0, 1, 8, 8))
