# Made from nbs/26_classifier.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import Batch
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.models.adapters import ConvPreprocessor, ImagePreprocessor
from perceiver_moe_diffusion.models.classifier import Classifier
from perceiver_moe_diffusion.models.modalities import MultiModalPreprocessor, TextPreprocessor
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.classify import ClassifierPipeline
from perceiver_moe_diffusion.training.loop import EMA, TrainerData
from perceiver_moe_diffusion.training.tasks import ClassifierModule


def small(**options):
    "A very small classifier of digits; always with the same weights."
    torch.manual_seed(0)
    moe = partial(build_moe, num_experts=4, top_k=2)
    sizes = {"dim": 32, "num_latents": 8, "depth": 1, "num_heads": 2, "feed_forward": moe}
    core = partial(PerceiverIO, **{**sizes, **options.pop("core", {})})
    return Classifier((1, 8, 8), 10, core=core, query_dim=32, **options)


def test_the_classifier_is_a_core_with_one_query():
    net, images = small(), digits().inputs(slice(0, 5))
    logits, routings = net(images, return_routing=True)
    tokens = net.preprocess(images)
    assert_close(logits, net.core(tokens, net.query.query.expand(5, 1, -1)).output[:, 0])
    assert logits.shape == (5, 10) and [len(r.expert_ids) for r in routings] == [5 * 8, 5 * 1]


def image_and_text(shape):
    return MultiModalPreprocessor({"image": ImagePreprocessor(shape), "text": TextPreprocessor(8, 16)})


@pytest.mark.parametrize(
    "preprocessor",
    [partial(ImagePreprocessor, patch_size=2), partial(ConvPreprocessor, channels=(16, 24)), image_and_text],
)
def test_any_preprocessor_will_do(preprocessor):
    net, images = small(preprocessor=preprocessor), digits().inputs(slice(0, 4))
    text = TextPreprocessor(8).encode(["a", "ab", "", "abc"])
    inputs = {"image": images, "text": text} if isinstance(net.preprocess, MultiModalPreprocessor) else images
    net.eval()
    logits = net(inputs)
    logits.sum().backward()
    assert logits.shape == (4, 10) and net.query.query.grad.abs().max() > 0
    one = {name: value[1:2] for name, value in inputs.items()} if isinstance(inputs, dict) else inputs[1:2]
    assert_close(net(one), logits[1:2], msg="in evaluation, samples do not see each other")


def test_one_class_is_no_question():
    with pytest.raises(UserError, match="num_classes=1"):
        Classifier((1, 8, 8), 1)


def test_what_is_padding_says_nothing_about_the_class():
    net = Classifier((8,), 3, preprocessor=lambda shape: TextPreprocessor(*shape, dim=16), query_dim=16).eval()
    ids = net.preprocess.encode(["abc", "abcdefgh"])
    with torch.no_grad():
        before = net(ids)
        net.preprocess.byte.weight[TextPreprocessor.PAD] += 100
    assert_close(net(ids), before)


@pytest.mark.parametrize("inputs, said", [
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "torch.uint8"), (torch.zeros(1, 8, 8), "images of shape (1, 8, 8)"),
    (torch.zeros(2, 1, 8, 8).double(), "torch.float64"), (np.zeros((2, 1, 8, 8), np.float32), "images as ndarray"),
    (torch.zeros(2, 3, 8, 8), "images of shape (2, 3, 8, 8)"), (None, "images as NoneType")],
    ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_batch_of_images_is_refused_with_one_sentence(inputs, said):
    for preprocessor in (partial(ImagePreprocessor, patch_size=2), partial(ConvPreprocessor, channels=(16, 24))):
        with pytest.raises(UserError, match="is not possible; allowed: a tensor of shape") as error:
            small(preprocessor=preprocessor)(inputs)
        assert said in str(error.value)


def fit(net, steps=150, data=None, **settings):
    "Train a classifier on the digits; the trainer."
    module = ClassifierModule(net, partial(torch.optim.AdamW, lr=3e-3), warmup_steps=10, **settings)
    quietly = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(max_steps=steps, accelerator="cpu", devices=1, callbacks=[EMA(0.98)], **quietly,
                      num_sanity_val_steps=0, val_check_interval=steps, gradient_clip_val=1.0)
    trainer.fit(module, TrainerData(data or DataModule(digits, batch_size=64)))
    return trainer


def test_probabilities_do_not_depend_on_the_portions_and_add_up_to_one():
    net, images = small(), digits().inputs(slice(0, 20))
    pipeline = ClassifierPipeline(net, [str(i) for i in range(10)])
    whole = pipeline.predict(images)
    assert not net.training and whole.shape == (20, 10)
    assert_close(whole.sum(-1), torch.ones(20))
    assert_close(pipeline.predict(images, batch_size=3), whole)


def test_a_name_too_few_is_refused():
    with pytest.raises(UserError, match="9 names for 10 classes"):
        ClassifierPipeline(small(), ["x"] * 9).check()


def test_training_learns_the_digits_and_reports_what_was_right():
    trainer = fit(small(preprocessor=partial(ImagePreprocessor, patch_size=2)), 60, label_smoothing=0.1)
    assert trainer.callback_metrics["val_accuracy"] > 0.3 and trainer.callback_metrics["balance_loss"] > 0.5


def test_smoothing_is_for_training_only_and_must_be_a_share():
    module = ClassifierModule(small(), torch.optim.AdamW, label_smoothing=0.2)
    batch = Batch(digits().inputs(slice(0, 8)), digits().labels[:8], 0)
    shown = {}
    module.log_dict = lambda values, **how: shown.update(values)
    module.validation_step(batch, 0)
    logits = module.model(batch.input)
    assert_close(shown["val_loss"], F.cross_entropy(logits, batch.label))
    assert_close(module.loss(batch, 0)[0], F.cross_entropy(logits, batch.label, label_smoothing=0.2))
    with pytest.raises(UserError, match="label_smoothing=1"):
        ClassifierModule(small(), torch.optim.AdamW, label_smoothing=1)
