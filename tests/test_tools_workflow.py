# Made from nbs/93_workflow.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import json
import re
from pathlib import Path

import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.tools.workflow import (
    BEGIN,
    END,
    FOLDED,
    defined_names,
    directives,
    extract_tests,
    fold_solutions,
    is_lasting,
    make_copy,
    make_readme,
    make_tests,
    notebooks,
    parse_cells,
    project_root,
    read_cells,
    run_notebook,
    student_cells,
    tags,
    teacher_cells,
    without_solution,
)


def test_directives_stand_at_the_top_of_a_cell():
    assert directives("#| export\n#| hide\nx = 1  #| no\n# | no") == {"export", "hide"}
    assert directives("#|\nx = '#| export'") == set()


def test_the_root_is_found_from_below_and_missed_outside(tmp_path):
    assert project_root(Path(__file__).parent / "data") == Path(__file__).parent.parent
    with pytest.raises(UserError, match="is not inside the project .*Go to the clone of the repository first"):
        project_root(tmp_path)


NOTEBOOK = {"cells": [
    {"cell_type": "code", "source": ["#| default_exp toy"]},
    {"cell_type": "code", "source": ["#| export\n", "import math\n", "def double(x): return 2 * x\n", "LIMIT = 3"]},
    {"cell_type": "code", "source": ["import pytest"]},
    {"cell_type": "code", "source": ["#| test\n", "@pytest.mark.parametrize('x', [1, 2])\n", "def test_double(x):\n",
                                     "    assert double(x) < 2 * LIMIT\n", "test_double(1)"]}]}


def test_extracted_tests_import_what_they_use_from_the_package(tmp_path):
    path = tmp_path / "00_toy.ipynb"
    path.write_text(json.dumps(NOTEBOOK))
    module, text = extract_tests(path)
    assert module == "toy"
    assert (
        "from perceiver_moe_diffusion.toy import double" in text
        and "from perceiver_moe_diffusion.toy import LIMIT" in text
    )
    assert "import pytest" in text and "import math" not in text, "only what is used is imported"
    assert "\ntest_double(1)" not in text
    compile(text, "test_toy.py", "exec")


def test_a_test_file_follows_its_notebook(tmp_path):
    for folder in ("nbs", "tests"):
        (tmp_path / folder).mkdir()
    notebook = tmp_path / "nbs" / "00_toy.ipynb"
    notebook.write_text(json.dumps(NOTEBOOK))
    assert [p.name for p in make_tests(tmp_path, check=True)] == ["test_toy.py"]
    assert not (tmp_path / "tests" / "test_toy.py").exists(), "checking writes nothing"
    make_tests(tmp_path)
    assert make_tests(tmp_path, check=True) == []
    notebook.unlink()
    make_tests(tmp_path)
    assert list((tmp_path / "tests").iterdir()) == []


def test_this_repository_is_in_step_with_its_notebooks():
    root = project_root(Path(__file__).parent)
    assert make_tests(root, check=True) == [], "run `pmd-dev tests`"
    assert make_readme(root, check=True) == [], "run `pmd-dev readme`"


@pytest.fixture
def small_root(tmp_path):
    "A project of which the README is made from two cells."
    import nbformat
    (tmp_path / "nbs").mkdir()
    cells = [nbformat.v4.new_markdown_cell("[a](30_moe.ipynb) ![b](images/b.svg) [c](../LICENSE)"),
             nbformat.v4.new_code_cell("secret = 1", metadata={"tags": ["hide_input"]})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    return tmp_path


def test_links_of_the_readme_start_at_the_top_of_the_repository(small_root):
    assert make_readme(small_root) == [small_root / "README.md"] and make_readme(small_root, check=True) == []
    text = (small_root / "README.md").read_text()
    assert "[a](nbs/30_moe.ipynb) ![b](nbs/images/b.svg) [c](LICENSE)" in text and "secret" not in text


def test_a_notebook_keeps_what_lasts(tmp_path):
    import nbformat
    path = tmp_path / "toy.ipynb"
    texts = ("import sys; print('a warning', file=sys.stderr); x = 2", "x + 1")
    cells = [nbformat.v4.new_code_cell(text) for text in texts]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    before = path.read_text()
    notebook = run_notebook(path, keep=False, more=["print(10 * x)"])
    assert path.read_text() == before and notebook.cells[-1].outputs[0]["text"] == "20\n"
    run_notebook(path)
    first, second = nbformat.read(path, as_version=4).cells
    assert first.outputs == [] and second.outputs[0]["data"]["text/plain"] == "3" and second.execution_count is None


def test_widgets_and_warnings_do_not_last():
    assert not is_lasting({"name": "stderr", "text": "slow"})
    assert not is_lasting({"data": {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "IntSlider()"}})
    assert is_lasting({"name": "stdout", "text": "3"}) and is_lasting({"data": {"image/png": "…"}})


WITH_EXERCISES = [
    path
    for path in notebooks(project_root(Path(__file__).parent if "__file__" in globals() else None))
    if path.stem != "index"
]


@pytest.mark.parametrize("path", WITH_EXERCISES, ids=lambda path: path.stem)
def test_a_notebook_closes_with_three_exercises_each_with_its_solution_above_its_check(path):
    kinds = [(tags(cell), cell["text"]) for cell in read_cells(path)]
    solutions = [i for i, (kind, _) in enumerate(kinds) if "solution" in kind]
    checks = [i for i, (kind, _) in enumerate(kinds) if "exercise" in kind]
    assert len(solutions) == 3 and checks == [i + 1 for i in solutions]
    for i in solutions:
        solution, check = (parse_cells([kinds[place][1]]) for place in (i, i + 1))
        compile(without_solution(kinds[i][1]), path.stem, "exec")
        assert any(isinstance(node, ast.Assert) for node in ast.walk(check)), "the check asserts something"
        attributes = lambda tree: {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used = {node.id for node in ast.walk(check) if isinstance(node, ast.Name)} | attributes(check)
        assert used & (defined_names(solution) | attributes(solution)), "the check looks at the solution"
        assert kinds[i - 1][1].startswith("**Exercise"), "the question stands above"


def test_the_students_copy_fails_its_checks_until_it_is_solved(tmp_path):
    "The first notebook, run whole: with the solutions taken out the three checks fail, and nothing else does."
    import nbformat
    from nbclient import NotebookClient

    copies = make_copy(project_root(Path(__file__).parent), tmp_path / "student", student_cells)
    names = [path.name for path in copies]
    assert names == [path.name for path in notebooks(project_root(Path(__file__).parent))]
    solutions = [cell for path in copies for cell in read_cells(path) if "solution" in tags(cell)]
    assert len(solutions) == 3 * len(WITH_EXERCISES)
    assert not any(BEGIN in cell["text"] or FOLDED.keys() & cell["metadata"].keys() for cell in solutions)
    first = next(path for path in copies if path.name == WITH_EXERCISES[0].name)
    notebook = nbformat.read(first, as_version=4)
    there = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, resources=there).execute()
    with_error = lambda cell: any(output["output_type"] == "error" for output in cell.get("outputs", []))
    failed = [i for i, cell in enumerate(notebook.cells) if with_error(cell)]
    assert {i for i, cell in enumerate(notebook.cells) if "exercise" in tags(cell)} <= set(failed)
    assert all(tags(notebook.cells[i]) & {"exercise", "solution"} for i in failed)


def test_a_folder_with_somebodys_work_is_not_touched(tmp_path, capsys):
    (tmp_path / "00_core.ipynb").write_text("mine")
    with pytest.raises(UserError, match="a new or empty one"):
        make_copy(project_root(Path(__file__).parent), tmp_path, student_cells)
    assert (tmp_path / "00_core.ipynb").read_text() == "mine"


@pytest.mark.parametrize("change", [student_cells, teacher_cells])
def test_pictures_and_links_between_notebooks_work_in_the_copies(change, tmp_path):
    import nbformat

    for path in make_copy(project_root(Path(__file__).parent), tmp_path / "copy", change):
        nbformat.validate(nbformat.read(path, as_version=4))
        prose = "\n".join(cell["text"] for cell in read_cells(path) if cell["cell_type"] == "markdown")
        for link in re.findall(r"\]\((?!\.\.)([\w./-]+\.(?:ipynb|png|svg|gif))", prose):
            assert (path.parent / link).is_file(), f"{path.stem}: {link}"


def test_the_teachers_copy_shows_the_solutions_and_says_what_the_checks_ask():
    solution = {"cell_type": "code", "metadata": {"tags": ["solution"], **FOLDED}, "source": [BEGIN]}
    assert teacher_cells(solution) == [{**solution, "metadata": {"tags": ["solution"]}}]
    source = ["for x in (1, 2):\n", '    assert f(x), "a word"\n', "assert g()\n", "assert h(), f'{x} is odd'"]
    check = {"cell_type": "code", "id": "a", "metadata": {"tags": ["exercise"]}, "source": source, "outputs": ["kept"]}
    kept, guide = teacher_cells(check)
    assert kept == check and guide["id"] == "a-guide" and guide["cell_type"] == "markdown"
    assert "".join(guide["source"]).splitlines()[2:] == ["- `f(x)`: a word", "- `g()`", "- `h()`: `f'{x} is odd'`"]


def test_folding_closes_solutions_and_touches_nothing_else(tmp_path):
    (tmp_path / "nbs").mkdir()
    path = tmp_path / "nbs" / "00_toy.ipynb"
    tagged = lambda tag: {"cell_type": "code", "metadata": {"tags": [tag]}, "source": ["x = 'é'"]}
    cells = [tagged("solution"), tagged("exercise"), tagged("hide_input")]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert fold_solutions(tmp_path, check=True) == [path] and FOLDED.keys().isdisjoint(read_cells(path)[0]["metadata"])
    assert fold_solutions(tmp_path) == [path] and fold_solutions(tmp_path) == []
    solution, check, hidden = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert check == cells[1] and solution["metadata"] == {"tags": ["solution"], **FOLDED}
    assert hidden["metadata"] == {"tags": ["hide_input"], **FOLDED}
    assert {**solution, "metadata": cells[0]["metadata"]} == cells[0]


@pytest.mark.parametrize("text", ["answer = 1", f"{BEGIN}\nanswer = 1", f"answer = 1\n{END}"])
def test_a_solution_without_markers_would_give_itself_away_and_is_refused(text):
    with pytest.raises(UserError, match="a solution cell"):
        without_solution(text)
