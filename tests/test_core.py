# Made from nbs/80_core.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import errno
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    in_short,
    json_text,
    machine,
    one_line,
    process_rank,
    renamed_arguments,
    require_number,
    require_whole,
    text_bytes,
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


WHOLE = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
BROKEN = [np.float16, np.float32, np.float64, np.longdouble]
TENSORS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
           torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("value", [
    2, 2.0, *(kind(2) for kind in WHOLE + BROKEN), np.array(2), np.array(2.0),
    *(torch.tensor(2, dtype=kind) for kind in TENSORS), torch.tensor(2.0, requires_grad=True)], ids=repr)
def test_a_number_of_every_width_is_the_number_that_it_holds(value):
    number = require_number("steps", value, 0, 10)
    assert number == 2 and type(number) in (int, float) and checked_index("t", value, 3) == 2
    if type(number) is int:
        assert require_whole("steps", value, 1) == 2
    else:
        with pytest.raises(UserError, match="allowed: a whole number, 1 or more"):
            require_whole("steps", value, 1)


@pytest.mark.parametrize("value", [
    True, np.True_, torch.tensor(True), "2", None, [2], np.array([2]), torch.tensor([2]), torch.tensor([[2], [3]]), 2j,
    np.nan, np.float32("inf"), torch.tensor(float("nan")), torch.zeros((), device="meta"), np.datetime64("2026-11-27"),
    -1, 11, np.int8(-1), np.uint64(2**64 - 1), 10**400], ids=repr)
def test_what_is_no_number_or_too_large_a_one_is_refused_in_one_line(value):
    for check in (lambda: require_number("steps", value, 0, 10), lambda: require_whole("steps", value, 0, 10)):
        with pytest.raises(UserError, match="steps=.* is not possible; allowed: a .*number from 0 to 10") as error:
            check()
        assert "\n" not in str(error.value) and len(str(error.value)) < 160


def test_a_long_value_is_told_in_short():
    assert in_short(torch.zeros(3, 3)) == "tensor([[0., 0., 0.], [0., 0., 0.], [0., 0., 0.]])"
    assert in_short(list(range(100)), 12) == "[0, 1, 2,  …" and in_short("x" * 12, 12) == "x" * 12


def test_an_argument_that_was_renamed_tells_its_new_name():
    @renamed_arguments(objective="prediction_type")
    def diffusion(prediction_type="v"):
        return prediction_type
    assert diffusion("x0") == diffusion(prediction_type="x0") == "x0"
    with pytest.raises(UserError, match="objective is now prediction_type: write prediction_type='eps'"):
        diffusion(objective="eps")
    assert diffusion.__name__ == "diffusion", "help() and messages still tell the function's own name"


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


def test_json_holds_neither_nan_nor_infinity_and_tells_what_was_not_computed(tmp_path):
    results = {"fd": (1.0, float("nan"), np.float32("inf")), "a": {"b": torch.tensor(-math.inf)},
               "n": np.int64(3), "ok": 0.5}
    write_json(tmp_path / "r.json", results)

    def refuse(word):
        raise AssertionError(f"{word} in JSON")
    assert json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse) == {
        "fd": [1.0, None, None], "a": {"b": None}, "n": 3, "ok": 0.5,
        "not_computed": {"fd.1": "not a number (NaN)", "fd.2": "infinite", "a.b": "infinite"}}
    assert math.isnan(results["fd"][1]), "what was given is left as it was"


def test_a_reason_that_was_given_stays():
    told = json.loads(json_text({"fd": math.nan, "not_computed": {"fd": "5 real images", "density": "k = 5"}}))
    assert told == {"fd": None, "not_computed": {"fd": "5 real images", "density": "k = 5"}}
    assert json_text({"fd": 1.5}) == '{\n  "fd": 1.5\n}', "nothing is said where all is there"


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
