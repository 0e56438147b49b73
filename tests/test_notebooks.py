"Every notebook runs from top to bottom in a fresh kernel; and what is stored is fit to be read on GitHub."
import ast
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest

from perceiver_moe_diffusion.tools.workflow import FOLDED, notebooks, read_cells, run_notebook, tags

ROOT = Path(__file__).parent.parent
NOTEBOOKS = pytest.mark.parametrize("path", notebooks(ROOT), ids=lambda path: path.stem)
EXPLORERS = {"00_tour", "10_points", "62_widgets", "63_guidance_explorer", "66_routing_explorer", "67_attention_maps",
             "68_forward_process"}
# Whoever runs notebooks by program loses what a thread sends between two cells: so pictures are sent once more when all
# is quiet.
SETTLE = """import gc
import ipywidgets
from perceiver_moe_diffusion.explore.widgets import LatestTaskWorker
assert all(worker.wait(300) for worker in gc.get_objects() if isinstance(worker, LatestTaskWorker))
for image in [thing for thing in gc.get_objects() if isinstance(thing, ipywidgets.Image)]:
    image.send_state("value")"""


@NOTEBOOKS
def test_runs_from_top_to_bottom(path):
    explorer = path.stem in EXPLORERS
    notebook = run_notebook(path, keep=False, more=[SETTLE] if explorer else [])
    if explorer:  # its picture has arrived at the front end, and no status line tells of an error
        models = list(notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values())
        pictures = [model for model in models if model["model_name"] == "ImageModel"]
        buffers = [b64decode(buffer["data"]) for model in pictures for buffer in model["buffers"]]
        assert pictures and all(picture.startswith(b"\x89PNG") for picture in buffers)
        assert not [text for model in models if "#D55E00" in (text := str(model["state"].get("value", "")))]


@NOTEBOOKS
def test_is_fit_to_be_read(path):
    assert path.stat().st_size <= 1_000_000
    for number, cell in enumerate(read_cells(path)):
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", f"cell {number} stores an error"
            picture = output.get("data", {}).get("image/png")
            encoded = "".join(picture or "")  # of one string or of a list of lines
            assert len(b64decode(encoded)) <= 100_000, f"picture in cell {number}"
    assert not re.search(r"/(home|root|tmp|work)/\w", path.read_text()), "a path of somebody's machine"


def words_between_code(cells):
    """How many words of prose stand between two code cells, for each such place.

    Tables, equations and quoted code do not count, and an exercise or the summary begins a place of its own.
    """
    places = [0]
    for cell in cells:
        if cell["cell_type"] != "markdown":
            places.append(0)
            continue
        text = re.sub(r"\$\$.*?\$\$|```.*?```", " ", cell["text"], flags=re.S)
        for part in re.split(r"^(?=## (?:Summary|Exercises|References)|\*\*Exercise)", text, flags=re.M):
            if re.match(r"## (Summary|Exercises|References)|\*\*Exercise", part):
                places.append(0)
            prose = [line for line in part.splitlines() if not line.startswith(("|", "![", "#", ">"))]
            places[-1] += len(" ".join(prose).split())
    return places


@NOTEBOOKS
def test_reads_in_house_style(path):
    cells = read_cells(path)
    first = cells[0]["text"]
    assert first.startswith("# ") and "\n> " in first, "a title and a subtitle"
    if path.stem != "index":
        assert re.search(r"^\| needs \| you build \| minutes to read \| seconds to run \|", first, re.M), "a header"
        assert max(words_between_code(cells[1:])) <= 120, "a reader wants something to happen"
        prose = "\n".join(cell["text"] for cell in cells if cell["cell_type"] == "markdown")
        assert re.search(r"^## Summary", prose, re.M) and re.search(r"^## Exercises", prose, re.M)
        assert any(cell.get("outputs") for cell in cells), "outputs are kept"


def test_nano_is_150_lines_that_a_student_can_type():
    texts = [cell["text"] for cell in read_cells(ROOT / "nbs/01_nano.ipynb") if cell["cell_type"] == "code"]
    pieces = [text for text in texts if text.startswith("# nano: ")]
    lines = [line for text in pieces for line in text.splitlines()]
    assert len(lines) <= 150 and max(map(len, lines)) <= 100
    names = ["data", "levels", "fourier", "Attention", "Experts", "Block", "Nano", "loss", "train", "sample"]
    assert [text.splitlines()[0] for text in pieces] == [f"# nano: {name}" for name in names]

    def imported(cells):
        nodes = list(ast.walk(ast.parse("\n".join(cells))))
        modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        return {module.partition(".")[0] for module in modules}

    assert imported(pieces) == {"math", "sklearn", "torch"}
    assert imported(texts) == {"math", "sklearn", "torch", "matplotlib", "time"}, "the pictures need no more than that"


def test_nano_needs_none_of_its_pictures():
    "The marked cells alone, in their order, define all that they use."
    texts = [cell["text"] for cell in read_cells(ROOT / "nbs/01_nano.ipynb") if cell["cell_type"] == "code"]
    source = "\n\n\n".join(text for text in texts if text.startswith("# nano: "))
    assert "steps=400" in source
    space: dict = {}
    exec(source.replace("steps=400", "steps=2"), space)
    drawn = space["sample"](space["average"], space["labels"][:3], 2, space["images"][:3], steps=2)
    assert drawn.shape == (3, 8, 8) and space["history"].shape == (2, 2)


@NOTEBOOKS
def test_solutions_are_folded_and_nothing_else_is(path):
    for number, cell in enumerate(read_cells(path)):
        told = {name: value for name, value in cell["metadata"].items() if name != "tags"}
        assert told == (FOLDED if tags(cell) & {"solution", "hide_input"} else {}), f"cell {number}: run pmd-dev fold"


@pytest.mark.parametrize("stem", ["00_tour", "index"])
def test_without_the_package_the_first_cell_says_in_one_sentence_what_to_install(stem):
    code = next(cell["text"] for cell in read_cells(ROOT / "nbs" / f"{stem}.ipynb") if cell["cell_type"] == "code")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "`python -m pip install -e .`" in done.stderr
