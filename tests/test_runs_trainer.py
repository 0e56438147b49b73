# Made from nbs/85_trainer.ipynb by `pmd-dev tests`. Edit the notebook.
import copy
import functools
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from omegaconf import OmegaConf

from perceiver_moe_diffusion.compat import silence_lightning
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.build import build_run
from perceiver_moe_diffusion.runs.folder import CHECKPOINT, RUN_DIR, choose_folder, open_folder
from perceiver_moe_diffusion.runs.overrides import load_config, read_override
from perceiver_moe_diffusion.runs.trainer import (
    AtomicCheckpoints,
    ProgressLine,
    Stopped,
    fit,
    how_to_go_on,
    make_trainer,
)
from perceiver_moe_diffusion.training.loop import StopOnCtrlC

QUICK = ["model.dim=32", "model.num_latents=4", "model.depth=1", "sampler.steps=3"]
RUN = [*QUICK, "trainer.max_steps=12", "trainer.val_check_interval=6", "trainer.log_every_n_steps=1"]
quick_config = functools.cache(lambda: load_config(RUN))


def changed(changes):
    "A copy of the quick configuration with some values set: much faster than composing it again."
    config = copy.deepcopy(quick_config())
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


def test_the_seconds_of_all_parts_are_added_up():
    first, second = ProgressLine(), ProgressLine()
    first.started -= 60
    second.started -= 5
    second.load_state_dict(first.state_dict())
    assert 65 <= second.seconds < 66
    first.on_exception(None, None, KeyboardInterrupt())  # before the first step there is no line to close


def test_the_line_follows_the_steps_and_shows_the_losses(capsys):
    line, trainer = ProgressLine(), SimpleNamespace(max_steps=20, global_step=3, is_global_zero=True)
    trainer.progress_bar_metrics = {"loss": torch.tensor(0.12345)}
    line.on_train_start(trainer, None)
    for trainer.global_step in range(4, 21):
        line.on_train_batch_end(trainer, None, None, None, 0)
    assert line.bar.n == 20, "a resumed run begins where it was, and the line ends at its last step"
    line.on_train_end(trainer, None)
    shown = capsys.readouterr().err
    assert "3/20" in shown and "20/20" in shown and "loss=0.123" in shown


SMALL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the limit ends the process
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import torch
from pathlib import Path
from perceiver_moe_diffusion.runs.trainer import AtomicCheckpoints

checkpoint, path = {"global_step": 5, "weights": [{"a": torch.zeros(100_000)}]}, Path(sys.argv[1])
last = AtomicCheckpoints(last_step=5)
last.save_checkpoint(checkpoint, path)
print(last.failed)
AtomicCheckpoints(last_step=6).save_checkpoint(checkpoint, path)
"""


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one_and_may_fail_at_the_last_step_only(tmp_path):
    path = tmp_path / CHECKPOINT
    AtomicCheckpoints(9).save_checkpoint({"global_step": 4}, path)
    done = subprocess.run([sys.executable, "-c", SMALL_DISK, path], capture_output=True, text=True, check=False)
    said = f"{path} cannot be written: File too large (0.4 MB or more needed). The old file is whole."
    assert done.stdout.startswith(said) and done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"perceiver_moe_diffusion.core.DiskError: {said}")
    assert list(tmp_path.iterdir()) == [path] and torch.load(path, weights_only=True) == {"global_step": 4}


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    "An empty working directory, and Lightning without its remarks."
    silence_lightning()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trainer_of(config) -> Trainer:
    "The trainer of a configuration, for a folder that is not there."
    return make_trainer(config, Path("run"), StopOnCtrlC(Path("run") / CHECKPOINT))


def test_making_a_trainer_writes_nothing(somewhere):
    trainer = trainer_of(quick_config())
    assert trainer.max_steps == 12 and trainer.logger.log_dir == "run/log/from_step_0000000"
    kinds = {"EMA", "ProgressLine", "StopOnCtrlC", "ModelCheckpoint", "LastStep"}
    assert kinds == {type(callback).__name__ for callback in trainer.callbacks}
    assert list(somewhere.iterdir()) == []


@pytest.mark.parametrize("where, value, said", [
    ("trainer.strategy", "fast", "fast"), ("trainer.accelerator", "abacus", "abacus"),
    ("trainer.precision", "seven", "seven"), ("trainer.max_time", "soon", "soon"), ("ema_decay", 2.0, "ema_decay=2"),
    ("resume", "run", "last.ckpt cannot be read as a checkpoint"),
])
def test_a_mistake_in_the_trainer_is_one_line_and_nothing_is_written(somewhere, where, value, said):
    with pytest.raises(UserError) as refused:
        trainer_of(changed({where: value}))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert list(somewhere.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"hello"])
def test_a_damaged_checkpoint_is_one_line_and_stays_as_it_is(somewhere, content):
    path = somewhere / "run" / CHECKPOINT
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a checkpoint .* Train again from the start"):
        trainer_of(changed({"resume": "run"}))
    assert [p for p in somewhere.rglob("*") if p.is_file()] == [path] and path.read_bytes() == content


class Hostile:
    "Would make a file when it is unpickled."

    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_a_checkpoint_with_code_is_refused_and_no_advice_is_given_to_run_it(somewhere):
    Path("run").mkdir()
    torch.save({"global_step": Hostile()}, Path("run") / CHECKPOINT)
    with pytest.raises(UserError, match="last.ckpt cannot be read as a checkpoint") as refused:
        trainer_of(changed({"resume": "run"}))
    assert "weights_only" not in str(refused.value) and "\n" not in str(refused.value)
    assert not Path("pwned").exists()


def test_a_resumed_run_logs_under_the_step_that_it_starts_from(somewhere):
    Path("run").mkdir()
    torch.save({"global_step": 34}, Path("run") / CHECKPOINT)
    assert trainer_of(changed({"resume": "run"})).logger.log_dir == "run/log/from_step_0000034"


@pytest.mark.parametrize("name", ["run", "my run", "runs/000-seed=1", "runs/[a],b", "it's", "runs/{x}"])
def test_the_command_that_goes_on_leads_to_the_folder_and_keeps_what_was_typed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    trainer = SimpleNamespace(global_step=7, max_steps=12)
    assert how_to_go_on(Path(name), RUN, trainer) == "Stopped at step 7 of 12. There is no checkpoint yet: start again."
    (Path(name) / CHECKPOINT).touch()
    said = how_to_go_on(Path(name), ["run_dir=old", *RUN, "resume=older"], trainer)
    assert said.startswith("Stopped at step 7 of 12. Resume with: pmd-train ")
    first, *others = shlex.split(said.partition("Resume with: pmd-train ")[2])
    assert read_override(first).key_or_group == "resume" and read_override(first).value() == name and others == RUN


def test_the_step_that_a_resumption_goes_on_from_is_told(tmp_path):
    torch.save({"global_step": 6}, tmp_path / CHECKPOINT)
    said = lambda step: how_to_go_on(tmp_path, [], SimpleNamespace(global_step=step, max_steps=12)).partition(": ")[0]
    assert said(6) == "Stopped at step 6 of 12. Resume with"
    assert said(8) == "Stopped at step 8 of 12; the checkpoint is from step 6. Resume with"
    finished = "The training is finished, at step 12; the checkpoint is from step 6. Save and measure its model with"
    assert said(12) == finished


class CtrlC(Callback):
    "Presses Ctrl-C, once or more often, while the step after so many is computed."

    def __init__(self, step: int, times: int = 1):
        self.step, self.times = step, times

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def train_only(overrides, *callbacks: Callback) -> tuple[Trainer, float]:
    "Build, open the folder, fit: the trainer, and the seconds of training."
    config = load_config(overrides)
    run, folder = build_run(config), choose_folder(config)
    stop = StopOnCtrlC(folder / CHECKPOINT)
    trainer = make_trainer(config, folder, stop)
    trainer.callbacks[:0] = callbacks
    open_folder(config, folder)
    return trainer, fit(trainer, config, run, folder, stop, overrides)


def same_weights(one: Trainer, other: Trainer) -> bool:
    "Whether two trainings ended in the same model, to the last bit."
    a, b = (trainer.lightning_module.state_dict() for trainer in (one, other))
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(somewhere):
    with pytest.raises(Stopped) as stopped:
        train_only([*RUN, "run_dir=my run"], CtrlC(4))
    message = str(stopped.value)
    assert message == f"Stopped at step 5 of 12. Resume with: pmd-train {shlex.join(['resume=my run', *RUN])}"
    seconds = torch.load("my run/last.ckpt", weights_only=True)["callbacks"]["ProgressLine"]["seconds"]
    resumed, total = train_only(shlex.split(message.partition("pmd-train ")[2]))
    assert total > seconds > 0, "the time of both parts"
    assert same_weights(resumed, train_only([*RUN, "run_dir=whole"])[0])
    assert sorted(p.name for p in Path("my run/log").iterdir()) == ["from_step_0000000", "from_step_0000005"]


def test_a_second_ctrl_c_ends_at_once_and_ctrl_c_works_again(somewhere):
    with pytest.raises(Stopped, match="Stopped at step 3 of 12. There is no checkpoint yet: start again."):
        train_only([*RUN, "run_dir=run"], CtrlC(3, times=2))
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_the_last_step_stops_nothing(somewhere):
    trainer, seconds = train_only([*RUN, "run_dir=run"], CtrlC(11))
    assert trainer.global_step == 12 and seconds > 0


class Looks(Callback):
    "Looks for the folder in the environment, and then breaks."

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.found = os.environ.get(RUN_DIR)
        raise RuntimeError("power cut")


def test_the_folder_stands_in_the_environment_while_it_trains_and_no_longer(somewhere):
    looks = Looks()
    with pytest.raises(RuntimeError, match="power cut"):
        train_only([*RUN, "run_dir=run"], looks)
    assert looks.found == "run" and RUN_DIR not in os.environ
