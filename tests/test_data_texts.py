# Made from nbs/43_texts.ipynb by `pmd-dev tests`. Edit the notebook.
import re
import sys

import pytest
import torch
from hydra.utils import instantiate

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import sorted_class_names, split_indices, subsample_per_class
from perceiver_moe_diffusion.data.texts import (
    LIBRARY,
    _docstrings_of,
    _without_names,
    decode_text,
    docstrings,
    text_csv,
)
from perceiver_moe_diffusion.runs.overrides import load_config


def texts_in(data, index=slice(None)):
    return [decode_text(ids) for ids in data.ids[index]]


def test_docstrings_are_enough_for_a_hundred_of_each_class_and_never_twice():
    data = docstrings()
    train, val, test = split_indices(data, 0.1, 0.2, seed=0)
    assert data.labels[train].bincount().min() >= 100
    assert len(subsample_per_class(train, data.labels, 100, seed=0)) == 700
    texts = texts_in(data)
    assert len(set(texts)) == len(texts), "no text can be in two parts, or have two labels"
    assert data.inputs(slice(0, 3)).dtype == torch.long and data.shape == (128,) and data.inputs().max() == 256


@pytest.mark.parametrize("max_length", [32, 128])
def test_the_pretraining_set_shares_neither_packages_nor_texts_with_the_other(max_length):
    first = docstrings(max_length=max_length)
    second = docstrings(packages="pretraining", apart_from="few_shot", max_length=max_length)
    assert not set(texts_in(first)) & set(texts_in(second)) and not set(first.class_names) & set(second.class_names)
    modules = [{name for names in LIBRARY[which].values() for name in names} for which in LIBRARY]
    assert not modules[0] & modules[1]
    together = docstrings(packages="pretraining", max_length=max_length)
    assert set(texts_in(first)) & set(texts_in(together)), "without apart_from they would"


def test_the_name_of_the_package_is_not_in_its_texts():
    data = docstrings()
    for label, name in enumerate(data.class_names):
        texts = texts_in(data, data.labels == label)
        words = {word for text in texts for word in re.findall("[A-Za-z0-9]+", text.lower())}
        assert name not in words and len(words) > 100
    without = _without_names(["The XML file, xmlns and lxml; xml_parse(XML)."], ["xml"])
    assert without == ["The file, xmlns and lxml; _parse( )."]


def test_docstrings_are_parsed_and_not_run():
    # antigravity opens a browser when it is imported
    assert "Compute geohash() using" in _docstrings_of("antigravity")[0]
    assert "antigravity" not in sys.modules
    assert _docstrings_of("bisect") and all("\n" not in text for text in _docstrings_of("bisect"))


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
    published = 'review,sentiment\n"Good, really.<br /><br />Twice.",positive\nBad,negative\nBad,negative\n'
    (tmp_path / "IMDB Dataset.csv").write_text(published, encoding="utf-8")
    data = text_csv(tmp_path / "IMDB Dataset.csv", label="sentiment", text=["review"])
    assert texts_in(data) == ["Good, really. Twice.", "Bad"]
    assert data.class_names == ["negative", "positive"] and data.labels.tolist() == [1, 0]


def test_what_is_tested_on_is_not_trained_on(tmp_path):
    data = text_csv(ag_news(tmp_path, test='"2","f","g"\n"1","h","i"\n'), **AG_NEWS)
    assert texts_in(data) == ['A "b" c', "d e", "f g", "h i"] and data.official_test == 2
    assert data.about == "4 texts, 2 classes (1 2, 2 2); 1 of test.csv left out of train.csv"


def test_labels_that_are_numbers_are_sorted_by_their_value(tmp_path):
    (tmp_path / "many.csv").write_text("class,text\n10,a\n2,b\nten,c\n1,d\n2,e\n", encoding="utf-8")
    data = text_csv(tmp_path / "many.csv")
    (tmp_path / "odd.csv").write_text("class,text\n²,a\n10,b\n9,c\n", encoding="utf-8")
    assert text_csv(tmp_path / "odd.csv").class_names == ["9", "10", "²"]  # a digit, and no number to int()
    assert data.class_names == ["1", "2", "10", "ten"] and data.labels.tolist() == [2, 1, 3, 0, 1]
    assert data.official_test == 0


@pytest.mark.parametrize("train,options,said", [
    ('"1","a"\n"2","b","c"\n', {}, "train.csv, line 1: too few cells"),
    ('"1","a","b"\n"2","b","c","d"\n', {}, "train.csv, line 2: too many cells"),
    ("", {}, "no lines"),
    ('"1","a","b"\n"2","b","c"\n', {"text": ["body"]}, "the column body of .* class, title, description"),
    ('"1","a","b"\n"2","b","c"\n', {"class_names": ["World"]}, "1 class_names .* 2, one for each of the labels 1, 2"),
    ('"1","a","b"\n"1","b","c"\n', {}, "1 different labels"),
    ("\0", {}, "train.csv, line 1: a NUL byte"),
    ('"1","a","b"\n"2","b","c"\n', {"text": ["class"]}, "text=.'class'. with data.dataset.label=class .*in another"),
    ('"1","a","b"\n"2","b","c"\n', {"text": []}, "one or more columns"),
    ('"1","a","b"\n"2","b","c"\n', {"columns": "class"}, r"columns=class is not possible.*Write .*columns=.class."),
    ('"1","a","b"\n"2","b","c"\n', {"max_length": 0}, "max_length=0"),
    ('label,head,body\n1,a,b\n2,b,c\n', {}, "the first line .label, head, body.*columns=null"),
    ('sentiment,head,body\np,a,b\nn,b,c\n', {"class_names": ["a", "b"]}, "2 class_names .* 4, .*columns=null"),
])
def test_files_that_are_not_what_they_should_be(tmp_path, train, options, said):
    with pytest.raises(UserError, match=said):
        text_csv(ag_news(tmp_path, train), **{**AG_NEWS, **options})


def written(folder, content):
    "A file with these bytes in it."
    (folder / "texts.csv").write_bytes(content)
    return folder / "texts.csv"


def test_a_file_from_excel_is_read_as_it_is(tmp_path):
    content = 'review;sentiment\r\n"Gut; wirklich";positive\r\nSchlecht;negative\r\n'
    for encoding in ("utf-8-sig", "utf-16"):
        data = text_csv(written(tmp_path, content.encode(encoding)), label="sentiment", text="review")
        assert texts_in(data) == ["Gut; wirklich", "Schlecht"] and data.class_names == ["negative", "positive"]
    assert data.about == ("2 texts, 2 classes (negative 1, positive 1); texts.csv read as utf-16; "
                          "texts.csv split by semicolon")


@pytest.mark.parametrize("text", ["body", ["body"], ("body",)])
def test_one_column_is_a_word_or_a_list(tmp_path, text):
    assert texts_in(text_csv(written(tmp_path, b"class,body\n1,a b\n2,c\n"), text=text)) == ["a b", "c"]


def test_what_a_person_may_have_meant_otherwise_is_counted_and_said(tmp_path):
    lines = ["1,a", "2,a", "1,b", "1,b", "2,c", ",d", " ,e", "1,", ",", "2,<br/>", "2,f"]
    data = text_csv(written(tmp_path, "\n".join(["class,text", *lines]).encode()))
    assert texts_in(data) == ["a", "b", "c", "f"] and data.labels.tolist() == [1, 0, 1, 1]
    assert data.about == (
        "4 texts, 2 classes (1 1, 2 3); 1 twice with different labels, the last taken; "
        "1 again with the same label, kept once; 3 without a label left out; 2 of no letters left out"
    )
    assert text_csv(written(tmp_path, b"class,text\n1,a\n2,b\n")).about == "2 texts, 2 classes (1 1, 2 1)"


def test_ag_news_with_its_line_of_names(tmp_path):
    names = "Class Index,Title,Description\n"
    folder = ag_news(tmp_path, names + '"2","A","c"\n"1","d","e"\n', names + '"1","h","i"\n')
    data = text_csv(folder, **AG_NEWS)
    assert texts_in(data) == ["A c", "d e", "h i"] and data.class_names == ["1", "2"] and data.official_test == 1
    assert data.about.endswith("the first line of test.csv names the columns")
    named = dict(label="Class Index", text=["Title", "Description"])
    assert texts_in(text_csv(folder, **named)) == texts_in(data)
    with pytest.raises(UserError, match="the column class, title, description of .*Class Index, Title, Description"):
        text_csv(folder, **{**AG_NEWS, "columns": None})


def test_a_number_with_a_sign_is_a_number_and_runs_of_older_versions_keep_their_order(tmp_path):
    table = written(tmp_path, b"class,text\n10,a\nneutral,b\n-1,c\n2,d\n+3,e\n")
    assert text_csv(table).class_names == sorted_class_names(["10", "neutral", "-1", "2", "+3"])
    assert text_csv(table).class_names == ["-1", "2", "+3", "10", "neutral"]
    assert text_csv(table, label_order="unsigned").class_names == ["2", "10", "+3", "-1", "neutral"]
    with pytest.raises(UserError, match="data.dataset.label_order=size.*numbers or unsigned"):
        text_csv(table, label_order="size")
    assert text_csv(written(tmp_path, b"-1,a\n0,b\n1,c\n"), columns=["class", "text"]).class_names == ["-1", "0", "1"]


def test_a_word_among_numbers_is_a_label_where_it_stands_again(tmp_path):
    folder = ag_news(tmp_path, '"1","a","b"\n"ten","b","c"\n"ten","c","d"\n', '"ten","h","i"\n"1","j","k"\n')
    assert text_csv(folder, **AG_NEWS).class_names == ["1", "ten"]


def test_files_that_are_not_there(tmp_path):
    for root in (None, tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="data.root=.* a folder that holds train.csv and test.csv"):
            text_csv(root)
    (tmp_path / "latin.csv").write_bytes(b"class,text\n1,\xe9\n")
    with pytest.raises(UserError, match="latin.csv, line 2: this is not UTF-8 .*data.dataset.encoding=latin-1"):
        text_csv(tmp_path / "latin.csv")
    assert text_csv(written(tmp_path, b"class,text\n1,\xe9\n2,b\n"), encoding="latin-1").class_names == ["1", "2"]


def test_a_folder_without_the_two_files_names_those_that_it_holds(tmp_path):
    (tmp_path / "IMDB Dataset.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="The folder holds IMDB Dataset.csv: name the file, data.root='.*Dataset.csv'"):
        text_csv(tmp_path)


def test_the_published_sets_are_one_setting(tmp_path):
    folder = ag_news(tmp_path, '"1","a","b"\n"2","b","c"\n"3","d","e"\n"4","f","g"\n')
    node = load_config(["data=ag_news", "model=classifier", "model/preprocessor=text"]).data
    assert instantiate(node.dataset)(folder).class_names == ["World", "Sports", "Business", "Sci/Tech"]
    options = ["data.dataset.separator=semicolon", "data.dataset.encoding=latin-1", "data.dataset.text=title"]
    other = load_config(["data=ag_news", "model=classifier", "model/preprocessor=text", *options]).data
    with pytest.raises(UserError, match="train.csv, line 1: .*cells split by semicolon"):
        instantiate(other.dataset)(folder)
    assert load_config(["data=imdb", "model=classifier", "model/preprocessor=text"]).data.dataset.label == "sentiment"
