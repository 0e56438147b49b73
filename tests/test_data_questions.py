# Made from nbs/44_questions.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import StepLoader, split_indices
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.data.questions import (
    ANSWERS,
    QUESTIONS,
    _joint_probability,
    best_accuracy_without,
    digit_questions,
)
from perceiver_moe_diffusion.data.texts import decode_text, docstrings
from perceiver_moe_diffusion.models.adapters import ImagePreprocessor
from perceiver_moe_diffusion.models.modalities import ImageAndText, text_preprocessor


def test_every_answer_is_right_and_balanced_in_every_part():
    data = digit_questions(training=100, validation=20, test=40)
    digit = digits().labels[data.pairs]
    train, val, test = split_indices(data, 0.1, 0.2, seed=3)
    assert [len(part) for part in (train, val, test)] == [700, 140, 280]
    for number, question in enumerate(QUESTIONS):
        for part in (train, val, test):
            mine = part[data.question[part] == number]
            assert torch.equal(data.labels[mine], question.answer(*digit[mine].unbind(dim=1)))
            counts = data.labels[mine].bincount(minlength=len(ANSWERS))
            assert len(set(counts[counts > 0].tolist())) == 1, "each answer equally often"
            assert decode_text(data.ids[number]) == question.text


def test_no_image_is_in_two_parts():
    data = digit_questions(training=400)
    parts = [set(data.pairs[part].flatten().tolist()) for part in split_indices(data, 0.1, 0.2, seed=0)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert all(len(part) > 100 for part in parts)


def test_the_image_is_the_two_digits_side_by_side():
    data = digit_questions(training=20, validation=20, test=20)
    image = data.inputs(torch.tensor([7, 3]))["image"]
    assert image.shape == (2, 1, 8, 16) and data.shape == {"image": (1, 8, 16), "text": (24,)}
    assert_close(image[0, :, :, 8:], digits().inputs(data.pairs[7, 1:])[0])
    assert_close(image[1, :, :, :8], digits().inputs(data.pairs[3, :1])[0])


def test_the_best_without_one_half_is_what_counting_gives():
    best = best_accuracy_without()
    assert best["image"] == pytest.approx((3 / 2 + 4 / 10) / 7)
    data = digit_questions(training=20_000, validation=20, test=20)
    train, _, _ = split_indices(data, 0.1, 0.2, seed=0)
    pair = digits().labels[data.pairs[train]] @ torch.tensor([10, 1])
    counts = torch.bincount(pair * len(ANSWERS) + data.labels[train], minlength=100 * len(ANSWERS)).view(100, -1)
    assert counts.amax(dim=1).sum() / len(train) == pytest.approx(best["text"], abs=0.01)


def test_the_pairs_of_digits_are_as_frequent_as_the_table_of_probabilities_says():
    share = _joint_probability(QUESTIONS)
    assert share.sum() == pytest.approx(1)
    data = digit_questions(training=20_000, validation=20, test=20)
    train, _, _ = split_indices(data, 0.1, 0.2, seed=0)
    pair = digits().labels[data.pairs[train]] @ torch.tensor([10, 1])
    counted = torch.bincount(data.question[train] * 100 + pair, minlength=700).view(7, 100) / len(train)
    assert (counted - share.sum(dim=2)).abs().max() < 0.001


def test_pairs_depend_on_the_seed_alone():
    a, b, other = (digit_questions(training=20, validation=20, test=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.pairs, b.pairs) and not torch.equal(a.pairs, other.pairs)


def test_mistakes_with_questions():
    with pytest.raises(UserError, match="15 pairs for 'is the left one larger.' .* multiple of 2"):
        digit_questions(training=15)
    with pytest.raises(UserError, match="max_length=10 .* 24 or more"):
        digit_questions(max_length=10)


def test_texts_and_questions_come_in_batches_like_images():
    texts = DataModule(lambda root: docstrings(packages={"json": ["json"], "csv": ["csv"]}), shots=5)
    loader = StepLoader(texts.examples, texts.train_index, 6, seed=0)
    assert loader.batch(3).input.shape == (6, 128) and torch.equal(loader.batch(3).input, loader.batch(3).input)
    assert texts.input_shape == (128,) and texts.split("train")[1].bincount().tolist() == [5, 5]
    asked = DataModule(lambda root: digit_questions(training=20, validation=20, test=20))
    whole, half = (StepLoader(asked.examples, asked.train_index, 8, 0).batch(2, *share) for share in ((0, 1), (1, 2)))
    assert {name: tuple(part.shape) for name, part in whole.input.items()} == {"image": (8, 1, 8, 16), "text": (8, 24)}
    assert all(torch.equal(half.input[name], whole.input[name][4:]) for name in whole.input)
    assert asked.input_shape == {"image": (1, 8, 16), "text": (24,)} and len(asked.split("test")[0]["text"]) == 140


def test_classes_can_be_chosen_among_texts_and_answers():
    texts, questions = (DataModule(dataset) for dataset in (docstrings, digit_questions))
    few = DataModule(docstrings, classes=[4, 1])
    assert few.examples.class_names == [texts.examples.class_names[4], texts.examples.class_names[1]]
    assert len(few.examples.ids) == len(few.examples.labels)
    said, labels = few.split("test")
    whole, numbers = texts.split("test")
    assert torch.equal(said, whole[(numbers == 4) | (numbers == 1)]) and set(labels.tolist()) == {0, 1}
    yes_or_no, (asked, answers) = DataModule(digit_questions, classes=[0, 1]), questions.split("test")
    assert torch.equal(yes_or_no.split("test")[0]["image"], asked["image"][answers < 2])
    assert len(yes_or_no.examples.pixels) == len(questions.examples.pixels)


def test_what_is_not_shown_has_no_influence():
    torch.manual_seed(0)
    inputs = digit_questions(training=20, validation=20, test=20).inputs(slice(0, 6))
    patches = partial(ImagePreprocessor, patch_size=2)
    blind = ImageAndText({"image": (1, 8, 16), "text": (24,)}, patches, shown=["text"])
    tokens, mask = blind(inputs)
    assert tokens.shape[1] == 32 + 24 == mask.shape[1]
    assert not mask[:, :32].any() and torch.equal(mask[:, 32:], inputs["text"] < 256)
    _, seeing = ImageAndText({"image": (1, 8, 16), "text": (24,)}, patches)(inputs)
    assert torch.equal(seeing.sum(dim=1), 32 + (inputs["text"] < 256).sum(dim=1))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\) for model/preprocessor=text"):
        text_preprocessor((1, 8, 8))
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\) for model/preprocessor=image_and_text"):
        ImageAndText((1, 8, 8))
    with pytest.raises(UserError, match="shown=.*sound.* image, text"):
        ImageAndText({"image": (1, 8, 16), "text": (24,)}, shown=["sound"])
    with pytest.raises(UserError, match="shown="):
        ImageAndText({"image": (1, 8, 16), "text": (24,)}, shown=[])
