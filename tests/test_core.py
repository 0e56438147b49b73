# Made from nbs/80_core.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import errno
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from perceiver_moe_diffusion.core import (
    Denoiser,
    RandomWords,
    Schedule,
    Stream,
    UserError,
    all_reduce_sum,
    atomic_write,
    check_digest,
    checked_index,
    disk_fault,
    file_digest,
    fold_seed,
    is_out_of_memory,
    machine,
    one_line,
    process_rank,
    renamed_arguments,
    require_number,
    text_bytes,
    told_out_of_memory,
    write_json,
    write_table,
)
from perceiver_moe_diffusion.diffusion.process import cosine, linear, sigmoid
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.mixture_of_denoisers import MixtureOfDenoisers
from perceiver_moe_diffusion.pipelines.files import from_pretrained


@pytest.mark.parametrize("value", [-1, 3, 0.5, True, float("nan"), float("inf"), "1", None])
def test_an_index_is_a_whole_number_below_the_count(value):
    assert checked_index("t", 2, 3) == 2 and checked_index("t", 2.0, 3) == 2
    with pytest.raises(UserError, match="allowed: a whole number from 0 to 2"):
        checked_index("t", value, 3)


def test_a_librarys_error_becomes_a_part_of_a_sentence():
    told = one_line(RuntimeError("sizes\n   do not match: " + 300 * "x"))
    assert told.startswith("RuntimeError: sizes do not match: xxx") and "\n" not in told and len(told) < 230


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 100.1, True, "1", None])
def test_a_number_is_finite_and_within_its_limits(value):
    require_number("guidance_scale", 0, 0, 100)
    require_number("guidance_scale", 100.0, 0, 100)
    with pytest.raises(UserError, match="guidance_scale=.* is not possible; allowed: a finite number from 0 to 100"):
        require_number("guidance_scale", value, 0, 100)


def test_an_argument_that_was_renamed_tells_its_new_name():
    @renamed_arguments(objective="prediction_type")
    def diffusion(prediction_type="v"):
        return prediction_type
    assert diffusion("x0") == diffusion(prediction_type="x0") == "x0"
    with pytest.raises(UserError, match="objective is now prediction_type: write prediction_type='eps'"):
        diffusion(objective="eps")
    assert diffusion.__name__ == "diffusion", "help() and messages still tell the function's own name"


SHORT = """
import resource
import numpy as np, torch
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
from perceiver_moe_diffusion.core import OutOfMemory, told_out_of_memory
for ask in (lambda: torch.zeros(10**10), lambda: np.zeros(10**10), lambda: [0] * 10**10):
    try:
        with told_out_of_memory("three zeros", **{"data.batch_size": 64}, steps=2): ask()
    except OutOfMemory as error: print(error)
"""


def test_too_little_memory_is_one_sentence_whoever_asks_for_it():
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=False)
    said = "There is not enough memory for three zeros. Lower data.batch_size (now 64) or steps (now 2)."
    assert done.stdout.splitlines() == [said] * 3, done.stderr


def test_other_errors_are_not_told_as_a_lack_of_memory():
    for error in (RuntimeError("sizes do not match"), UserError("out of memory"), KeyError("out of memory")):
        with pytest.raises(type(error)) as raised:
            with told_out_of_memory("training", batch_size=1):
                raise error
        assert raised.value is error
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "model.json"
    with atomic_write(target) as file:
        file.write_text("old")
    with pytest.raises(RuntimeError):
        with atomic_write(target) as file:
            file.write_text("ne")
            raise RuntimeError("stopped half-way")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target], "no temporary file may stay behind"


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the limit ends the process
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import torch
from pathlib import Path
from safetensors.torch import save_file
from perceiver_moe_diffusion.core import DiskError, atomic_write, write_json, write_table

folder, big = Path(sys.argv[1]), torch.zeros(100_000)
def save_with_torch(path):
    with atomic_write(path, 400_000) as temporary, open(temporary, "wb") as file:
        torch.save(big, file)
def save_as_safetensors(path):
    with atomic_write(path) as file:
        save_file({"big": big}, file)
ways = {"a.ckpt": save_with_torch, "b.safetensors": save_as_safetensors,
        "c.json": lambda path: write_json(path, {"big": big.tolist()}),
        "d.csv": lambda path: write_table(path, [{"number": i} for i in range(100_000)])}
for name, write in ways.items():
    (folder / name).write_text("old")
    try: write(folder / name)
    except DiskError as error: print(error)
"""


def test_a_disk_that_takes_no_more_is_one_sentence_and_the_old_files_stay(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=False)
    told = done.stdout.splitlines()
    assert len(told) == 4, done.stderr
    for name, line in zip(("a.ckpt", "b.safetensors", "c.json", "d.csv"), told):
        assert line.startswith(f"{tmp_path}/{name} cannot be written: File too large")
    assert "(0.4 MB or more needed). The old file is whole. Make room" in told[0]
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == 4 * ["old"], "no temporary file may stay behind"


@pytest.mark.parametrize("error, fault", [
    (OSError(errno.ENOSPC, "no space"), errno.ENOSPC), (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
    (RuntimeError("I/O error: No space left on device (os error 28)"), 28), (OSError(errno.ENOENT, "not there"), 0),
    (RuntimeError("(os error 2)"), 0), (UserError("(os error 28)"), 0), (KeyError("x"), 0),
])
def test_which_errors_mean_a_full_disk(error, fault):
    assert disk_fault(error) == fault
    try:
        try: raise error
        finally: raise RuntimeError("unexpected pos 640 vs 534")
    except RuntimeError as wrapped:
        assert disk_fault(wrapped) == fault, "also when another error was raised while it was handled"


def test_one_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(1000))
    noted = {"weights": file_digest(path)}
    check_digest(path, noted)
    check_digest(path, {})
    check_digest(path, None)
    path.write_bytes(bytes(999) + b"\x01")
    with pytest.raises(UserError, match="weights is not the file that was saved: its SHA-256"):
        check_digest(path, noted)
    with pytest.raises(UserError, match="not the file that was saved"):
        check_digest(path, "no table of sums")


def test_a_table_has_the_columns_of_all_its_rows(tmp_path):
    write_table(tmp_path / "t.csv", [{"loss": 0.5, "step": 1}, {"step": 2, "error": "stopped"}], first=["step"])
    assert (tmp_path / "t.csv").read_text().splitlines() == ["step,loss,error", "1,0.5,", "2,,stopped"]


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path):
    write_json(tmp_path / "r.json", {"fd": [1.0, 0.9, 1.1]})
    with pytest.raises(TypeError):
        write_json(tmp_path / "r.json", {"fd": torch.zeros(1)})
    assert json.loads((tmp_path / "r.json").read_text()) == {"fd": [1.0, 0.9, 1.1]}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_fold_seed_depends_on_every_part_and_on_their_order():
    seeds = {fold_seed(*parts) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0, 1), (3, 0), (0, 3)]}
    assert len(seeds) == 6
    assert fold_seed(7, 9) == fold_seed(7, 9)


def test_streams_that_share_a_number_differ_in_their_parts():
    step = 7
    training = {
        fold_seed(0, Stream.TRAINING_NOISE, step),
        fold_seed(0, Stream.VALIDATION_NOISE, step),
        fold_seed(0, Stream.INITIAL_WEIGHTS),
        fold_seed(0, step, Stream.AUGMENTATION),
        fold_seed(0, Stream.ROUTER_NOISE, step, 0),
    }
    assert len(training) == 5


def test_the_numbers_of_the_streams_are_those_of_recorded_results():
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == dict(
        TRAINING_NOISE=0,
        VALIDATION_NOISE=1,
        INITIAL_WEIGHTS=1,
        AUGMENTATION=1,
        ROUTER_NOISE=2,
        CLASSIFIER_WEIGHTS=3,
        ROUTING_NOISE=4,
        GUIDED_IMAGES=5,
        CONDITIONAL_IMAGES=6,
        FEW_EXAMPLES=7,
        UPSCALED_IMAGES=7,
        SPECTRUM_NOISE=8,
        INTERVAL_NOISE=9,
    )


def bare_numbers(source):
    "The calls of `fold_seed` in a source text that have a number written out among their parts."
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    folded = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == "fold_seed"]
    is_number = lambda node: isinstance(node, ast.Constant) and isinstance(node.value, int)
    return [ast.unparse(call) for call in folded if any(map(is_number, ast.walk(call)))]


def test_no_bare_number_is_folded_into_a_seed_anywhere_in_the_package():
    sources = [path.read_text() for path in Path(inspect.getfile(UserError)).parent.rglob("*.py")]
    assert sum(source.count("fold_seed(") for source in sources) > 10, "this looks where the calls are"
    assert [call for source in sources for call in bare_numbers(source)] == []


@pytest.mark.parametrize("call, is_bare", [
    ("fold_seed(seed, 7)", True), ("core.fold_seed(7, step)", True), ("fold_seed(seed, step + 1)", True),
    ("fold_seed(*(seed, -1))", True), ("fold_seed(seed, Stream.AUGMENTATION)", False),
    ("fold_seed(seed, epoch)", False), ("other(7)", False)])
def test_a_planted_number_is_found(call, is_bare):
    assert bare_numbers(f"def f(seed, step):\n    return [{call}]") == ([call] if is_bare else [])


def test_words_belong_to_their_stream_and_not_to_its_company():
    together, alone = RandomWords([(1, 0), (1, 1)]), RandomWords([(1, 1)])
    words = together.draw(3, 8)
    assert words.shape == (3, 2, 8) and words.min() >= 0 and words.max() < 2**16
    assert torch.equal(words[:, 1:], torch.cat([alone.draw(1, 8) for _ in range(3)]))


def test_a_text_is_cut_between_characters_and_padded():
    assert text_bytes(["aé", "é", ""], 2).tolist() == [[97, 256], [0xC3, 0xA9], [256, 256]], "é is two bytes"
    assert text_bytes(["ab"], 3, pad=0).tolist() == [[97, 98, 0]]
    with pytest.raises(UserError, match="the single text 'ab' .*allowed: a list of texts. Write"):
        text_bytes("ab", 2)


@pytest.mark.parametrize("model", [PerceiverDenoiser, MixtureOfDenoisers])
def test_what_denoises_is_called_as_the_protocol_says(model):
    names = lambda function: list(inspect.signature(function).parameters)
    assert names(model.forward)[:5] == names(Denoiser.__call__)


def test_a_trained_denoiser_has_what_the_protocol_names():
    model = from_pretrained("digits").model
    assert all(hasattr(model, name) for name in Denoiser.__annotations__)
    assert model.null_label == model.num_classes and len(model.input_shape) == 3


@pytest.mark.parametrize("schedule", [linear, cosine, sigmoid])
def test_a_schedule_falls_from_almost_one_to_almost_zero(schedule):
    made: Schedule = schedule
    alpha_bar = made(50)
    assert alpha_bar.shape == (50,) and (alpha_bar.diff() < 0).all()
    assert 0.9 < alpha_bar[0] < 1 and 0 <= alpha_bar[-1] < 0.7


def test_what_was_measured_tells_on_what():
    facts = machine()
    assert list(facts) == ["date", "python", "torch", "threads", "system"] and facts["torch"] == torch.__version__
    assert json.loads(json.dumps(facts)) == facts


@pytest.fixture
def group_of_one():
    "A distributed run with a single process."
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_alone_the_sum_is_the_value_itself():
    value = torch.ones(3, requires_grad=True)
    assert all_reduce_sum(value) is value


def test_in_a_group_the_sum_is_a_copy_without_a_gradient(group_of_one):
    value = torch.ones(3, requires_grad=True)
    total = all_reduce_sum(value)
    assert torch.equal(total, value) and total is not value and not total.requires_grad


def test_the_rank_is_what_the_launcher_says(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert process_rank() == 0
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert process_rank() == 3
    monkeypatch.setenv("RANK", "1")
    assert process_rank() == 1, "torchrun's comes first"
