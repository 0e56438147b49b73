# Made from nbs/93_workflow.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import json
import pytest
from pathlib import Path
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.tools.dev import pmd_dev
from perceiver_moe_diffusion.tools.workflow import BEGIN
from perceiver_moe_diffusion.tools.workflow import END
from perceiver_moe_diffusion.tools.workflow import defined_names
from perceiver_moe_diffusion.tools.workflow import extract_tests
from perceiver_moe_diffusion.tools.workflow import make_readme
from perceiver_moe_diffusion.tools.workflow import make_student_copy
from perceiver_moe_diffusion.tools.workflow import make_tests
from perceiver_moe_diffusion.tools.workflow import notebooks
from perceiver_moe_diffusion.tools.workflow import project_root
from perceiver_moe_diffusion.tools.workflow import read_cells
from perceiver_moe_diffusion.tools.workflow import tags
from perceiver_moe_diffusion.tools.workflow import without_solution


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
        solution, check = (
            ast.parse("\n".join(line for line in text.splitlines() if not line.startswith(("%", "!"))))
            for text in (kinds[i][1], kinds[i + 1][1])
        )
        stub = without_solution(kinds[i][1])
        compile(stub, path.stem, "exec")
        assert any(isinstance(node, ast.Assert) for node in ast.walk(check)), "the check asserts something"
        used = {node.id for node in ast.walk(check) if isinstance(node, ast.Name)} | {
            node.attr for node in ast.walk(check) if isinstance(node, ast.Attribute)
        }
        assert used & (
            defined_names(solution) | {node.attr for node in ast.walk(solution) if isinstance(node, ast.Attribute)}
        ), "the check looks at the solution"
        assert kinds[i - 1][1].startswith("**Exercise"), "the question stands above"


def test_the_students_copy_fails_its_checks_until_it_is_solved(tmp_path):
    "The first notebook, run whole: with the solutions taken out the three checks fail, and nothing else does."
    import nbformat
    from nbclient import NotebookClient

    copies = make_student_copy(project_root(Path(__file__).parent), tmp_path / "student")
    assert len(copies) == len(WITH_EXERCISES)
    assert not any(BEGIN in cell["text"] for path in copies for cell in read_cells(path) if "solution" in tags(cell))
    notebook = nbformat.read(copies[0], as_version=4)
    NotebookClient(
        notebook, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    failed = [
        i
        for i, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    assert {i for i, cell in enumerate(notebook.cells) if "exercise" in tags(cell)} <= set(failed)
    assert all(tags(notebook.cells[i]) & {"exercise", "solution"} for i in failed)


def test_a_folder_with_somebodys_work_is_not_touched(tmp_path, capsys):
    (tmp_path / "00_core.ipynb").write_text("mine")
    with pytest.raises(UserError, match="a new or empty one"):
        make_student_copy(project_root(Path(__file__).parent), tmp_path)
    assert (tmp_path / "00_core.ipynb").read_text() == "mine"


@pytest.mark.parametrize("text", ["answer = 1", f"{BEGIN}\nanswer = 1", f"answer = 1\n{END}"])
def test_a_solution_without_markers_would_give_itself_away_and_is_refused(text):
    with pytest.raises(UserError, match="a solution cell"):
        without_solution(text)


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


def test_a_wrong_word_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        pmd_dev(["publish"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
