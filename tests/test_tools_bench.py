# Made from nbs/91_bench.ipynb by `pmd-dev tests`. Edit the notebook.
import os
import subprocess
import time
from contextlib import contextmanager

import pytest
import torch

from perceiver_moe_diffusion.tools.bench import as_table, bench_row, forward_backward, run_python, take_turns


@contextmanager
def simulated(slowdown):
    "A machine on which the n-th thing that runs takes its cost × slowdown(n): yields what makes a candidate."
    clock, count = [0.0], [0]

    def candidate(cost):
        def run():
            clock[0] += cost * slowdown(count[0])
            count[0] += 1
        return run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: clock[0])
        yield candidate


def test_candidates_run_in_turns_and_the_warm_up_is_not_counted():
    order, costs = [], iter([100.0, 100.0, 1.0, 10.0, 2.0, 20.0, 3.0, 30.0])
    with simulated(lambda n: next(costs)) as candidate:
        runs = {name: candidate(1.0) for name in "ab"}
        noted = {name: lambda name=name: (order.append(name), runs[name]()) for name in runs}
        seconds = take_turns(noted, rounds=3, warmup=1)
    assert "".join(order) == "abababab" and seconds == {"a": 2.0, "b": 20.0}


def test_a_round_that_was_interrupted_does_not_move_the_median():
    with simulated(lambda n: 50.0 if n in (4, 9) else 1.0) as candidate:
        seconds = take_turns({1: candidate(1.0), 2: candidate(3.0)}, rounds=5, warmup=0)
    assert seconds[2] / seconds[1] == pytest.approx(3.0)


def test_drift_looks_like_a_difference_only_one_after_the_other():
    with simulated(lambda n: 1 + 0.05 * n) as candidate:
        alone = [take_turns({0: candidate(1.0)})[0] for _ in range(2)]
    with simulated(lambda n: 1 + 0.05 * n) as candidate:
        turns = take_turns({0: candidate(1.0), 1: candidate(1.0)})
    assert alone[1] / alone[0] > 1.4 and turns[1] / turns[0] < 1.05


def test_a_program_runs_in_a_process_and_an_environment_of_its_own():
    program = "import os, sys; print(sys.argv[1], os.environ['PMD_KEEP_MEMORY'], os.getpid())"
    *said, process = run_python(program, "7", PMD_KEEP_MEMORY="0").split()
    assert said == ["7", "0"] and int(process) != os.getpid()
    with pytest.raises(subprocess.CalledProcessError):
        run_python("raise SystemExit(1)")


def test_a_step_drops_its_gradients():
    layer = torch.nn.Linear(2, 2)
    forward_backward(layer, torch.ones(1, 2))()
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_a_target_that_is_missing_is_left_open():
    rows = [bench_row("loop", 83.456, "µs a step", 80, "one thread"), bench_row("ratio", 1.04, "× dense")]
    lines = as_table(rows).splitlines()[2:]
    assert lines == ["| loop | 83.5 µs a step | ≤ 80 | one thread |", "| ratio | 1.04 × dense |  |  |"]
