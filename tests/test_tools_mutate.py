# Made from nbs/98_mutate.ipynb by `pmd-dev tests`. Edit the notebook.
import json
import shutil
from pathlib import Path

import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.tools.architecture import PACKAGE
from perceiver_moe_diffusion.tools.faults import faults_of
from perceiver_moe_diffusion.tools.mutate import (
    JUDGED_ROOMS,
    Workbench,
    draw_faults,
    modules_of,
    mutate,
    mutate_words,
    mutation_score,
)
from perceiver_moe_diffusion.tools.workflow import project_root

TINY = '''
SMALLEST = [0.0, 1e-3][1]


def clip(x, low, high):
    "x, but no less than low and no more than high."
    return max(low, min(x, high))


def countdown(n):
    total = 0
    while n > 0:
        n -= 1
        total += 2
    return total


def nobody_tests_me(x):
    return x + 1
'''
TESTS = '''
from perceiver_moe_diffusion.tiny import clip, countdown


def test_countdown():
    assert countdown(3) == 6


def test_clip():
    assert [clip(x, 0, 2) for x in (-1, 1, 3)] == [0, 1, 2]
'''


@pytest.fixture(scope="module")
def tiny_project(tmp_path_factory):
    "The project with a module `tiny` and its tests, and of the package only what the workbench itself needs."
    root, project = tmp_path_factory.mktemp("project"), project_root(Path(__file__).parent)
    (root / "tests").mkdir()
    for name in ("__init__", "core", "tools/__init__", "tools/mutate", "tools/faults", "tools/architecture",
                 "tools/workflow"):
        copied = root / PACKAGE / f"{name}.py"
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / PACKAGE / f"{name}.py", copied)
    (root / PACKAGE / "tiny.py").write_text(TINY)
    (root / "tests" / "test_tiny.py").write_text(TESTS)
    return root


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def bench(tiny_project, tmp_path_factory):
    with Workbench(tiny_project, tmp_path_factory.mktemp("bench")) as bench:
        bench.patience = 3.0
        yield bench


@pytest.mark.parametrize("before, after, by", [
    ("max(low, min(x, high))", "(min(low, min(x, high)))", "test_clip"),
    ("total += 2", "total -= 2", "test_countdown"),
    ("n > 0", "(n >= 0)", "test_countdown"),
    ("n -= 1", "pass", "time limit"),                       # counts down for ever
    ("1", "(2)", "import or collection"),                   # of two numbers the third
    ("x + 1", "(x - 1)", None)])                            # nobody tests it
def test_a_fault_is_noticed_by_the_test_that_fails_or_by_nobody(bench, tiny_project, before, after, by, monkeypatch):
    if by == "time limit":
        monkeypatch.setitem(bench.without_fault("tiny.py"), "wall", 0.5)
    kept = contents(tiny_project), contents(bench.folder / PACKAGE / "tools")
    fault = next(f for f in faults_of(TINY, "tiny.py") if (f.before, f.after) == (before, after))
    found = bench.judge(fault)
    assert (found["noticed"], found["by"]) == (by is not None, by) and found["seconds"] < 60
    assert (bench.folder / PACKAGE / "tiny.py").read_text() == TINY, "taken out again"
    assert (contents(tiny_project), contents(bench.folder / PACKAGE / "tools")) == kept, "the original is never changed"


def test_the_tests_that_run_the_changed_line_come_first(bench):
    calm = bench.without_fault("tiny.py")
    line_of = lambda text: TINY[:TINY.index(text)].count("\n") + 1
    clip, countdown = (calm["lines"][f"tests/test_tiny.py::test_{name}"] for name in ("clip", "countdown"))
    assert line_of("return max") in clip and line_of("n -= 1") in countdown
    assert not set(clip) & set(countdown) and line_of("return x + 1") not in {*clip, *countdown}
    assert bench.run("tests/test_tiny.py", order=["tests/test_tiny.py::test_clip"])["status"] == 0


def test_a_run_goes_on_where_it_was_and_tries_survivors_again(tiny_project, tmp_path):
    out, told, tests = tmp_path / "m.json", [], tiny_project / "tests" / "test_tiny.py"
    first = mutate(tiny_project, ["tiny"], 4, 2, out, told.append)
    survivors = [row for row in first if not row["noticed"]]
    assert len(told) == len(first) == 4 and 0 < len(survivors) < 4
    stored = json.loads(out.read_text())
    assert stored["rows"] == first and stored["command"] == "pmd-dev mutate tiny count=4 seed=2"
    assert stored["of"] == len(faults_of(TINY)) and {"date", "torch", "threads"} <= set(stored["made"])
    try:  # a test is added
        tests.write_text(TESTS.replace("countdown\n", "countdown, nobody_tests_me, SMALLEST\n", 1) +
                         "def test_more(): assert nobody_tests_me(1) == 2 and SMALLEST == 1e-3\n")
        again = mutate(tiny_project, ["tiny"], 4, 2, out, told.append)
    finally:
        tests.write_text(TESTS)
    assert len(told) == 4 + len(survivors) and mutation_score(again) == 1
    assert [row["tries"] for row in again] == [1 + (row in survivors) for row in first]


def test_tests_that_fail_without_a_fault_say_nothing_about_faults(bench):
    (bench.folder / "tests" / "test_core.py").write_text("def test_nothing(): assert False\n")
    with pytest.raises(UserError, match="tests/test_core.py, which fails without a fault .*1 failed"):
        bench.without_fault("core.py")
    with pytest.raises(UserError, match="tools/faults.py, which has no tests/test_tools_faults.py"):
        bench.without_fault("tools/faults.py")


def test_the_draw_follows_from_the_seed(tiny_project):
    draw = lambda count, seed: draw_faults(tiny_project, ["tiny.py"], count, seed)
    assert draw(5, 0) == draw(5, 0) != draw(5, 1)
    assert draw(1000, 0) == (faults_of(TINY, "tiny.py"), len(faults_of(TINY)))


def test_modules_are_found_by_room_and_by_name():
    root = project_root(Path(__file__).parent)
    assert modules_of(root, ["diffusion"]) == ["diffusion/process.py", "diffusion/sampling.py"]
    assert modules_of(root, ["models.moe", "models/moe", "models/moe.py"]) == ["models/moe.py"]
    assert "models/moe.py" in modules_of(root, ["models"])
    with pytest.raises(UserError, match="module models.mow is not possible; allowed: .*models.moe"):
        modules_of(root, ["models.mow"])


@pytest.mark.parametrize("words, told", [
    (["cuont=3"], "mutate with cuont"), (["count=0"], "count=0"), (["count=x"], "count=x"), (["seed=-1"], "seed=-1"),
    (["nothing"], "module nothing")])
def test_words_that_mean_nothing_are_refused(words, told):
    with pytest.raises(UserError, match=told):
        mutate_words(project_root(Path(__file__).parent), words)


def test_five_faults_of_a_module_of_the_project(capsys):
    mutate_words(project_root(Path(__file__).parent), ["models.fourier", "count=5", "seed=0"])
    assert "of 5 noticed" in capsys.readouterr().out.splitlines()[-1]


# (module, where, nth of those that look the same, before, after) -> why the changed program does the same
EQUIVALENT = {
    ("models/adapters.py", "ConvPreprocessor.forward", 0, "self.stem(image).flatten(2).transpose(1, 2)",
     "(self.stem(image).flatten(2).transpose(2, 1))"): "to swap axes 1 and 2 is to swap axes 2 and 1",
    ("models/adapters.py", "FiLM.forward", 0, "torch.addcmul(x + shift, x, scale)",
     "(torch.addcmul(x + shift, scale, x))"): "the factors of a product change places",
    ("models/experts.py", "group_by_sample", 0, "-1", "(1)"): "`rows` has two axes: the last is axis 1",
    ("models/moe.py", "sort_by_expert", 0, "ExpertPairs(order, order // top_k, counts)",
     "(ExpertPairs(order // top_k, order, counts))"):
        "on the meta device there are no values, and both have the same shape",
    ("models/moe.py", "sort_by_expert", 0, "order // top_k", "(order)"): "on the meta device there are no values",
    ("models/upscaler.py", "Upscaler.enlarge", 0,
     'F.interpolate(small, scale_factor=self.factor, mode="bicubic", align_corners=False)',
     "(F.interpolate(small, scale_factor=self.factor, mode='bicubic'))"): "False is what PyTorch takes without a word",
    ("diffusion/process.py", "PredictionType.to_eps", 0, "b / norm", "(b * norm)"):
        "norm = ᾱ + (1 − ᾱ) is 1, but for rounding",
    ("diffusion/sampling.py", "inpaint.hook", 0, "torch.full((len(x),), t_next, device=x.device)",
     "(torch.full((len(x),), t_next))"):
        "`rates` reads its table where t is, and brings what it finds to where the image is: the same numbers",
    ("training/loop.py", "warmup_cosine", 0, "max(1, total)", "(max(total, 1))"):
        "the larger of two is the same in either order",
    ("evaluation/generate.py", "measured_flops", 0, "1", "(0)"):
        "there are as many images as labels: either may be counted",
    ("evaluation/metrics.py", "train_classifier", 0, "torch.random.fork_rng(devices=[])", "(torch.random.fork_rng())"):
        "also keeps the generators of all GPUs, which nobody draws from here: slower, the same numbers",
    ("evaluation/metrics.py", "distribution_figures", 0, "frechet_distance(train.features, test.features)",
     "(frechet_distance(test.features, train.features))"): "a distance is the same in either direction",
    ("evaluation/metrics.py", "distribution_figures", 0, "frechet_distance(conditional.features, test.features)",
     "(frechet_distance(test.features, conditional.features))"): "a distance is the same in either direction",
}
changed_as = lambda row: (row["module"], row["where"], row["nth"], row["before"], row["after"])


def test_the_stored_result_is_good_enough_and_each_survivor_has_its_reason():
    stored = json.loads((project_root(Path(__file__).parent) / "nbs/results/mutation.json").read_text(encoding="utf-8"))
    rows = stored["rows"]
    assert (len(rows), stored["seed"]) == (200, 0) and mutation_score(rows) >= 0.95
    assert {row["module"].partition("/")[0] for row in rows} == set(JUDGED_ROOMS)
    assert {changed_as(row) for row in rows if not row["noticed"]} <= set(EQUIVALENT)
    assert all(EQUIVALENT.values())
