# Made from nbs/86_train.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import contextlib
import csv
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.pipelines.files import load_pipeline
from perceiver_moe_diffusion.runs.build import build_run
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.train import save_model, shape_as_list, train
from perceiver_moe_diffusion.tools.testing import QUICK, changed, quick_config


def test_the_orchestrator_fits_on_a_screen():
    assert len(inspect.getsource(train).splitlines()) <= 40


def test_the_orchestrator_compares_nothing_with_the_name_of_a_component():
    conf = Path(str(files("perceiver_moe_diffusion.conf")))
    options = {path.stem for path in conf.rglob("*.yaml") if path.parent != conf}
    code = ast.parse(Path(sys.modules[train.__module__].__file__).read_text(encoding="utf-8"))
    compared = {
        leaf.value
        for node in ast.walk(code)
        if isinstance(node, (ast.Compare, ast.match_case))
        for leaf in ast.walk(node)
        if isinstance(leaf, ast.Constant)
    }
    assert {"digits", "top_k", "ddim"} <= options and not compared & options


def test_a_saved_model_is_the_model_and_knows_its_data(tmp_path):
    run = build_run(quick_config())
    made = save_model(quick_config(), run, tmp_path)
    loaded = load_pipeline(tmp_path)
    assert loaded.class_names == made.class_names == run.data.examples.class_names
    assert loaded.model.input_shape == run.data.input_shape == (1, 8, 8) and loaded.model.num_classes == 10
    torch.testing.assert_close(loaded.model.state_dict(), run.module.model.state_dict(), rtol=0, atol=0)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["model"]["input_shape"] == [1, 8, 8], "lists and numbers alone: it can be read without this package"


def test_the_shape_of_a_question_has_two_parts():
    assert shape_as_list((1, 8, 8)) == [1, 8, 8]
    assert shape_as_list({"image": (1, 28, 28), "text": (32,)}) == {"image": [1, 28, 28], "text": [32]}


def test_a_model_that_was_trained_outlives_an_evaluation_that_fails(tmp_path):
    def power_cut(*given, **more):
        raise RuntimeError("the power went off")
    folder = tmp_path / "run"
    config = changed({"trainer.max_steps": 2, "run_dir": str(folder)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.__globals__, "instantiate_node", lambda node: power_cut)
        with pytest.raises(RuntimeError, match="the power went off"):
            train(config)
    assert load_pipeline(folder).class_names and not (folder / "metrics.json").exists()


def old_version():
    "The folder with a stopped run and a model of version 0.3.1."
    return Path(__file__).parent / "data" / "v0_3_1"


OLD_SETTINGS = [  # of the command in its README
    "model.dim=16", "model.num_latents=2", "model.depth=1", "model.num_heads=2", "model.adapter.stem_channels=8",
    "moe.num_experts=2", "moe.top_k=1", "moe.mult=1.0", "trainer.max_steps=40", "trainer.val_check_interval=20",
    "checkpoint_every=20", "data.batch_size=16", "evaluation.samples_per_class=2", "evaluation.classifier_steps=5",
    "evaluation.max_fd_images=20"]


@pytest.fixture
def old_run(tmp_path):
    "The stopped run of version 0.3.1, in a folder that may be changed."
    return Path(shutil.copytree(old_version() / "run", tmp_path / "old run"))


def test_a_run_that_version_0_3_1_began_ends_in_the_same_weights(old_run):
    assert train(load_config([*OLD_SETTINGS, f"resume={old_run}"]), OLD_SETTINGS) == old_run
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (old_run, old_version() / "model"))
    assert resumed.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=1e-4, rtol=0)
    results = json.loads((old_run / "metrics.json").read_text())
    assert results["train_steps"] == 40 and results["command"].startswith("pmd-train model.dim=16")


def test_the_log_of_an_old_run_goes_on(old_run):
    train(load_config([*OLD_SETTINGS, f"resume={old_run}"]))
    assert sorted(path.name for path in (old_run / "log").iterdir()) == ["from_step_0000000", "from_step_0000020"]
    with open(old_run / "metrics.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val_loss"]] == [19, 39], "both parts"


def test_an_old_run_with_other_settings_is_refused(old_run):
    with pytest.raises(UserError, match="optimizer.lr=0.5 is not possible"):
        train(load_config([*OLD_SETTINGS, "optimizer.lr=0.5", f"resume={old_run}"]))
    assert sorted(path.name for path in old_run.iterdir()) == ["config.yaml", "last.ckpt", "log"], "nothing was written"


BAD_DAYS = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the limit ends the process
from perceiver_moe_diffusion.runs import train as training
from perceiver_moe_diffusion.runs.cli import pmd_train
from perceiver_moe_diffusion.tools.testing import QUICK

def limit(what, size):
    resource.setrlimit(what, (size, resource.getrlimit(what)[1]))

def run(*overrides):
    try: pmd_train([*QUICK, "trainer.max_steps=8", *overrides])
    except SystemExit as stopped: print("status", stopped.code, file=sys.stderr)

limit(resource.RLIMIT_FSIZE, 100_000)
run("checkpoint_every=5", "run_dir=no-checkpoint")
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)

fit = training.fit
def fit_and_fill(*given):
    seconds = fit(*given)
    limit(resource.RLIMIT_FSIZE, 100_000)
    return seconds
training.fit = fit_and_fill
run("run_dir=no-model")
training.fit = fit
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
run("resume=no-model")
run("run_dir=good-day")

used = int(open("/proc/self/statm").read().split()[0]) * 4096
limit(resource.RLIMIT_AS, used + 300 * 2**20)
run("data.batch_size=1200", "model.dim=256", "run_dir=no-memory")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these limits are Linux's")
def test_bad_days(tmp_path):
    done = subprocess.run([sys.executable, "-c", BAD_DAYS], cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stderr.replace("\r", "\n").splitlines()
    told = [line for line in lines if line.startswith(("pmd-", "status", "Trace"))]
    assert [line for line in told if not line.startswith("pmd-")] == 3 * ["status 2"], done.stderr
    no_checkpoint, no_model, no_memory = (line for line in told if line.startswith("pmd-"))
    assert "no-checkpoint/last.ckpt cannot be written: File too large (1.6 MB or more needed)" in no_checkpoint
    assert no_checkpoint.endswith("Stopped at step 5 of 8. There is no checkpoint yet: start again.")
    assert "no-model/model.safetensors cannot be written: File too large (0.4 MB or more needed)" in no_model
    assert "at step 8. Save and measure its model with: pmd-train resume=no-model model.dim=32" in no_model
    assert "not enough memory for training. Lower data.batch_size (now 1200) or model.dim (now 256)" in no_memory
    assert {path.name for path in (tmp_path / "no-checkpoint").iterdir()} == {"config.yaml", "log"}
    assert not list(tmp_path.rglob(".*")), "no temporary file may stay behind"
    saved, good = (load_file(tmp_path / name / "model.safetensors") for name in ("no-model", "good-day"))
    assert saved.keys() == good.keys() and all(torch.equal(saved[name], good[name]) for name in good)
    results = json.loads((tmp_path / "no-model" / "metrics.json").read_text())
    assert results["train_steps"] == 8 and results["command"].endswith("resume=no-model")


FULL_DISK = """
import sys
from perceiver_moe_diffusion.runs.cli import pmd_train
from perceiver_moe_diffusion.runs import trainer
from perceiver_moe_diffusion.tools.testing import QUICK

class Fills(trainer.ProgressLine):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 7:
            with open("filler", "wb") as file:
                while True: file.write(bytes(2**16))

trainer.ProgressLine = type("ProgressLine", (Fills,), {
    "on_train_batch_start": lambda self, *given: suppressed(Fills.on_train_batch_start, self, *given)})
def suppressed(function, *given):
    try: function(*given)
    except OSError: pass  # now it is full
pmd_train([*QUICK, "trainer.max_steps=20", "checkpoint_every=5", "trainer.log_every_n_steps=1", "run_dir=run"])
"""


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 8 MB, in memory."
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(small_disk):
    line = [sys.executable, "-c", FULL_DISK]
    done = subprocess.run(line, cwd=small_disk, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    told = done.stderr.splitlines()[-1]
    assert "run/last.ckpt cannot be written: No space left on device (1.6 MB or more needed, " in told
    assert "The old file is whole. Make room" in told
    assert "Stopped at step 10 of 20; the checkpoint is from step 5. Resume with: pmd-train resume=run" in told
    assert torch.load(small_disk / "run" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert not list(small_disk.rglob(".*")), "no temporary file may stay behind"


TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=1000000", "checkpoint_every=2"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks up processes in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(tmp_path, victim):
    (tmp_path / "main.py").write_text("from perceiver_moe_diffusion.runs.cli import pmd_train\npmd_train()\n")
    line, run = [sys.executable, "main.py", *QUICK, *TWO, "run_dir=run"], tmp_path / "run"
    with open(tmp_path / "told", "w+") as told:
        first = subprocess.Popen(line, cwd=tmp_path, stdout=told, stderr=told)
        try:
            until((run / "last.ckpt").exists, 300)
            second, = children(first.pid)
            os.kill(second if victim else first.pid, signal.SIGKILL)
            killed = time.monotonic()
            until(lambda: first.poll() is not None and not Path(f"/proc/{second}").exists(), 30)
            assert time.monotonic() - killed < 10
        finally:
            first.kill()
        told.seek(0)
        lines = told.read().replace("\r", "\n").splitlines()
    said = [line for line in lines if "pmd-train: " in line or "Trace" in line]
    assert len(said) == 1 and f"that train together, process {victim} was lost" in said[0], said
    assert re.search(r"Stopped at step \d+ of 1000000.*Resume with: pmd-train resume=run ", said[0])


def until(there, seconds):
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def children(parent):
    "The processes that a process has started."
    stats = {int(path.name): path / "stat" for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = []
    for number, stat in stats.items():
        with contextlib.suppress(OSError):
            found += [number] * (int(stat.read_text().rpartition(")")[2].split()[1]) == parent)
    return found


def write_drawings(root: Path, classes: int, each: int, size: int = 8, same: bool = False) -> Path:
    "A folder of class folders of small noisy pictures, each class of another brightness; or all of them equal."
    random = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(100, size=(size, size)) + 150 * label // max(1, classes - 1)
            picture = PIL.Image.fromarray((pixels * (not same)).astype(np.uint8))
            picture.save(root / f"class {label}" / f"{number}.png")
    return root


def drawings_config(root: Path, *more: str):
    "A quick run on a folder of drawings."
    return load_config([*QUICK, "data=image_folder", f"data.root={root}", "data.dataset.image_size=8",
                        "data.dataset.channels=1", "data.batch_size=8", "trainer.max_steps=3", *more])


FEW = {"fd": "5 test images; 64 features need at least 65", "density": "5 test images; k=5 needs at least 6",
       "coverage": "5 test images; k=5 needs at least 6"}
LINE = ("not computed: fd (5 test images; 64 features need at least 65); "
        "density and coverage (5 test images; k=5 needs at least 6)")


def test_two_classes_of_twelve_images_are_trained_and_judged(tmp_path, capsys):
    config = drawings_config(write_drawings(tmp_path / "drawings", 2, 12), f"run_dir={tmp_path / 'run'}")
    folder = train(config)
    lines = capsys.readouterr().out.splitlines()
    told, saved = lines.index(LINE), next(i for i, line in enumerate(lines) if line.startswith("model saved"))
    assert told < saved and lines.count(LINE) == 2, "before training, and under the table"
    results = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert results["not_computed"] == FEW
    assert {"conditional_accuracy", "memorisation", "nearest_distance", "diversity", "flops_per_step"} <= set(results)
    assert not {"fd", "fd_floor", "density", "coverage"} & set(results) and load_pipeline(folder).class_names
    assert (folder / "samples.png").is_file()


def test_one_class_is_trained_on_and_judged_by_pixels(tmp_path, capsys):
    config = drawings_config(write_drawings(tmp_path / "drawings", 1, 12), f"run_dir={tmp_path / 'run'}")
    results = json.loads((train(config) / "metrics.json").read_text(), parse_constant=pytest.fail)
    why = "one class, so a judge has nothing to tell apart"
    assert results["not_computed"] == dict.fromkeys(
        ["conditional_accuracy", "fd", "density", "coverage", "diversity"], why)
    assert "memorisation" in results and capsys.readouterr().out.count(why) == 2


@pytest.mark.parametrize("classes, each, more, said", [
    (2, 12, ["data.batch_size=64"], "data.batch_size=64 is not .*: 1 to 17.*Set data.batch_size=17 or lower"),
    (2, 2, [], "4 images of 2 classes cannot be split.*needs at least 3 images, and 'class 0' has 2.*Add images"),
])
def test_what_cannot_be_trained_on_is_told_before_anything_is_written(tmp_path, classes, each, more, said):
    root = write_drawings(tmp_path / "drawings", classes, each)
    with pytest.raises(UserError, match=said):
        train(drawings_config(root, f"run_dir={tmp_path / 'run'}", *more))
    assert not (tmp_path / "run").exists()


def test_a_classifier_of_one_class_is_refused(tmp_path):
    root = write_drawings(tmp_path / "drawings", 1, 12)
    kind = ["model=classifier", "task=classify", "pipeline=classifier", "evaluation=classify"]
    with pytest.raises(UserError, match="num_classes=1 is not possible; .*one class there is nothing to tell apart"):
        train(load_config([f"data.root={root}", "data=image_folder", "data.batch_size=8", *kind]))


def test_images_that_are_all_equal_are_refused(tmp_path):
    root = write_drawings(tmp_path / "drawings", 2, 12, same=True)
    with pytest.raises(UserError, match="All 17 training examples of the data are equal|images are all equal"):
        train(drawings_config(root, f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_three_images_a_class_are_enough_to_train(tmp_path):
    root = write_drawings(tmp_path / "drawings", 2, 3)
    config = drawings_config(root, f"run_dir={tmp_path / 'run'}", "data.batch_size=2")
    results = json.loads((train(config) / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert results["not_computed"]["diversity"] == "no class has two test images" and "memorisation" in results
