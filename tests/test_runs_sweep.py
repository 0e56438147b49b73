# Made from nbs/88_sweep.ipynb by `pmd-dev tests`. Edit the notebook.
import csv
import json
from pathlib import Path

import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.sweep import Job, is_sweep, run_job, run_jobs, sweep, sweep_jobs, sweep_table
from perceiver_moe_diffusion.tools.testing import changed


@pytest.mark.parametrize("line, several", [
    ("seed=0,1", True), ("seed=range(0,3)", True), ("moe=choice(dense,mixture)", True), ("seed=3", False),
    ("data.classes=[3,7]", False), ("run_dir='a,b'", False), ("nonsense", False), ("run_dir=a=b", False)])
def test_several_values_are_told_from_one(line, several):
    assert is_sweep(line) is several


def test_every_combination_is_a_job_and_what_is_fixed_is_in_all_of_them():
    jobs = sweep_jobs(["seed=0,1", "data.classes=[3,7]", "moe=dense,mixture", "+trainer.limit_val_batches=1,2"])
    assert len(jobs) == 8 and len({tuple(job.overrides) for job in jobs}) == 8
    assert all("data.classes=[3,7]" in job.overrides for job in jobs)
    assert jobs[0].overrides == ["seed=0", "data.classes=[3,7]", "moe=dense", "+trainer.limit_val_batches=1"]
    assert jobs[-1].values == {"seed": "1", "moe": "mixture", "trainer.limit_val_batches": "2"}
    assert sweep_jobs([]) == [Job([], {})], "without overrides the default, once"


@pytest.mark.parametrize("line, said", [("seed=interval(0,1)", "cannot be swept"), ("nonsense", "write KEY=VALUE")])
def test_what_is_no_set_of_values_is_refused(line, said):
    with pytest.raises(UserError, match=said):
        sweep_jobs(["moe.top_k=1,2", line])


def table_of(path) -> list[dict[str, str]]:
    "The rows of a CSV file."
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    "An empty working directory, and trainings that take no time: those of seed 1 fail. What each of them was given."
    seen = []

    def train(config, overrides):
        seen.append((config, list(overrides), table_of("sweep/sweep.csv") if Path("sweep/sweep.csv").exists() else []))
        if config.seed == 1:
            raise RuntimeError("not enough\nmemory")
        folder = Path(config.run_dir)
        folder.mkdir(parents=True)
        results = {"fd": config.seed + 0.5, "parameters": 7, "interval": [1, 2], "command": "pmd-train"}
        (folder / "metrics.json").write_text(json.dumps(results))
        return folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(run_job.__globals__, "train", train)
    return seen


def test_a_job_is_a_row_of_numbers_or_an_error(pretended):
    assert run_job(changed({"seed": 3, "run_dir": "run"}), []) == {"fd": 3.5, "parameters": 7}
    assert run_job(changed({"seed": 1, "run_dir": "run"}), []) == {"error": "RuntimeError: not enough memory"}


def test_the_table_is_written_after_every_job_and_a_failure_takes_nothing_with_it(pretended, capsys):
    Path("sweep").mkdir()
    jobs = sweep_jobs(["model.dim=32", "seed=0,1,2"])
    rows = run_jobs(jobs, [changed({"seed": seed}) for seed in range(3)], Path("sweep"))
    assert [len(table) for _, _, table in pretended] == [0, 1, 2], "what a job finds is the table of those before it"
    assert [config.run_dir for config, _, _ in pretended] == [f"sweep/00{n}-seed-{n}" for n in range(3)]
    assert [overrides for _, overrides, _ in pretended] == [job.overrides for job in jobs]
    assert rows[1] == {"job": 1, "seed": "1", "error": "RuntimeError: not enough memory"} and rows[2]["fd"] == 2.5
    assert [row["fd"] for row in table_of("sweep/sweep.csv")] == ["0.5", "", "2.5"]
    out, err = capsys.readouterr()
    assert "job 3 of 3: seed=2" in out and err == "job 2 failed: RuntimeError: not enough memory\n"


def test_the_table_has_the_columns_that_a_job_has_and_says_which_failed():
    good, bad = {"job": 0, "seed": "0", "accuracy": 0.91234, "parameters": 12000}, {"job": 1, "seed": "1", "error": "x"}
    assert sweep_table([good, bad], ["seed"]).splitlines() == [
        "job  seed  accuracy  parameters",
        "0    0     0.9123    12000",
        "1    1     failed",
    ]
    assert sweep_table([bad], ["seed"]).splitlines() == ["job  seed  conditional_accuracy", "1    1     failed"]


def test_a_sweep_leaves_a_table_its_command_and_a_folder_for_each_job(pretended, capsys):
    assert sweep(["seed=0,1,2", "run_dir=sweep"]) == Path("sweep")
    made = sorted(path.name for path in Path("sweep").iterdir())
    assert made == ["000-seed-0", "002-seed-2", "sweep.csv", "sweep.json"], "a job that fails at once has no folder"
    about = json.loads(Path("sweep/sweep.json").read_text())
    assert about["command"] == "pmd-train -m seed=0,1,2 run_dir=sweep" and about["seconds"] >= 0
    *_, head, first, second, third, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "seed", "fd", "parameters"] and last == "sweep folder: sweep"
    assert [line.split()[-1] for line in (first, second, third)] == ["7", "failed", "7"]


def test_a_sweep_of_which_nothing_worked_is_an_error(pretended):
    with pytest.raises(UserError, match="Every job of the sweep failed; the first: RuntimeError: not enough memory"):
        sweep(["seed=1", "moe.top_k=1,2", "run_dir=sweep"])
    assert len(table_of("sweep/sweep.csv")) == 2


@pytest.mark.parametrize("mistake, said", [
    (["seed=0,-1"], "seed=-1"), (["moe.top_k=1,two"], "moe.top_k"), (["seed=0,1", "moe.topk=1"], "Did you mean"),
    (["seed=0,1", "trainer.devices=1,2"], "-m with several devices"), (["seed=interval(0,1)"], "cannot be swept"),
])
def test_a_mistake_in_any_job_shows_before_the_first_and_nothing_is_written(pretended, mistake, said):
    with pytest.raises(UserError, match=said):
        sweep([*mistake, "run_dir=sweep"])
    assert pretended == [] and list(Path().iterdir()) == []


def test_a_sweep_is_not_written_over_another(pretended):
    sweep(["seed=2,3", "run_dir=sweep"])
    before = Path("sweep/sweep.csv").read_bytes()
    with pytest.raises(UserError, match="run_dir=sweep, which holds a sweep already,"):
        sweep(["seed=4,5", "run_dir=sweep"])
    assert Path("sweep/sweep.csv").read_bytes() == before and len(pretended) == 2
