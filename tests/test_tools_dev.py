# Made from nbs/95_dev.ipynb by `pmd-dev tests`. Edit the notebook.
import contextlib
import subprocess
from pathlib import Path

import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.tools.dev import COMMANDS, check_all, in_step, pmd_dev, report, run_chosen
from perceiver_moe_diffusion.tools.workflow import project_root


def test_every_word_has_something_to_do_and_an_unknown_one_is_one_line(capsys):
    assert set(COMMANDS) == {"headers", "tests", "readme", "faces", "picture", "check", "run", "mutate", "student"}
    for words in ([], ["publish"], ["tests!"]):
        with pytest.raises(SystemExit) as stopped:
            pmd_dev(words)
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and told.count("\n") == 1 and "tests, readme, faces, picture, check" in told


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
