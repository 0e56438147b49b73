# Made from nbs/70_results.ipynb by `pmd-dev tests`. Edit the notebook.
import json

import numpy as np
import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.evaluation.metrics import Mean
from perceiver_moe_diffusion.evaluation.results import (
    archive_run,
    means_by,
    provenance_line,
    read_results,
    read_table,
    seed_mean,
    show_comparison,
    table_of,
)

MADE = {"date": "2026-11-25", "torch": "2", "threads": 1}


def write_run(folder, kind="sweep", table="seed,fd\n0,1.5\n1,2\n", **facts):
    "A folder as pmd-train leaves it, as far as it matters here."
    (folder / f"{kind}.csv").write_text(table)
    (folder / f"{kind}.json").write_text(json.dumps({"command": "pmd-train -m seed=0,1", "made": MADE, **facts}))
    return folder


def test_what_is_kept_is_read_again(tmp_path):
    kept = archive_run(write_run(tmp_path, seconds=60.0), "a", tmp_path / "out")
    assert kept == read_results("a", tmp_path / "out") and kept.rows == [{"seed": 0, "fd": 1.5}, {"seed": 1, "fd": 2}]
    assert provenance_line(kept) == "$ pmd-train -m seed=0,1\n2026-11-25, 1 minutes, torch 2, 1 thread(s)"


def test_of_a_log_some_columns_are_kept(tmp_path):
    table = "step,loss,val_loss,val_accuracy\n9,2.0,,\n19,1.5,,\n19,,1.4,0.5\n"
    run = write_run(tmp_path, "metrics", table, train_seconds=30.0, accuracy=0.5, accuracy_interval=[0.4, 0.6],
                    expert_load=[[1]])
    kept = archive_run(run, "b", tmp_path / "out", columns=("step", "val_accuracy"))
    assert kept.rows == [{"step": 19, "val_accuracy": 0.5}] and kept.facts["seconds"] == 30
    assert kept.facts["results"] == {"train_seconds": 30.0, "accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}


def test_a_folder_that_is_no_run_and_a_name_that_is_not_there_are_refused(tmp_path):
    told = r"^run=.* is not possible; allowed: the folder of a finished run or sweep of pmd-train \(it holds .*\)\.$"
    with pytest.raises(UserError, match=told):
        archive_run(tmp_path, "a", tmp_path)
    with pytest.raises(UserError, match="results 'a' .* none, since"):
        read_results("a", tmp_path)
    archive_run(write_run(tmp_path, seconds=1.0), "b", tmp_path / "out")
    with pytest.raises(UserError, match="results 'a' .* b"):
        read_results("a", tmp_path / "out")


def test_cells_are_numbers_where_they_can_be(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c,d,e\n-3,1e-3,nan,3-4,\n")
    row, = read_table(tmp_path / "t.csv")
    assert (row["a"], row["b"], row["d"]) == (-3, 0.001, "3-4") and isinstance(row["a"], int)
    assert np.isnan(row["c"]) and "e" not in row


def test_the_interval_is_students():
    assert seed_mean([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    value, low, high = seed_mean([5])
    assert value == 5 and np.isnan(low) and np.isnan(high)
    with pytest.raises(UserError, match="no values"):
        seed_mean([])


def test_the_interval_holds_the_truth_in_95_of_100_cases():
    draws = np.random.default_rng(0).normal(7, 2, size=(4000, 3))
    hits = np.mean([low <= 7 <= high for _, low, high in map(seed_mean, draws)])
    assert abs(hits - 0.95) < 0.015


def test_settings_keep_their_order_and_runs_that_failed_are_left_out():
    rows = [{"moe": "b", "k": 1, "fd": 2.0}, {"moe": "a", "k": 1, "fd": 1.0},
            {"moe": "b", "k": 1, "error": "it broke"}, {"moe": "b", "k": 2, "fd": 4.0}]
    assert list(means_by(rows, "moe", ["fd"])) == ["b", "a"] and means_by(rows, "moe", ["fd"])["b"]["fd"].value == 3
    assert list(means_by(rows, ("moe", "k"), ["fd"])) == [("b", 1), ("a", 1), ("b", 2)]
    table = table_of(means_by(rows, ("moe", "k"), ["fd"]), {"fd": "FD", "none": "?"}).splitlines()
    assert table[0].split() == ["FD", "?"] and table[1].split() == ["b", "1", "2", "—"]


def test_a_table_shows_as_many_digits_as_are_asked_for():
    compared = {"a": {"fd": Mean(0.12345, 0.1, 0.2), "n": Mean(700_000.0, 700_000.0, 700_000.0)},
                ("b", 2): {"fd": Mean(5.0, float("nan"), float("nan"))}}
    lines = table_of(compared, {"fd": "FD", "n": "count"}, digits=2).splitlines()
    assert [line.split() for line in lines] == [["FD", "count"], ["a", "0.12", "[0.1,", "0.2]", "700,000"],
                                                ["b", "2", "5", "—"]]


def test_a_panel_for_each_column_and_a_row_for_each_setting():
    rows = [{"moe": moe, "fd": fd, "accuracy": fd / 2} for moe in ("a", "b") for fd in (1.0, 2.0, 4.0)]
    figure = show_comparison(rows, "moe", {"fd": "FD", "accuracy": "right"}, {"a": "first"})
    assert [axes.get_xlabel() for axes in figure.axes] == ["FD", "right"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["first", "b"]
    assert len(show_comparison(rows[:1], "moe", {"fd": "FD"}).axes) == 1, "one seed has no interval, and is shown"


def test_each_seed_and_each_mean_is_a_dot_and_what_a_setting_lacks_is_left_out():
    rows = [{"moe": "a", "k": 1, "fd": 1.0, "accuracy": 0.5}, {"moe": "a", "k": 1, "fd": 3.0},
            {"moe": "b", "k": 2, "fd": 2.0}]
    figure = show_comparison(rows, ["moe", "k"], {"fd": "FD", "accuracy": "right"})
    dots = [[list(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"] for axes in figure.axes]
    assert dots == [[[1.0, 3.0], [2.0], [2.0], [2.0]], [[0.5], [0.5]]], "seeds, mean, seeds, mean; b has no accuracy"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a 1", "b 2"]


def test_the_dot_of_a_mean_is_twice_as_wide_as_that_of_a_seed():
    (axes,) = show_comparison([{"k": 1, "fd": fd} for fd in (1.0, 2.0)], "k", {"fd": "FD"}).axes
    assert [line.get_markersize() for line in axes.lines if line.get_marker() == "o"] == [3, 6]


def test_an_interval_is_drawn_from_its_low_to_its_high_end_at_the_place_of_its_setting():
    rows = [{"moe": "a", "fd": fd} for fd in (1.0, 2.0, 4.0)] + [{"moe": "b", "fd": 2.5}]
    (axes,) = show_comparison(rows, "moe", {"fd": "FD"}).axes
    mean = means_by(rows, "moe", ["fd"])["a"]["fd"]
    (bar,) = [line for part in axes.collections for line in part.get_segments()]
    assert bar.ravel().tolist() == pytest.approx([mean.low, 0, mean.high, 0])
    assert [set(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"] == [{0}, {0}, {1}, {1}]
    assert axes.get_ylim() == (1.5, -0.5) and axes.get_yticks().tolist() == [0, 1], "from top to bottom"


@pytest.mark.parametrize("settings, columns, size", [(1, 1, [3.9, 1.38]), (2, 1, [3.9, 1.76]), (5, 2, [7.0, 2.9])])
def test_the_picture_of_a_comparison_grows_with_its_settings_and_its_columns(settings, columns, size):
    names = {"fd": "FD", "accuracy": "right"}
    rows = [{"k": k, "fd": seed, "accuracy": seed} for k in range(settings) for seed in (1.0, 2.0)]
    figure = show_comparison(rows, "k", dict(list(names.items())[:columns]))
    assert figure.get_size_inches().tolist() == pytest.approx(size)


def test_results_are_kept_in_a_new_folder_or_over_what_was_there(tmp_path):
    run, out = write_run(tmp_path, seconds=1.0), tmp_path / "new" / "results"
    first = archive_run(run, "a", out)
    assert archive_run(run, "a", out) == first == read_results("a", out)
