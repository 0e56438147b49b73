# Made from nbs/95_dev.ipynb by `pmd-dev tests`. Edit the notebook.
import contextlib
import csv
import json
import os
import subprocess
from pathlib import Path

import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.tools.dev import (
    COMMANDS,
    check_all,
    grade,
    grade_words,
    in_step,
    pmd_dev,
    report,
    run_chosen,
)
from perceiver_moe_diffusion.tools.workflow import BEGIN, END, project_root, students_in, without_solution

TOY_STUB = f"def double(x):\n    {BEGIN}\n    return 2 * x\n    {END}"
TOY_CELLS = [("import math", []), (TOY_STUB, ["solution"]),
             ("assert double(3) == 6, f'{double(3)} is not twice 3'", ["exercise"]),
             (f"{BEGIN}\nanswer = math.pi\n{END}", ["solution"]),
             ("assert double(answer) == math.tau, 'twice what?'", ["exercise"])]
RIGHT = "def double(x): return x + x"


def write_notebook(path, cells, change=lambda cells: None):
    "A notebook of cells (text, tags), with ids by place; and whatever else is done to its cells."
    made = [{"cell_type": "code", "id": f"cell-{i}", "metadata": {"tags": tags}, "source": text, "outputs": [],
             "execution_count": None} for i, (text, tags) in enumerate(cells)]
    change(made)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def hand_in(path, double, answer, change=lambda cells: None):
    "A student's notebook: two answers, and whatever else they did to its cells."
    first, _, check, _, last = TOY_CELLS
    write_notebook(path, [first, (double, ["solution"]), check, (answer, ["solution"]), last], change)


def toy_project(folder):
    "A project with one small notebook of two exercises."
    write_notebook(folder / "nbs" / "00_toy.ipynb", TOY_CELLS)
    (folder / "settings.ini").touch()
    return folder


def delete_first(cells):
    del cells[1]


def tamper(cells):
    cells[2]["source"], cells[4]["source"] = "print('right')", ""
    cells.reverse()


nothing_else = lambda cells: None
STUDENTS = {  # name -> the two answers, what else they did, what is found
    "right, written otherwise": (RIGHT, "answer = math.tau / 2", nothing_else, ("right", "right")),
    "wrong": ("def double(x): return x**2", "answer = 3.14", nothing_else, ("wrong", "wrong")),
    "untouched": (without_solution(TOY_STUB), "...", nothing_else, ("not tried", "not tried")),
    "only a remark": ("def double(x):\n    # but how?\n    ...  # yet", "", nothing_else, ("not tried", "not tried")),
    "endless": ("while True: pass", "answer = math.pi", nothing_else, ("timed out", "right")),
    "endless and deaf": ("import signal\nfor n in (2, 14, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
                         "import os\nif os.fork(): os.wait()\nwhile True: pass", nothing_else,
                         ("timed out", "timed out")),
    "exit": ("exit()\nraise SystemExit", "import os; os._exit(0)", nothing_else, ("broken", "broken")),
    "ends its parent": ("import os; os.kill(os.getppid(), 9)", "answer = math.pi", nothing_else, ("broken", "right")),
    "syntax": ("def double(x) return x", "answer = \ud800", nothing_else, ("broken", "broken")),
    "asks": ("double = input()", "answer = float(input('?'))", nothing_else, ("broken", "broken")),
    "talks": (f"{RIGHT}\nfor _ in range(10**5): print('right' * 100)", "print('[\"right\", \"\"]'); answer = 0",
              nothing_else, ("right", "wrong")),
    "deleted": ("", "answer = math.pi", delete_first, ("broken", "right")),
    "tampered": ("def double(x): return 0", "answer = 0", tamper, ("wrong", "wrong")),
    "goes on": (f"from math import pi as half\n{RIGHT}", "answer = half", nothing_else, ("right", "right")),
    "spoils files": ("import shutil\nshutil.rmtree('.')", "answer = math.pi", nothing_else, ("broken", "right")),
    "=1+1": (RIGHT, "answer = 1", nothing_else, ("right", "wrong")),
}


def test_a_class_is_graded_whatever_its_students_do(tmp_path, capsys):
    root, klass = toy_project(tmp_path / "project"), tmp_path / "class"
    for name, (double, answer, change, _) in STUDENTS.items():
        hand_in(klass / name / "00_toy.ipynb", double, answer, change)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    grade_words(root, [str(klass), "limit=3"])
    with open(klass / "grades.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    results = lambda name: tuple(row["result"] for row in rows if row["student"].removeprefix("'") == name)
    found = {name: results(name) for name in STUDENTS}
    assert found == {name: expected for name, (*_, expected) in STUDENTS.items()}
    told = {(row["student"], row["exercise"]): row["message"] for row in rows}
    assert told["wrong", "1"] == "9 is not twice 3" and told["endless", "1"] == "after 3 seconds"
    assert told["deleted", "1"] == "its cell is not in the notebook" and "SyntaxError" in told["syntax", "1"]
    assert "'=1+1" in {row["student"] for row in rows}, "no formula in a spreadsheet"
    assert {path: path.read_bytes() for path in before} == before, "nothing of the project or of the class is changed"
    assert "right" in capsys.readouterr().out.splitlines()[-2]


def test_files_that_are_no_hand_in_do_not_stop_a_class(tmp_path):
    root, klass, told = toy_project(tmp_path / "project"), tmp_path / "class", []
    hand_in(klass / "ada" / "work" / "my toy.ipynb", RIGHT, "answer = math.pi")  # deeper, and under another name
    hand_in(klass / "ben" / "00_toy.ipynb", RIGHT, "...")
    hand_in(klass / "ben" / "00_toy-Copy1.ipynb", "wrong", "wrong")
    write_notebook(klass / "ben" / "scratch.ipynb", [("1 + 1", [])])
    hand_in(klass / "ben" / ".ipynb_checkpoints" / "00_toy-checkpoint.ipynb", "wrong", "wrong")
    (klass / "cleo").mkdir()
    texts = {"dan": "{", "eve": '{"cells": [3]}', "fay": '{"cells": [{"source": [1]}]}', "gus": "[" * 10**5}
    for name, text in texts.items():
        (klass / name).mkdir()
        (klass / name / "00_toy.ipynb").write_text(text)
    new_ids = lambda cells: [cell.update(id=f"new-{cell['id']}") for cell in cells]  # as some programs do
    hand_in(klass / "hal" / "00_toy.ipynb", RIGHT, "...", new_ids)
    marks = grade(root, klass, tell=told.append)
    found = {student: [mark.result for mark in marks if mark.student == student] for student in os.listdir(klass)}
    assert found.pop("grades.csv") == []
    assert found == {"ada": ["right", "right"], "ben": ["right", "not tried"], "cleo": ["not tried"] * 2,
                     "hal": ["right", "not tried"], **dict.fromkeys(texts, ["broken"] * 2)}
    assert [line.partition(", ")[2] for line in told[:2]] == [
        "a second 00_toy", "no notebook with exercises of this project"]
    assert list(students_in(klass / "hal")) == ["hal"], "one student's folder"


def test_a_notebook_that_does_not_run_is_told_and_not_held_against_the_student(tmp_path):
    root = toy_project(tmp_path / "project")
    write_notebook(root / "nbs" / "00_toy.ipynb", [("import a_missing_library", []), *TOY_CELLS[1:]])
    hand_in(tmp_path / "ada" / "00_toy.ipynb", RIGHT, "...")
    first, second = grade(root, tmp_path / "ada", tell=lambda line: None)
    assert first.result == "broken" and "the notebook itself does not run: ModuleNotFoundError" in first.message
    assert second.result == "not tried"


@pytest.mark.parametrize("words, sentence", [
    ([], "grade is not possible; allowed: grade FOLDER"), (["a", "b"], "grade a b is not possible"),
    (["class", "limt=3"], "grade class limt=3 is not possible"), (["class", "limit=0"], "limit=0 is not possible"),
    (["nowhere"], "nowhere, which is no folder"), (["empty"], "empty, without a notebook"),
    (["mixed"], r"holds notebooks \(a.ipynb\) and a folder with notebooks \(ben/b.ipynb\)")])
def test_another_order_of_folders_is_refused_by_name(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "ada").mkdir(parents=True)
    for path in ("mixed/a.ipynb", "mixed/ben/b.ipynb"):
        hand_in(tmp_path / path, "1", "2")
    with pytest.raises(UserError, match=sentence):
        grade_words(toy_project(tmp_path / "project"), words)


def test_every_word_has_something_to_do_and_an_unknown_one_is_one_line(capsys):
    assert set(COMMANDS) == {
        "headers", "tests", "readme", "faces", "picture", "fold", "check", "run", "mutate", "student", "teacher",
        "grade"}
    for words in ([], ["publish"], ["tests!"]):
        with pytest.raises(SystemExit) as stopped:
            pmd_dev(words)
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.count("\n") == 1 and "tests, readme, faces, picture, fold" in told


def test_the_made_files_are_in_step_with_the_notebooks():
    assert in_step(project_root(Path(__file__).parent)) == [], "run pmd-dev headers, tests, readme, faces and picture"


def test_a_notebook_that_is_not_there_is_named():
    with pytest.raises(UserError, match="notebook 99_nothing is not possible; allowed: .*30_moe"):
        run_chosen(project_root(Path(__file__).parent), ["99_nothing"])


def test_a_report_tells_what_was_written_and_a_check_has_a_status(tmp_path, capsys):
    report(tmp_path, [tmp_path / "a.py"], check=False)
    with pytest.raises(SystemExit) as stopped:
        report(tmp_path, [tmp_path / "a.py"], check=True)
    assert stopped.value.code == 1 and capsys.readouterr().out.splitlines() == ["written: a.py", "out of date: a.py"]


@pytest.mark.parametrize("stale, statuses, status", [
    ([], (0, 0), None), (["a.py"], (0, 0), 1), ([], (0, 1), 1), ([], (1, 0), 1)])
def test_a_check_asks_everything_and_has_a_status(stale, statuses, status, monkeypatch, tmp_path):
    asked, answers = [], iter(statuses)

    def run(command, **more):
        asked.append(command[2])
        return subprocess.CompletedProcess(command, next(answers))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(check_all.__globals__, "in_step", lambda root: [tmp_path / name for name in stale])
    with pytest.raises(SystemExit) if status else contextlib.nullcontext() as stopped:
        check_all(tmp_path)
    assert asked == ["ruff", "mypy"], "also after a bad answer"
    assert status is None or stopped.value.code == status
