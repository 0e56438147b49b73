# Made from nbs/18_workflow.ipynb by `pmd-dev tests`. Edit the notebook.
import json
import pytest
from pathlib import Path
from perceiver_moe_diffusion.workflow import extract_tests
from perceiver_moe_diffusion.workflow import make_readme
from perceiver_moe_diffusion.workflow import make_tests
from perceiver_moe_diffusion.workflow import pmd_dev
from perceiver_moe_diffusion.workflow import project_root


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
    assert "from perceiver_moe_diffusion.toy import double" in text and "from perceiver_moe_diffusion.toy import LIMIT" in text
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
