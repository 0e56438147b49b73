# Made from nbs/99_headers.ipynb by `pmd-dev tests`. Edit the notebook.
import json
from pathlib import Path

import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.tools.headers import (
    COLUMNS,
    TO_RUN,
    make_header,
    make_headers,
    minutes_to_read,
    nano_lines,
    navigation,
    record_seconds,
    seconds_to_run,
    with_nano_lines,
)
from perceiver_moe_diffusion.tools.workflow import project_root, read_cells

OLD_HEAD = """# Diffusion
> Undo one step.

| needs | you build | CPU time | paper and equations |
|---|---|---|---|
| PyTorch | `a \\| b` | 10 s | Ho et al. 2020 |

The question."""


def test_a_header_gets_what_is_counted_and_keeps_what_was_written_and_is_made_twice_the_same():
    links = navigation(Path("12_b.ipynb"), [Path("11_a.ipynb"), Path("12_b.ipynb")])
    made = make_header(OLD_HEAD, links, 7, "12", "model.svg")
    assert made.splitlines() == [
        "# Diffusion", "> Undo one step.", "", *links.splitlines(), "", COLUMNS, "|---|---|---|---|---|",
        "| PyTorch | `a \\| b` | 7 | 12 | Ho et al. 2020 |", "", "The question.", "",
        "![The model, with the piece of this notebook lit](images/model.svg)"]
    assert make_header(made, links, 7, "12", "model.svg") == made
    assert "images/" not in make_header(made, links, 7, "12", "")
    with pytest.raises(UserError, match="without a table"):
        make_header("# A\n> b\n\ntext", links, 1, "1", "")


def test_the_neighbours_are_linked():
    order = [Path(f"{name}.ipynb") for name in ("00_tour", "02_glossary", "10_points")]
    glossary, links = "[symbols and words](02_glossary.ipynb)", [navigation(path, order) for path in order]
    assert links[0] == f"[index](index.ipynb) · {glossary} · [02 glossary →](02_glossary.ipynb)" + TO_RUN
    assert links[1] == "[← 00 tour](00_tour.ipynb) · [index](index.ipynb) · [10 points →](10_points.ipynb)" + TO_RUN
    assert links[2] == f"[← 02 glossary](02_glossary.ipynb) · [index](index.ipynb) · {glossary}" + TO_RUN
    assert TO_RUN not in navigation(Path("01_nano.ipynb"), [Path("01_nano.ipynb")]), "nano needs PyTorch alone"


def test_minutes_count_prose_and_code_and_pass_over_tests_and_solutions():
    cell = lambda kind, text, *marks: {"cell_type": kind, "text": text, "metadata": {"tags": list(marks)}}
    prose, code = cell("markdown", "word " * 400), cell("code", "x = 1\n" * 40)
    head = cell("markdown", "word " * 9000)
    assert minutes_to_read([head, prose, code]) == 4
    assert minutes_to_read([head, prose, cell("code", "#| test\n" * 900), cell("code", "x\n" * 900, "solution")]) == 2
    assert minutes_to_read([head]) == 1


def test_seconds_are_kept_beside_those_of_before_and_forgotten_with_their_notebook(tmp_path):
    (tmp_path / "nbs" / "results").mkdir(parents=True)
    for name in ("10_a", "11_b"):
        (tmp_path / "nbs" / f"{name}.ipynb").write_text("{}")
    assert seconds_to_run(tmp_path) == {}
    record_seconds(tmp_path, {"10_a": 0.2, "09_gone": 3.0}, threads=1)
    record_seconds(tmp_path, {"11_b": 12.6}, threads=2)
    assert seconds_to_run(tmp_path) == {"10_a": "1", "11_b": "13"}


def test_lines_of_nano_are_counted_again_and_a_piece_that_is_not_there_is_named():
    head = "Here lines 3–9 (`loss`) stay.\n\n[Nano](01_nano.ipynb), lines ? (`loss`) and line 2 (`fourier`): more."
    found = with_nano_lines(head, {"loss": "81–96", "fourier": "5"})
    assert found == ("Here lines 3–9 (`loss`) stay.\n\n"
                     "[Nano](01_nano.ipynb), lines 81–96 (`loss`) and line 5 (`fourier`): more.")
    with pytest.raises(UserError, match="`loss` as a piece of nano is not possible; allowed: fourier"):
        with_nano_lines(head, {"fourier": "5"})


def test_the_pieces_of_nano_are_found_where_they_stand():
    root = project_root(Path(__file__).parent)
    cells = [cell["text"] for cell in read_cells(root / "nbs" / "01_nano.ipynb")]
    typed = "\n".join(text for text in cells if text.startswith("# nano: ")).splitlines()
    found = nano_lines(root)
    assert {"levels", "fourier", "Attention", "Experts", "Block", "Nano", "loss", "train", "sample"} <= set(found)
    for name, numbers in found.items():
        first, last = (int(number) for number in numbers.split("–"))
        assert any(line.startswith((f"def {name}(", f"class {name}(")) for line in typed[first - 1:first + 1]), name
        assert typed[last - 1].strip() and (last == len(typed) or not typed[last].startswith(" ")), "its last line"


def small_project(folder):
    "A project of two notebooks and an index."
    table = "| part | [10 a](10_a.ipynb) | x | ? | ? |\n| | [11 b](11_b.ipynb) | y | | |"
    texts = {"10_a": OLD_HEAD, "11_b": OLD_HEAD, "index": table}
    (folder / "nbs" / "images").mkdir(parents=True)
    (folder / "nbs" / "results").mkdir()
    (folder / "nbs" / "images" / "model_11_b.svg").write_text("<svg/>")
    for name, text in texts.items():
        cell = {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}
        (folder / "nbs" / f"{name}.ipynb").write_text(json.dumps({"cells": [cell]}))
    record_seconds(folder, {"10_a": 4.4}, threads=1)
    return folder


def test_headers_and_index_of_a_project(tmp_path):
    root = small_project(tmp_path)
    stale = make_headers(root, check=True)
    assert [path.stem for path in stale] == ["10_a", "11_b", "index"] and make_headers(root, check=True) == stale
    assert make_headers(root) == stale and make_headers(root, check=True) == []
    first, second, index = (read_cells(path)[0]["text"] for path in stale)
    assert "| 1 | 4 |" in first and "| 1 | – |" in second and "[11 b →](11_b.ipynb)" in first
    assert second.endswith("(images/model_11_b.svg)") and "images/" not in first
    assert index.splitlines() == ["| part | [10 a](10_a.ipynb) | x | 1 | 4 |", "| | [11 b](11_b.ipynb) | y | 1 | – |"]


def test_every_notebook_here_has_its_header():
    assert make_headers(project_root(Path(__file__).parent), check=True) == [], "run pmd-dev headers"
