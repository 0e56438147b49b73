# Made from nbs/49_tables.ipynb by `pmd-dev tests`. Edit the notebook.
import codecs
import csv
import io
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.tables import SEPARATORS, _choose_encoding, read_records
from perceiver_moe_diffusion.data.texts import decode_text, text_csv


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    "A file with this text in it, line ends as they are."
    path.write_bytes(text.encode(encoding))
    return path


WANTED = ["label", "text"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", [True, False])
def test_what_programs_write_is_read_without_a_setting(tmp_path, encoding, separator, end, header):
    lines = [["label", "text"]] * header + [["a", '"Grüße, 3; and\ttab"'], ["b", '"she said ""x"""'], ["ä", "ends"]]
    text = "".join(separator.join(cells) + end for cells in lines)
    table = read_records(written(tmp_path / "t.csv", text, encoding), WANTED, None if header else WANTED)
    assert [tuple(row.values()) for row in table.rows] == [
        ("a", "Grüße, 3; and\ttab"), ("b", 'she said "x"'), ("ä", "ends")]
    assert table.lines == [1 + header, 2 + header, 3 + header]
    assert ("split by" in str(table.remarks)) == (separator != ",")
    assert ("read as" in str(table.remarks)) == (not encoding.startswith("utf-8"))


def test_other_encodings_are_settings_and_the_refusal_names_them(tmp_path):
    path = written(tmp_path / "old.csv", "label,text\n1,plain\n2,Gr\u00fc\u00dfe\n", "latin-1")
    with pytest.raises(UserError, match=r"old.csv, line 3: this is not UTF-8 .*data.dataset.encoding=latin-1"):
        read_records(path, WANTED, None)
    assert read_records(path, WANTED, None, encoding="latin-1").rows[1]["text"] == "Gr\u00fc\u00dfe"
    unmarked = written(tmp_path / "bare.csv", "label,text\n1,a\n", "utf-16-le")
    with pytest.raises(UserError, match="bare.csv, line 1: a NUL byte.*data.dataset.encoding=utf-16-le"):
        read_records(unmarked, WANTED, None)
    assert read_records(unmarked, WANTED, None, encoding="utf-16-le").rows == [{"label": "1", "text": "a"}]


@pytest.mark.parametrize("encoding, said", [
    ("klingon", "data.dataset.encoding=klingon"), ("base64", "not BASE64"), (8, "data.dataset.encoding=8"),
    ("latin-1", "begins with the byte-order mark of utf-8"), ("u\0", "data.dataset.encoding="),
])
def test_an_encoding_that_cannot_be_is_refused(tmp_path, encoding, said):
    path = written(tmp_path / "t.csv", "label,text\n1,a\n", "utf-8-sig")
    if encoding == "base64":
        path = written(tmp_path / "t.csv", "label,text\n1,a\n")
    with pytest.raises(UserError, match=said):
        read_records(path, WANTED, None, encoding=encoding)


@pytest.mark.parametrize("name", ["utf8", "UTF-8", "utf-8-sig"])
def test_an_encoding_that_agrees_with_the_mark_is_taken(tmp_path, name):
    path = written(tmp_path / "t.csv", "label,text\n1,a\n", "utf-8-sig")
    assert read_records(path, WANTED, None, encoding=name).rows == [{"label": "1", "text": "a"}]


def test_a_file_cut_off_in_the_middle_of_a_letter_is_named(tmp_path):
    path = tmp_path / "cut.csv"
    path.write_bytes("label,text\n1,a\n2,\u010a\n3,b".encode("utf-16")[:-1])
    with pytest.raises(UserError, match="cut.csv, line 4: this is not UTF-16 .*cut off"):
        read_records(path, WANTED, None)


def test_cells_of_any_length_are_read_and_the_limit_of_the_process_is_put_back(tmp_path):
    before = csv.field_size_limit()
    long = "x" * (before + 10)
    path = written(tmp_path / "long.csv", f"label,text\n1,{long}\n2,a\n")
    assert read_records(path, WANTED, None).rows[0]["text"] == long and csv.field_size_limit() == before
    with pytest.raises(UserError):
        read_records(written(path, f'label,text\n1,"{long}\n'), WANTED, None)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("text, columns, said", [
    ("", None, "the column label, text of .*none: the file is empty, it has no lines"),
    ("\n \n\r\n", None, "none: the file is empty"),
    ("", WANTED, "t.csv with no lines of data"),
    ("label,text\n", None, "t.csv with no lines of data"),
    ("label,text\n1,a\n2\n", None, "t.csv, line 3: too few cells, 1 in place of 2"),
    ("label,text\n1,a\n\n2,hello, you\n3,b,c\n", None, r"line 4 \(and 1 more\): too many cells, 3 in place of 2"),
    ('label,text\n1,"two\nlines"\n2,a,b\n', None, "line 4: too many"),
    ('label,text\n1,a\n2,"never closed\n3,c\n', None, "t.csv, line 3: unexpected end of data.*that opens must close"),
    ('label,text\n1,"a" b\n', None, "t.csv, line 2: .*expected after.*is written twice"),
    ("label,review\n1,a\n", None, "the column text of .*allowed: label, review.*data.dataset.columns="),
    ("label,text,text\n1,a,b\n", None, "the column text of .*t.csv, which is there twice"),
    ("1;a,b\n2;c,d\n", WANTED, "by comma and by semicolon.*Set .*separator=comma or data.dataset.separator=semicolon"),
    ("label,text\n1,a\0b\n", None, "t.csv, line 2: a NUL byte"),
])
def test_a_table_that_cannot_be_read_right_is_refused_with_its_line(tmp_path, text, columns, said):
    with pytest.raises(UserError, match=said):
        read_records(written(tmp_path / "t.csv", text), WANTED, columns)


def test_a_doubt_about_the_separator_is_settled_by_the_setting(tmp_path):
    path = written(tmp_path / "t.csv", "1;a,b\n2;c,d\n")
    for name in ("semicolon", ";"):
        assert [row["text"] for row in read_records(path, WANTED, WANTED, name).rows] == ["a,b", "c,d"]
    assert [row["label"] for row in read_records(path, WANTED, WANTED, "comma").rows] == ["1;a", "2;c"]
    pipes = written(tmp_path / "t.csv", "label|text\n1|a,b;c\n")
    assert read_records(pipes, WANTED, None, "|").rows == [{"label": "1", "text": "a,b;c"}]
    for wrong in ("", "||", '"', "\n", "colon", 3):
        with pytest.raises(UserError, match="data.dataset.separator="):
            read_records(pipes, WANTED, None, wrong)


def test_more_records_settle_it_as_well(tmp_path):
    path = written(tmp_path / "t.csv", "1;a,b\n2;c\n")
    assert [row["text"] for row in read_records(path, WANTED, WANTED).rows] == ["a,b", "c"]


def test_a_line_of_names_is_seen_where_none_was_expected(tmp_path):
    path = written(tmp_path / "t.csv", "Class Index,Title,Text\n1,a,b\n")
    table = read_records(path, ["label", "title", "text"], ["label", "title", "text"])
    assert table.remarks == ["the first line of t.csv names the columns"]
    assert len(table.rows) == 1 and table.lines == [2]
    for lines in ("1,Title,something\n2,a,b\n", "1,Title,Text\n1,a,b\n"):
        data = written(tmp_path / "t.csv", lines)
        assert len(read_records(data, ["label", "title", "text"], ["label", "title", "text"]).rows) == 2


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read .IsADirectoryError"):
        read_records(tmp_path, WANTED, None)


HARD = st.text(st.sampled_from("ab,;\t\"'| \n\ré\u00fc\u20ac\ufeff\u2028\x85\x0b\x1f0="), max_size=12)
LABELS = st.sampled_from(["1", "2", "10", "x", "", " y ", "a,b", 'q"', "²", "3\n4"])
TABLES = st.lists(st.tuples(LABELS, HARD), min_size=1, max_size=8)
WRITERS = st.fixed_dictionaries({
    "delimiter": st.sampled_from(list(SEPARATORS.values())),
    "quoting": st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
})
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
REPRODUCIBLE = dict(derandomize=True, deadline=None, database=None)  # the same examples in every run


def one_row(cells):
    "A text as the data set has it: cells in one line, tags of line breaks away."
    return " ".join(re.sub(r"<br\s*/?>", " ", " ".join(cells)).split())


@settings(max_examples=250, **REPRODUCIBLE)
@given(rows=TABLES, writer=WRITERS, encoding=ENCODINGS, header=st.booleans())
@example(rows=[("1", "a"), ("2", "b")], writer={"delimiter": ";"}, encoding="utf-16", header=False)
def test_random_tables_come_out_as_they_went_in(rows, writer, encoding, header):
    if writer.get("quoting") == csv.QUOTE_MINIMAL:  # older Pythons leave line ends unquoted that are not the writer's
        rows = [tuple(" ".join(cell.splitlines()) for cell in row) for row in rows]
    file = io.StringIO(newline="")
    csv.writer(file, **writer).writerows([("class", "text")] * header + rows)
    told = encoding if encoding == "cp1252" else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.csv"
        path.write_bytes(file.getvalue().encode(encoding, "replace"))
        rows = [tuple(cell.encode(encoding, "replace").decode(encoding) for cell in row) for row in rows]
        expected = {one_row([text]): label.strip() for label, text in rows if label.strip() and one_row([text])}
        try:
            data = text_csv(path, columns=None if header else ["class", "text"], encoding=told, max_length=80)
        except UserError as error:
            few = len(set(expected.values())) < 2
            doubt = "data.dataset.separator=" in str(error) or "the first line" in str(error)
            assert few or doubt and not header, error
            return
    assert [decode_text(ids) for ids in data.ids] == list(expected)
    assert [data.class_names[label] for label in data.labels] == list(expected.values())


PIECES = st.sampled_from([b"1", b"2", b"a", b",", b",", b";", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"\xe9",
                          b"\xc3\xa9", b" ", b"class", b"text", b"class,text\n", b"class;text\n", codecs.BOM_UTF8,
                          codecs.BOM_UTF16_LE, b"1,one\n2,two\n", b"3;three\r\n"])


@settings(max_examples=600, **REPRODUCIBLE)
@given(pieces=st.lists(PIECES, max_size=14),
       columns=st.sampled_from([None, ["class", "text"], ["text", "x", "class"]]),
       encoding=st.sampled_from([None, None, "latin-1", "utf-16-le"]))
@example(pieces=[b"class,text\n", b'1,"a\n', b"2,b\n"], columns=None, encoding=None)
@example(pieces=[b"class,text\n", b"1,one\n2,two\n", b"1,a,b\n"], columns=None, encoding=None)
@example(pieces=[b'"', b"1,one\n2,two\n", b'"'], columns=None, encoding=None)  # a name with line breaks, in a message
def test_random_bytes_are_read_as_others_read_them_or_refused(pieces, columns, encoding):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.csv"
        path.write_bytes(b"".join(pieces))
        try:
            data = text_csv(path, columns=columns, encoding=encoding, max_length=200)
        except UserError as error:
            assert "\n" not in str(error)
            return
        read = [(decode_text(ids), data.class_names[label]) for ids, label in zip(data.ids, data.labels)]
        with open(path, newline="", encoding=_choose_encoding(path, path.read_bytes(), encoding)) as file:
            lines = file.read()
    independent = []
    for separator in SEPARATORS.values():
        rows = csv.DictReader(io.StringIO(lines, newline=""), columns, delimiter=separator)
        rows = [{" ".join(name.split()): cell for name, cell in row.items() if isinstance(name, str)} for row in rows]
        cells = [(row.get("text"), row.get("class")) for row in rows]["names the columns" in data.about :]
        independent.append(list({one_row([text]): label.strip() for text, label in cells
                                 if text and label and label.strip() and one_row([text])}.items()))
    assert read in independent
