# Made from nbs/16_commands.ipynb by `pmd-dev tests`. Edit the notebook.
import contextlib
import csv
import json
import pytest
import re
import shlex
import signal
import subprocess
import sysconfig
import torch
from matplotlib import image as pictures
from omegaconf import OmegaConf
from pathlib import Path
from perceiver_moe_diffusion.commands import COMPARED
from perceiver_moe_diffusion.commands import SHOWN
from perceiver_moe_diffusion.commands import build
from perceiver_moe_diffusion.commands import make
from perceiver_moe_diffusion.commands import pmd_evaluate
from perceiver_moe_diffusion.commands import pmd_sample
from perceiver_moe_diffusion.commands import pmd_train
from perceiver_moe_diffusion.commands import same_settings
from perceiver_moe_diffusion.commands import save_log
from perceiver_moe_diffusion.commands import saved_settings
from perceiver_moe_diffusion.config import load_config
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.training import DiffusionModule
from safetensors.torch import load_file


QUICK = ["model.dim=32", "model.num_latents=4", "model.depth=1", "sampler.steps=3",
         "evaluation.samples_per_class=4", "evaluation.max_fd_images=40", "evaluation.classifier_steps=20"]


@pytest.mark.parametrize("wrong, said", [
    ("moe.top_k=9", "top_k=9"), ("model.num_heads=5", "num_heads=5"), ("model.adapter.stem_channels=12", "stem_channels=12"),
    ("sampler.steps=5000", "1 to 1000"), ("data.batch_size=5000", "data.batch_size=5000"), ("ema_decay=2", "ema_decay=2"),
    ("checkpoint_every=0", "checkpoint_every=0"), ("checkpoint_every=1.5", "checkpoint_every=1.5")])
def test_a_mistake_inside_a_part_is_found_and_named(wrong, said):
    with pytest.raises(UserError) as refused:
        build(load_config([wrong])).data.setup("fit")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_what_a_library_refuses_becomes_one_line():
    with pytest.raises(UserError) as refused:
        make(load_config(["trainer.precision=seven"]).trainer)
    assert "lightning.Trainer" in str(refused.value) and "seven" in str(refused.value) and "\n" not in str(refused.value)


def test_the_seed_decides_the_first_weights():
    weights = lambda seed: build(load_config([*QUICK, f"seed={seed}"])).module.model.core.latents
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@pytest.fixture
def settings_folder(tmp_path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(load_config(QUICK)))
    return tmp_path


def test_settings_that_do_not_change_what_is_learned_are_free(settings_folder):
    same_settings(load_config(QUICK), settings_folder)
    same_settings(load_config([*QUICK, "trainer.devices=2", "checkpoint_every=7", "trainer.max_time=00:00:01:00"]), settings_folder)


@pytest.mark.parametrize("change, said", [
    ("trainer.max_steps=7", "trainer.max_steps=7"), ("seed=1", "seed=1"), ("moe.top_k=1", "moe.top_k=1 is not possible: the run has moe.top_k=2"),
    ("diffusion.objective=eps", "diffusion.objective=eps"), ("moe=dense", "moe"), ("data.val_fraction=0.2", "data.val_fraction=0.2")])
def test_other_settings_are_refused_and_named(settings_folder, change, said):
    with pytest.raises(UserError) as refused:
        same_settings(load_config([*QUICK, change]), settings_folder)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", [None, "a: [1, 2", "a: ${b", "\x00"])
def test_settings_that_cannot_be_read(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        saved_settings(tmp_path)


def test_logs_of_a_run_in_parts_become_one_table(tmp_path):
    first, second = (tmp_path / "log" / f"from_step_{step:07d}" / "metrics.csv" for step in (0, 20))
    for path, text in ((first, "loss,step,val_loss\n0.9,10,\n0.8,20,\n0.5,30,\n"), (second, "loss,step,val_loss\n0.7,30,\n,30,0.6\n0.4,40,\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    save_log(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,loss,val_loss", "10,0.9,", "20,0.8,", "30,0.7,", "30,,0.6", "40,0.4,"]
    assert (tmp_path / "loss.png").is_file()


def test_a_run_too_short_for_a_log_still_has_its_files(tmp_path):
    save_log(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().strip() == "step,loss,val_loss" and (tmp_path / "loss.png").is_file()


def typed_in(capsys, function, *arguments):
    "Run a command in this process: exit status, what it printed, what it complained."
    capsys.readouterr()
    try:
        function(list(arguments))
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    return (status, *capsys.readouterr())


def refused(capsys, function, *arguments):
    "The one line that a person's mistake must be."
    status, _, err = typed_in(capsys, function, *arguments)
    assert status == 2 and err.count("\n") == 1 and err.startswith("pmd-") and "Traceback" not in err, err
    return err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "The folder of a run from beginning to end."
    folder = tmp_path_factory.mktemp("runs") / "finished"
    pmd_train([*QUICK, "trainer.max_steps=12", "trainer.log_every_n_steps=2", f"run_dir={folder}"])
    return folder


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    "An empty working directory."
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mistake, said", [
    ("model.num_latnets=64", "Did you mean model.num_latents"), ("modle=perceiver", "modle"), ("data=digit", "Did you mean digits"),
    ("trainer.max_steps=many", "max_steps"), ("trainer.max_steps=-5", "trainer.max_steps=-5"), ("seed=-1", "seed=-1"), ("seed=1.5", "seed"),
    ("moe.top_k=9", "top_k=9"), ("model.num_heads=5", "num_heads=5"), ("sampler.guidance_scale=nan", "guidance_scale=nan"),
    ("sampler.steps=0", "sampler.steps=0"), ("sampler.steps=2000", "1 to 1000"), ("trainer.precision=seven", "seven"),
    ("trainer.strategy=fast", "fast"), ("data.batch_size=5000", "data.batch_size=5000"), ("ema_decay=nan", "ema_decay"),
    ("resume=nowhere", "last.ckpt"), ("run_dir=occupied", "holds files already"), ("run_dir=occupied/file", "cannot be written"),
    ("run_dir=occupied/file/below", "cannot be written"), ("model.dim", "KEY=VALUE"), ("--foo", "option --foo"), ("seed=0,1", "-m")])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(somewhere, capsys, mistake, said):
    occupied = somewhere / "occupied"
    occupied.mkdir()
    (occupied / "file").write_text("mine")
    assert said in refused(capsys, pmd_train, mistake)
    assert list(somewhere.iterdir()) == [occupied] and [p.name for p in occupied.iterdir()] == ["file"]
    assert (occupied / "file").read_text() == "mine"


def test_a_run_folder_is_complete(finished):
    assert {p.name for p in finished.iterdir()} >= {"config.yaml", "metrics.csv", "metrics.json", "config.json", "model.safetensors",
                                                    "samples.png", "denoising.png", "routing.png", "loss.png"}
    assert not [p for p in finished.rglob("*") if p.name.startswith(".")], "no temporary file may stay behind"
    results = json.loads((finished / "metrics.json").read_text())
    for name in ("conditional_accuracy", "fd", "fd_floor", "min_expert_load", "train_seconds", "parameters"):
        assert isinstance(results[name], (int, float)) and results[name] >= 0
    assert results["guidance_scale"] == 2 and results["train_steps"] == 12 and results["seed"] == 0
    for name in ("samples", "denoising", "routing", "loss"):
        assert pictures.imread(finished / f"{name}.png").std() > 0.01


def test_the_metrics_table_has_the_losses(finished):
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["step", "loss", "val_loss"]
    assert [int(row["step"]) for row in rows if row["loss"]] == [1, 3, 5, 7, 9, 11]


def test_the_saved_configuration_makes_the_same_run(finished):
    same_settings(load_config([*QUICK, "trainer.max_steps=12"]), finished)
    config = OmegaConf.load(finished / "config.yaml")
    assert config.trainer.max_steps == 12 and config.model.net.core.dim == 32, "links are resolved"


def test_the_last_lines_are_the_results_and_the_folder(somewhere, capsys):
    status, out, err = typed_in(capsys, pmd_train, *QUICK, "trainer.max_steps=2")
    lines = out.splitlines()
    folder = Path(lines[-1].removeprefix("run folder: "))
    assert status == 0 and re.fullmatch(r"runs/\d{8}-\d{6}-digits-seed0", str(folder)) and (folder / "model.safetensors").is_file()
    assert lines[0].startswith("model saved") and lines[1].startswith("conditional accuracy at s=2")
    assert [line.split("  ")[0].strip() for line in lines[-3:-1]] == ["parameters", "seconds of training"]
    assert len(lines) == 2 + len(SHOWN), "nothing else is printed"
    assert {line.strip().split(":")[0] for line in re.split(r"[\r\n]", err) if line.strip()} <= {"training"}, "only the progress line"


def test_the_same_command_gives_the_same_weights(finished, tmp_path):
    pmd_train([*QUICK, "trainer.max_steps=12", "trainer.log_every_n_steps=2", f"run_dir={tmp_path / 'again'}"])
    first, again = (load_file(folder / "model.safetensors") for folder in (finished, tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (finished / "samples.png").read_bytes() == (tmp_path / "again" / "samples.png").read_bytes()


@contextlib.contextmanager
def ctrl_c_at(step, times=1):
    "Press Ctrl-C while the given step is computed."
    original = DiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    DiffusionModule.training_step = training_step
    try:
        yield
    finally:
        DiffusionModule.training_step = original


def test_interrupted_and_resumed_equals_uninterrupted(finished, somewhere, capsys):
    overrides = [*QUICK, "trainer.max_steps=12", "trainer.log_every_n_steps=2"]
    with ctrl_c_at(6):
        status, out, err = typed_in(capsys, pmd_train, *overrides, "run_dir=my run")
    assert status == 130 and out == ""
    message = err.splitlines()[-1]
    assert message.startswith("pmd-train: Stopped at step 7 of 12. Resume with: pmd-train ")
    assert sorted(p.name for p in Path("my run").iterdir()) == ["config.yaml", "last.ckpt", "log"]
    again = shlex.split(message.partition("Resume with: pmd-train ")[2])
    assert again == ["resume='my run'", *overrides]
    assert "seed=1" in refused(capsys, pmd_train, *again, "seed=1")
    status, out, _ = typed_in(capsys, pmd_train, *again)
    assert status == 0 and out.splitlines()[-1] == "run folder: my run"
    expected, resumed = load_file(finished / "model.safetensors"), load_file("my run/model.safetensors")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert (finished / "samples.png").read_bytes() == Path("my run/samples.png").read_bytes()
    with open("my run/metrics.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["loss"]] == [1, 3, 5, 7, 9, 11], "both parts are in the table"


def test_a_second_ctrl_c_stops_at_once(somewhere, capsys):
    with ctrl_c_at(3, times=2):
        status, _, err = typed_in(capsys, pmd_train, *QUICK, "trainer.max_steps=12", "run_dir=twice")
    assert status == 130 and err.splitlines()[-1] == "pmd-train: Stopped at step 3 of 12. There is no checkpoint yet: start again."
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # Ctrl-C works again afterwards


def test_a_damaged_checkpoint_is_one_line(somewhere, capsys):
    folder = somewhere / "damaged"
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(load_config(QUICK)))
    (folder / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    assert "cannot be read as a checkpoint" in refused(capsys, pmd_train, *QUICK, "resume=damaged")


@pytest.mark.parametrize("mistake, said", [
    ([], "run=PATH"), (["run=nowhere"], "no model at nowhere"), (["run=5"], "no model at 5"), (["run={run}", "label=10"], "0 to 9"),
    (["run={run}", "label=-1"], "0 to 9"), (["run={run}", "label=three"], "0 to 9"), (["run={run}", "label=2.5"], "0 to 9"),
    (["run={run}", "label=[]"], "0 to 9"), (["run={run}", "out=nowhere/x.png"], "a folder that exists"), (["run={run}", "out=x.jpg"], ".png"),
    (["run={run}", "out=5"], ".png"), (["run={run}", "count=0"], "count=0"), (["run={run}", "count=1.5"], "count=1.5"), (["run={run}", "seed=-1"], "seed=-1"),
    (["run={run}", "steps=2000"], "1 to 1000"), (["run={run}", "steps=0"], "steps=0"), (["run={run}", "guidance_scale=nan"], "nan"),
    (["run={run}", "lable=3"], "Did you mean label"), (["run={run}", "-m"], "option -m")])
def test_a_wrong_wish_for_a_picture_is_one_line(finished, somewhere, capsys, mistake, said):
    assert said in refused(capsys, pmd_sample, *(text.format(run=finished) for text in mistake))
    assert list(somewhere.iterdir()) == []


def test_a_picture_of_what_was_asked_for(finished, somewhere, capsys):
    status, out, _ = typed_in(capsys, pmd_sample, f"run={finished}", "label=3", "guidance_scale=3", "steps=2", "seed=0", "out=three.png")
    assert (status, out) == (0, "1 images: three.png\n") or (status, out) == (0, "1 image: three.png\n")
    assert pictures.imread("three.png").shape[:2] == (160, 160)
    pmd_sample([f"run={finished}", "label=[3,7]", "count=3", "sampler=ddim", "steps=2"])
    assert pictures.imread("samples.png").shape[:2] == ((2 * 8 + 1) * 20, (3 * 8 + 2) * 20)
    first = Path("samples.png").read_bytes()
    pmd_sample([f"run={finished}", "label=[3,7]", "count=3", "sampler=ddim", "steps=2"])
    assert Path("samples.png").read_bytes() == first, "the same command draws the same picture"
    pmd_sample([f"run={finished}", "label=[3,7]", "count=3", "sampler=ddim", "steps=2", "seed=1"])
    assert Path("samples.png").read_bytes() != first


def test_a_run_is_measured_again(finished, somewhere, capsys):
    status, out, _ = typed_in(capsys, pmd_evaluate, f"run={finished}", *QUICK[-3:])
    again, first = (json.loads((finished / name).read_text()) for name in ("evaluation.json", "metrics.json"))
    assert status == 0 and out.splitlines()[-1].startswith("written: ")
    assert again["conditional_accuracy"] == first["conditional_accuracy"] and again["fd"] == pytest.approx(first["fd"])


def test_data_other_than_those_of_the_run_are_refused(finished, somewhere, capsys):
    assert "data.split_seed=1" in refused(capsys, pmd_evaluate, f"run={finished}", "data.split_seed=1")
    for name in ("cat", "dog"):
        (somewhere / "pets" / name).mkdir(parents=True)
        for i in range(4):
            pictures.imsave(somewhere / "pets" / name / f"{i}.png", torch.rand(9, 9).numpy())
    pets = ["data=image_folder", f"data.root={somewhere / 'pets'}", "data.image_size=8", "data.val_fraction=0.3", "data.test_fraction=0.3"]
    assert "cat, dog" in refused(capsys, pmd_evaluate, f"run={finished}", *pets)
    assert "no model at nowhere" in refused(capsys, pmd_evaluate, "run=nowhere")
    assert "run=PATH" in refused(capsys, pmd_evaluate)


def test_a_model_can_be_passed_on_without_its_run(finished, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    assert typed_in(capsys, pmd_evaluate, f"run={tmp_path}", *QUICK[-3:])[0] == 0


def test_a_sweep_ends_in_a_row_per_job_and_survives_a_job_that_fails(somewhere, capsys):
    status, out, err = typed_in(capsys, pmd_train, "-m", *QUICK, "trainer.max_steps=2", "moe.top_k=1,9", "moe.num_experts=3", "seed=4,5", "run_dir=sweep")
    assert status == 0 and "job 3 failed: top_k=9 is not possible" in err and "job 4 failed" in err
    lines = out.splitlines()
    assert lines[-1] == "sweep folder: sweep"
    head, *rows = [line.split() for line in lines[-6:-1]]
    assert head == ["job", "moe.top_k", "seed", *COMPARED]
    assert [row[:3] for row in rows] == [["0", "1", "4"], ["1", "1", "5"], ["2", "9", "4"], ["3", "9", "5"]]
    assert [row[3] == "failed" for row in rows] == [False, False, True, True]
    with open("sweep/sweep.csv", newline="") as file:
        table_rows = list(csv.DictReader(file))
    assert [row["moe.top_k"] for row in table_rows] == ["1", "1", "9", "9"] and float(table_rows[0]["fd"]) > 0 and "top_k=9" in table_rows[2]["error"]
    assert sorted(p.name for p in Path("sweep").iterdir()) == ["000-moe.top_k-1-seed-4", "001-moe.top_k-1-seed-5", "sweep.csv"]
    assert "holds a sweep already" in refused(capsys, pmd_train, "-m", *QUICK, "seed=1,2", "run_dir=sweep")


@pytest.mark.parametrize("mistake, said", [
    (["seed=0,one"], "seed"), (["model.num_latnets=1,2"], "num_latents"), (["seed=interval(0,1)"], "cannot be swept"), (["seed=0,1", "a=(b"], "cannot be read"),
    (["seed=0,1", "trainer.devices=2"], "trainer.devices=1"), (["moe.top_k=8,9", "run_dir=none"], "Every job of the sweep failed")])
def test_a_mistake_in_a_sweep(somewhere, capsys, mistake, said):
    status, _, err = typed_in(capsys, pmd_train, *QUICK, *mistake, "--multirun")
    assert status == 2 and said in err.splitlines()[-1] and "Traceback" not in err
    assert all(p.name == "none" for p in somewhere.iterdir())


@pytest.mark.parametrize("function", [pmd_train, pmd_sample, pmd_evaluate])
def test_help_and_cfg(somewhere, capsys, function):
    for option in ("--help", "-h"):
        status, out, err = typed_in(capsys, function, option, "no.such=key")
        assert (status, err) == (0, "") and "usage: pmd-" in out and "seed: 0" in out
    status, out, err = typed_in(capsys, function, "--cfg", "seed=3")
    assert (status, err) == (0, "") and "seed: 3" in out
    assert "option --foo" in refused(capsys, function, "--foo")
    assert list(somewhere.iterdir()) == []


def test_the_console_script_in_a_process_of_its_own(somewhere):
    script = Path(sysconfig.get_path("scripts")) / "pmd-train"
    done = subprocess.run([script, "model.num_latnets=3"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pmd-train: There is no setting 'model.num_latnets'. Did you mean model.num_latents?\n"
    assert list(somewhere.iterdir()) == []
