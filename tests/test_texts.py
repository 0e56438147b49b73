# Made from nbs/01b_texts.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import re
import sys
import torch
from functools import partial
from hydra.utils import instantiate
from perceiver_moe_diffusion.adapters import ImagePreprocessor
from perceiver_moe_diffusion.config import load_config
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data import ImageDataModule
from perceiver_moe_diffusion.data import StepLoader
from perceiver_moe_diffusion.data import digits
from perceiver_moe_diffusion.data import few
from perceiver_moe_diffusion.data import split
from perceiver_moe_diffusion.texts import ANSWERS
from perceiver_moe_diffusion.texts import ImageAndText
from perceiver_moe_diffusion.texts import LIBRARY
from perceiver_moe_diffusion.texts import QUESTIONS
from perceiver_moe_diffusion.texts import best_without
from perceiver_moe_diffusion.texts import digit_questions
from perceiver_moe_diffusion.texts import docstrings
from perceiver_moe_diffusion.texts import docstrings_of
from perceiver_moe_diffusion.texts import text_csv
from perceiver_moe_diffusion.texts import text_of
from perceiver_moe_diffusion.texts import text_preprocessor
from perceiver_moe_diffusion.texts import without_names
from torch.testing import assert_close


def texts_in(data, index=slice(None)):
    return [text_of(ids) for ids in data.ids[index]]


def test_docstrings_are_enough_for_a_hundred_of_each_class_and_never_twice():
    data = docstrings()
    train, val, test = split(data, 0.1, 0.2, seed=0)
    assert data.labels[train].bincount().min() >= 100 and len(few(train, data.labels, 100, seed=0)) == 700
    texts = texts_in(data)
    assert len(set(texts)) == len(texts), "no text can be in two parts, or have two labels"
    assert data.inputs(slice(0, 3)).dtype == torch.long and data.shape == (128,) and data.inputs().max() == 256


@pytest.mark.parametrize("max_length", [32, 128])
def test_the_pretraining_set_shares_neither_packages_nor_texts_with_the_other(max_length):
    first, second = docstrings(max_length=max_length), docstrings(packages="pretraining", apart_from="few_shot", max_length=max_length)
    assert not set(texts_in(first)) & set(texts_in(second)) and not set(first.class_names) & set(second.class_names)
    modules = [{name for names in LIBRARY[which].values() for name in names} for which in LIBRARY]
    assert not modules[0] & modules[1]
    assert set(texts_in(first)) & set(texts_in(docstrings(packages="pretraining", max_length=max_length))), "without apart_from they would"


def test_the_name_of_the_package_is_not_in_its_texts():
    data = docstrings()
    for label, name in enumerate(data.class_names):
        words = {word for text in texts_in(data, data.labels == label) for word in re.findall("[A-Za-z0-9]+", text.lower())}
        assert name not in words and len(words) > 100
    assert without_names(["The XML file, xmlns and lxml; xml_parse(XML)."], ["xml"]) == ["The file, xmlns and lxml; _parse( )."]


def test_docstrings_are_parsed_and_not_run():
    assert "Compute geohash() using" in docstrings_of("antigravity")[0]  # a module that opens a browser when it is imported
    assert "antigravity" not in sys.modules
    assert docstrings_of("bisect") and all("\n" not in text for text in docstrings_of("bisect"))


def test_packages_of_ones_own_and_mistakes():
    data = docstrings(packages={"json": ["json"], "csv": ["csv"]}, max_length=40)
    assert data.class_names == ["json", "csv"] and data.shape == (40,)
    with pytest.raises(UserError, match="packages=fewshot .* few_shot, pretraining"):
        docstrings(packages="fewshot")
    with pytest.raises(UserError, match="the class 'b' of no_such_module .* looked for in"):
        docstrings(packages={"a": ["json"], "b": ["no_such_module"]})
    with pytest.raises(UserError, match="max_length=0"):
        docstrings(max_length=0)


AG_NEWS = {"label": "class", "text": ["title", "description"], "columns": ["class", "title", "description"]}


def ag_news(folder, train='"2","A ""b""","c"\n"1","d","e"\n"2","f","g"\n', test='"1","h","i"\n'):
    "A folder as AG News is published: quoted cells and no line of names."
    (folder / "train.csv").write_text(train, encoding="utf-8")
    (folder / "test.csv").write_text(test, encoding="utf-8")
    return folder


def test_ag_news_as_it_is_published(tmp_path):
    data = text_csv(str(ag_news(tmp_path)), **AG_NEWS, class_names=["World", "Sports"], max_length=8)
    assert texts_in(data) == ['A "b" c', "d e", "f g", "h i"] and data.labels.tolist() == [1, 0, 1, 0]
    assert data.class_names == ["World", "Sports"] and data.official_test == 1 and data.shape == (8,)


def test_imdb_as_it_is_published(tmp_path):
    (tmp_path / "IMDB Dataset.csv").write_text('review,sentiment\n"Good, really.<br /><br />Twice.",positive\nBad,negative\nBad,negative\n', encoding="utf-8")
    data = text_csv(tmp_path / "IMDB Dataset.csv", label="sentiment", text=["review"])
    assert texts_in(data) == ["Good, really. Twice.", "Bad"] and data.class_names == ["negative", "positive"] and data.labels.tolist() == [1, 0]


def test_what_is_tested_on_is_not_trained_on(tmp_path):
    data = text_csv(ag_news(tmp_path, test='"2","f","g"\n"1","h","i"\n'), **AG_NEWS)
    assert texts_in(data) == ['A "b" c', "d e", "f g", "h i"] and data.official_test == 2


@pytest.mark.parametrize("train,options,said", [
    ('"1","a"\n"2","b","c"\n', {}, "too few cells in entry 1"),
    ("", {}, "no lines"),
    ('"1","a","b"\n"2","b","c"\n', {"text": ["body"]}, "the column body of .* class, title, description"),
    ('"1","a","b"\n"2","b","c"\n', {"class_names": ["World"]}, "1 class_names .* 2, one for each of the labels 1, 2"),
    ('"1","a","b"\n"1","b","c"\n', {}, "1 different labels"),
    ("\0", {}, "cells|CSV"),
])
def test_files_that_are_not_what_they_should_be(tmp_path, train, options, said):
    with pytest.raises(UserError, match=said):
        text_csv(ag_news(tmp_path, train), **{**AG_NEWS, **options})


def test_files_that_are_not_there(tmp_path):
    for root in (None, tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="data.root=.* a folder that holds train.csv and test.csv"):
            text_csv(root)
    (tmp_path / "latin.csv").write_bytes(b"class,text\n1,\xe9\n")
    with pytest.raises(UserError, match="latin.csv cannot be read as CSV in UTF-8"):
        text_csv(tmp_path / "latin.csv")


def test_the_published_sets_are_one_setting(tmp_path):
    folder = ag_news(tmp_path, '"1","a","b"\n"2","b","c"\n"3","d","e"\n"4","f","g"\n')
    node = load_config(["data=ag_news", "model=classifier", "model/preprocessor=text"]).data
    assert instantiate(node.dataset)(folder).class_names == ["World", "Sports", "Business", "Sci/Tech"]
    assert load_config(["data=imdb", "model=classifier", "model/preprocessor=text"]).data.dataset.label == "sentiment"


def test_every_answer_is_right_and_balanced_in_every_part():
    data = digit_questions(training=100, validation=20, test=40)
    digit = digits().labels[data.pairs]
    train, val, test = split(data, 0.1, 0.2, seed=3)
    assert [len(part) for part in (train, val, test)] == [700, 140, 280]
    for number, question in enumerate(QUESTIONS):
        for part in (train, val, test):
            mine = part[data.question[part] == number]
            assert torch.equal(data.labels[mine], question.answer(*digit[mine].unbind(dim=1)))
            counts = data.labels[mine].bincount(minlength=len(ANSWERS))
            assert len(set(counts[counts > 0].tolist())) == 1, "each answer equally often"
            assert text_of(data.ids[number]) == question.text


def test_no_image_is_in_two_parts():
    data = digit_questions(training=400)
    parts = [set(data.pairs[part].flatten().tolist()) for part in split(data, 0.1, 0.2, seed=0)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert all(len(part) > 100 for part in parts)


def test_the_image_is_the_two_digits_side_by_side():
    data = digit_questions(training=20, validation=20, test=20)
    image = data.inputs(torch.tensor([7, 3]))["image"]
    assert image.shape == (2, 1, 8, 16) and data.shape == (1, 8, 16, 24)
    assert_close(image[0, :, :, 8:], digits().inputs(data.pairs[7, 1:])[0])
    assert_close(image[1, :, :, :8], digits().inputs(data.pairs[3, :1])[0])


def test_the_best_without_one_half_is_what_counting_gives():
    best = best_without()
    assert best["image"] == pytest.approx((3 / 2 + 4 / 10) / 7)
    data = digit_questions(training=20_000, validation=20, test=20)
    train, _, _ = split(data, 0.1, 0.2, seed=0)
    pair = digits().labels[data.pairs[train]] @ torch.tensor([10, 1])
    counts = torch.bincount(pair * len(ANSWERS) + data.labels[train], minlength=100 * len(ANSWERS)).view(100, -1)
    assert counts.amax(dim=1).sum() / len(train) == pytest.approx(best["text"], abs=0.01)


def test_pairs_depend_on_the_seed_alone():
    a, b, other = (digit_questions(training=20, validation=20, test=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.pairs, b.pairs) and not torch.equal(a.pairs, other.pairs)


def test_mistakes_with_questions():
    with pytest.raises(UserError, match="15 pairs for 'is the left one larger.' .* multiple of 2"):
        digit_questions(training=15)
    with pytest.raises(UserError, match="max_length=10 .* 24 or more"):
        digit_questions(max_length=10)


def test_texts_and_questions_come_in_batches_like_images():
    texts = ImageDataModule(lambda root: docstrings(packages={"json": ["json"], "csv": ["csv"]}), shots=5)
    loader = StepLoader(texts.data, texts.train_index, 6, seed=0)
    assert loader.batch(3).input.shape == (6, 128) and torch.equal(loader.batch(3).input, loader.batch(3).input)
    assert texts.image_shape == (128,) and texts.part("train")[1].bincount().tolist() == [5, 5]
    asked = ImageDataModule(lambda root: digit_questions(training=20, validation=20, test=20))
    whole, half = (StepLoader(asked.data, asked.train_index, 8, 0).batch(2, *share) for share in ((0, 1), (1, 2)))
    assert {name: tuple(value.shape) for name, value in whole.input.items()} == {"image": (8, 1, 8, 16), "text": (8, 24)}
    assert all(torch.equal(half.input[name], whole.input[name][4:]) for name in whole.input)
    assert asked.image_shape == (1, 8, 16, 24) and len(asked.part("test")[0]["text"]) == 140


def test_classes_can_be_chosen_among_texts_and_answers():
    texts, questions = (ImageDataModule(dataset) for dataset in (docstrings, digit_questions))
    few = ImageDataModule(docstrings, classes=[4, 1])
    assert few.data.class_names == [texts.data.class_names[4], texts.data.class_names[1]] and few.data.ids.shape[0] == len(few.data.labels)
    said, labels = few.part("test")
    whole, numbers = texts.part("test")
    assert torch.equal(said, whole[(numbers == 4) | (numbers == 1)]) and set(labels.tolist()) == {0, 1}
    yes_or_no, (asked, answers) = ImageDataModule(digit_questions, classes=[0, 1]), questions.part("test")
    assert torch.equal(yes_or_no.part("test")[0]["image"], asked["image"][answers < 2]) and len(yes_or_no.data.pixels) == len(questions.data.pixels)


def test_what_is_not_shown_has_no_influence():
    torch.manual_seed(0)
    inputs = digit_questions(training=20, validation=20, test=20).inputs(slice(0, 6))
    patches = partial(ImagePreprocessor, patch_size=2)
    blind = ImageAndText((1, 8, 16, 24), patches, shown=["text"])
    tokens, mask = blind(inputs)
    assert tokens.shape[1] == 32 + 24 == mask.shape[1] and not mask[:, :32].any() and torch.equal(mask[:, 32:], inputs["text"] < 256)
    assert torch.equal(ImageAndText((1, 8, 16, 24), patches)(inputs)[1].sum(dim=1), 32 + (inputs["text"] < 256).sum(dim=1))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\) for model/preprocessor=text"):
        text_preprocessor((1, 8, 8))
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\) for model/preprocessor=image_and_text"):
        ImageAndText((1, 8, 8))
    with pytest.raises(UserError, match="shown=.*sound.* image, text"):
        ImageAndText((1, 8, 16, 24), shown=["sound"])
    with pytest.raises(UserError, match="shown="):
        ImageAndText((1, 8, 16, 24), shown=[])
