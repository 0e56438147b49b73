# Made from nbs/92_benchmarks.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import builtins
import json
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch

from perceiver_moe_diffusion.evaluation.results import read_results
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.tools.bench import run_python
from perceiver_moe_diffusion.tools.benchmarks import (
    DRAW_A_DIGIT,
    FIRST_PICTURE,
    STEP_WITH_MEMORY,
    ShortestPerceiver,
    bench_folder,
    bench_startup,
    pmd_bench,
)


def test_the_shortest_perceiver_is_the_same_mathematics():
    "A speed comparison only counts if both compute the same: with copied weights the outputs agree."
    ours, shortest = PerceiverIO(7, 16, dim=16, num_latents=5, depth=2, num_heads=4), ShortestPerceiver(7, 16, 5, 2, 4)

    def copy(block, short):
        for ours_part, part in (
            (block.attention.to_q, short.q),
            (block.attention.to_kv, short.kv),
            (block.attention.to_out, short.out),
            (block.norm_x, short.norms[0]),
            (block.norm_context, short.norms[1]),
            (block.norm_ff, short.norms[2]),
            (block.feed_forward.mlp[0], short.mlp[0]),
            (block.feed_forward.mlp[3], short.mlp[2]),
        ):
            if list(ours_part.parameters()):
                part.load_state_dict(ours_part.state_dict())

    shortest.latents.data = ours.latents.data.clone()
    copy(ours.stages[0].read, shortest.read)
    for block, short in zip(ours.stages[0].blocks, shortest.blocks):
        copy(block, short)
        short.norms[1] = short.norms[0]  # self-attention: x and context are normed by the same layer
    copy(ours.decoder, shortest.answer)
    inputs, query = torch.randn(2, 9, 7), torch.randn(2, 3, 16)
    torch.testing.assert_close(ours(inputs, query).output, shortest(inputs, query))


@pytest.mark.parametrize("program", [STEP_WITH_MEMORY, FIRST_PICTURE, DRAW_A_DIGIT])
def test_a_program_in_a_text_names_only_what_is_there(program):
    nodes = list(ast.walk(ast.parse(program)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = set(dir(builtins)) | {node.id for node in names if isinstance(node.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert all(hasattr(import_module(node.module), alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.name for alias in node.names}
    assert {node.id for node in names} <= bound


def test_start_up_is_told_as_ratios_to_importing_torch(monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "run", lambda command, **more: started.append(command))
    rows = bench_startup(rounds=2)
    assert [row["target"] for row in rows] == [1.4, 1.6] and all(row["unit"] == "× import torch" for row in rows)
    assert len(started) == 9 and [command[-1] for command in started[:2]] == ["import torch", DRAW_A_DIGIT], "in turns"
    assert started[2][1:3] == ["model=mnist", "label=7"] and Path(started[2][0]).name == "pmd-sample"


def test_drawing_a_digit_needs_neither_lightning_nor_a_drawing_library():
    loaded = set(run_python(f"{DRAW_A_DIGIT}\nimport sys\nprint(*sys.modules)").split())
    assert not loaded & {"lightning", "hydra", "matplotlib", "sklearn", "scipy", "torchvision", "torchmetrics"}
    assert {"torch", "safetensors"} <= loaded


def test_a_folder_is_opened_twice():
    rows = bench_folder(rounds=1, images=40)
    assert [row["target"] for row in rows] == [60, 3] and [row["name"][-5:] for row in rows] == ["first", "again"]
    assert all(0 < row["value"] < 60 and row["note"].startswith("40 images") for row in rows)


@pytest.mark.parametrize("arguments", [["only=everything"], ["rounds=0"], ["fast"], ["json=no/such/folder/x.json"]])
def test_a_mistake_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        pmd_bench(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_and_the_json_hold_the_same_rows(tmp_path, capsys):
    pmd_bench(["only=sampling", "rounds=1", f"json={tmp_path / 'bench.json'}"])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert len(rows) == 3 and all(r["value"] > 0 for r in rows)
    kept = read_results("bench", tmp_path)
    assert [r["name"] for r in kept.rows] == [r["name"] for r in rows]
    assert kept.facts["command"] == "pmd-bench only=sampling rounds=1"
    printed = capsys.readouterr().out
    assert all(r["name"] in printed for r in rows)
