# Made from nbs/89_cli.ipynb by `pmd-dev tests`. Edit the notebook.
import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from matplotlib import image as pictures
from omegaconf import OmegaConf
from safetensors.torch import load_file

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.pipelines.files import from_pretrained, load_pipeline
from perceiver_moe_diffusion.runs.build import instantiate_node
from perceiver_moe_diffusion.runs.cli import (
    draw_missing,
    image_names,
    pmd_evaluate,
    pmd_sample,
    pmd_train,
    sample_images,
)
from perceiver_moe_diffusion.runs.folder import same_settings
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.report import RESULT_TITLES, same_data
from perceiver_moe_diffusion.runs.sweep import SWEEP_COLUMNS
from perceiver_moe_diffusion.runs.train import train
from perceiver_moe_diffusion.tools.testing import QUICK, changed, quick_config
from perceiver_moe_diffusion.training.tasks import DiffusionModule


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


RUN = [*QUICK, "trainer.max_steps=12", "trainer.log_every_n_steps=2"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    "A run from beginning to end: its folder, what it printed, what it wrote to stderr."
    out, err = io.StringIO(), io.StringIO()
    with (contextlib.chdir(tmp_path_factory.mktemp("runs")), contextlib.redirect_stdout(out),
          contextlib.redirect_stderr(err)):
        pmd_train(RUN)
        folder = Path(out.getvalue().splitlines()[-1].removeprefix("run folder: "))
        return folder, folder.resolve(), out.getvalue().splitlines(), err.getvalue()


@pytest.fixture
def finished(whole_run):
    "The folder of a run from beginning to end."
    return whole_run[1]


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    "An empty working directory."
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def occupied(somewhere):
    "A folder that holds a file already, the only thing in the working directory."
    folder = somewhere / "occupied"
    folder.mkdir()
    (folder / "file").write_text("mine")
    yield folder
    assert list(somewhere.iterdir()) == [folder] and [p.name for p in folder.iterdir()] == ["file"], (
        "a mistake leaves nothing behind"
    )
    assert (folder / "file").read_text() == "mine"


@pytest.mark.parametrize("mistake, said", [
    ("model.num_latnets=64", "Did you mean model.num_latents"), ("trainer.max_steps=many", "max_steps"),
    ("trainer.max_steps=-5", "trainer.max_steps=-5"), ("moe.top_k=9", "top_k=9"), ("model.num_heads=5", "num_heads=5"),
    ("sampler.guidance_scale=nan", "guidance_scale=nan"), ("run_dir=occupied/file/below", "cannot be written"),
    ("model.dim=wide", "model.dim"), ("--foo", "option --foo"), ("seed=0,1", "-m")])
def test_a_mistake_is_one_line_and_leaves_nothing_behind(occupied, capsys, mistake, said):
    assert said in refused(capsys, pmd_train, mistake)


@pytest.mark.parametrize("where, value, said", [
    ("resume", "nowhere", "last.ckpt"), ("run_dir", "occupied", "holds files already"),
    ("run_dir", "occupied/file", "cannot be written"), ("trainer.strategy", "fast", "fast"),
    ("trainer.accelerator", "abacus", "abacus")])
def test_a_run_that_cannot_begin_leaves_nothing_behind(occupied, where, value, said):
    with pytest.raises(UserError) as error:
        train(changed({where: value}))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_data_are_checked_without_a_training(somewhere, capsys):
    from PIL import Image as Picture
    for number, part in enumerate(["train", "train", "train", "val", "val"]):
        for name, colour in (("cat", 200), ("dog", 90)):
            (somewhere / "pets" / part / name).mkdir(parents=True, exist_ok=True)
            Picture.new("L", (9, 9), colour + number).save(somewhere / "pets" / part / name / f"{number}.png")
    (somewhere / "pets" / "notes.txt").write_text("mine")
    folder = ["data=image_folder", "data.root=pets", "data.test_fraction=0.4"]
    status, out, err = typed_in(capsys, pmd_train, *folder, "--check")
    assert status == 0 and err == "", err
    assert out.splitlines()[0] == ("10 images, 2 classes (cat 5, dog 5), 32×32 RGB; validation: folder val; "
                                   "passed over: 1 .txt")
    assert {path.name for path in somewhere.iterdir()} == {"pets", "runs", "check.png"}
    assert [path.name for path in (somewhere / "runs").iterdir()] == [".cache"], "no run was begun"
    (somewhere / "pets" / "val" / "dog" / "3.png").write_bytes(b"")
    (somewhere / "pets" / "train" / "cat" / "0.png").write_bytes(b"?")
    line = refused(capsys, pmd_train, *folder, "--check")
    assert "holds 2 files that cannot be read as an image: train/cat/0.png" in line and "val/dog/3.png" in line
    assert "one of the two" in refused(capsys, pmd_train, "--check", "-m", "seed=0,1")


def test_the_line_about_a_folder_is_printed_before_its_training(somewhere, capsys):
    from PIL import Image as Picture
    for number in range(12):
        for name, colour in (("cat", 200), ("dog", 90)):
            (somewhere / "pets" / name).mkdir(parents=True, exist_ok=True)
            Picture.new("L", (9, 9), colour + number).save(somewhere / "pets" / name / f"{number}.png")
    with contextlib.suppress(UserError):  # so few images are trained on, and may be too few to be judged
        train(load_config([*QUICK, "data=image_folder", "data.root=pets", "data.dataset.image_size=8",
                           "data.batch_size=4", "trainer.max_steps=2", "run_dir=run"]))
    assert capsys.readouterr().out.splitlines()[0] == "24 images, 2 classes (cat 12, dog 12), 8×8 RGB"


def test_a_run_folder_is_complete(finished):
    names = {"config.yaml", "metrics.csv", "metrics.json", "config.json", "model.safetensors", "samples.png",
             "denoising.png", "routing.png", "loss.png"}
    assert names <= {p.name for p in finished.iterdir()}
    assert not [p for p in finished.rglob("*") if p.name.startswith(".")], "no temporary file may stay behind"
    results = json.loads((finished / "metrics.json").read_text())
    for name in ("conditional_accuracy", "fd", "fd_floor", "min_expert_load", "train_seconds", "parameters"):
        assert isinstance(results[name], (int, float)) and results[name] >= 0
    assert results["guidance_scale"] == 2 and results["train_steps"] == 12 and results["seed"] == 0
    for name in ("samples", "denoising", "routing", "loss"):
        assert pictures.imread(finished / f"{name}.png").std() > 0.01


def losses(folder):
    "step -> loss, from the metrics table of a run."
    with open(folder / "metrics.csv", newline="") as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file) if row["loss"]}


def test_the_metrics_table_has_the_losses(finished):
    assert (finished / "metrics.csv").read_text().startswith("step,loss,val_loss")
    assert list(losses(finished)) == [1, 3, 5, 7, 9, 11] and all(
        0 < float(loss) < 10 for loss in losses(finished).values()
    )


def test_the_saved_configuration_makes_the_same_run(finished):
    same_settings(changed({"trainer.max_steps": 12, "trainer.log_every_n_steps": 2}), finished)
    config = OmegaConf.load(finished / "config.yaml")
    assert config.trainer.max_steps == 12 and config.model.net.core.dim == 32, "links are resolved"


def test_the_last_lines_are_the_results_and_the_folder(whole_run):
    folder, _, lines, err = whole_run
    of_classifiers = {"accuracy", "accuracy_interval", "flops"}
    assert re.fullmatch(r"runs/\d{8}-\d{6}-digits-seed0", str(folder)) and lines[-1] == f"run folder: {folder}"
    assert (
        lines[0].startswith("model saved")
        and lines[1].startswith("conditional accuracy at s=2")
        and len(lines) == 2 + len(RESULT_TITLES.keys() - of_classifiers)
    ), "nothing else"
    assert {line.strip().split(":")[0] for line in re.split(r"[\r\n]", err) if line.strip()} == {"training"}, (
        "only the progress line"
    )


def same_weights(a, b):
    "Two runs ended in the same model, to the last bit, and so in the same pictures."
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
    assert (a / "samples.png").read_bytes() == (b / "samples.png").read_bytes()


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
    with ctrl_c_at(6):
        status, out, err = typed_in(capsys, pmd_train, *RUN, "run_dir=my run")
    assert status == 130 and out == ""
    message = err.splitlines()[-1]
    assert message.startswith("pmd-train: Stopped at step 7 of 12. Resume with: pmd-train ")
    assert sorted(p.name for p in Path("my run").iterdir()) == ["config.yaml", "last.ckpt", "log"]
    first_part = torch.load("my run/last.ckpt", weights_only=True)["callbacks"]["ProgressLine"]["seconds"]
    again = shlex.split(message.partition("Resume with: pmd-train ")[2])
    assert again == ["resume=my run", *RUN]
    status, out, _ = typed_in(capsys, pmd_train, *again)
    assert status == 0 and out.splitlines()[-1] == "run folder: my run"
    assert json.loads(Path("my run/metrics.json").read_text())["train_seconds"] > first_part > 0, (
        "the time of both parts"
    )
    same_weights(finished, Path("my run"))
    assert losses(finished).items() <= losses(Path("my run")).items(), (
        "the table has both parts, and the losses are the same"
    )


def test_a_second_ctrl_c_stops_at_once(somewhere, capsys):
    with ctrl_c_at(3, times=2):
        status, _, err = typed_in(capsys, pmd_train, *QUICK, "trainer.max_steps=12", "run_dir=twice")
    assert (
        status == 130
        and err.splitlines()[-1] == "pmd-train: Stopped at step 3 of 12. There is no checkpoint yet: start again."
    )
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # Ctrl-C works again afterwards


def test_a_damaged_checkpoint_is_one_line(somewhere, capsys):
    folder = somewhere / "damaged"
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(quick_config()))
    (folder / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    assert "cannot be read as a checkpoint" in refused(capsys, pmd_train, *QUICK, "resume=damaged")


@pytest.mark.parametrize("mistake, said", [
    ({"label": 10}, "0 to 9"), ({"label": -1}, "0 to 9"), ({"label": "three"}, "or these names"),
    ({"label": 2.5}, "0 to 9"),
    ({"label": []}, "0 to 9"), ({"label": [3, 12]}, "0 to 9"), ({"out": "nowhere/x.png"}, "a folder that exists"),
    ({"out": "x.jpg"}, ".png"), ({"out": "folder.png"}, ".png"), ({"seed": -1}, "seed=-1"),
    ({"sampler.steps": 2000}, "1 to 1000"), ({"run": "nowhere"}, "no model at nowhere"),
    ({"sampler.guidance_scale": float("nan")}, "guidance_scale=nan")])
def test_a_wrong_wish_for_a_picture_is_one_line(finished, somewhere, mistake, said):
    (somewhere / "folder.png").mkdir()
    with pytest.raises(UserError) as refused:
        sample_images(changed({"run": str(finished), **mistake}, "sample", "run=x"))
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert [p.name for p in somewhere.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("mistake, said", [
    ([], "exactly one of the two"), (["run=x", "model=mnist"], "exactly one of the two"),
    (["model=cats"], "digits, mnist"), (["run=nowhere"], "no model at nowhere"), (["run=x", "lable=3"], "'lable'"),
    (["run=x", "guidance_scale=nan"], "nan"), (["run=x", "-m"], "option -m")])
def test_a_mistake_typed_to_pmd_sample_has_status_2(somewhere, capsys, mistake, said):
    assert said in refused(capsys, pmd_sample, *mistake)
    assert list(somewhere.iterdir()) == []


def test_a_picture_of_what_was_asked_for(finished, somewhere, capsys):
    status, out, _ = typed_in(capsys, pmd_sample, f"run={finished}", "label=3", "guidance_scale=3", "steps=2", "seed=0",
                              "out=three.png")
    assert (status, out) == (0, "1 image of 3: three.png\n") and pictures.imread("three.png").shape[:2] == (160, 160)


@pytest.mark.parametrize("name, size, said", [("digits", 8, "7"), ("mnist", 28, "7 - seven")])
def test_a_model_that_comes_with_the_package_needs_no_run(somewhere, capsys, name, size, said):
    status, out, _ = typed_in(capsys, pmd_sample, f"model={name}", "label=7", "steps=2")
    side = size * max(4, 160 // size)
    assert (status, out) == (0, f"1 image of {said}: samples.png\n")
    assert pictures.imread("samples.png").shape[:2] == (side, side)


def test_pictures_follow_labels_count_and_seed(finished, somewhere):
    wish = {"run": str(finished), "label": [3, 7], "count": 3, "sampler.steps": 2}
    draw = lambda **more: sample_images(changed({**wish, **more}, "sample", "run=x", "sampler=ddim")).read_bytes()
    first = draw()
    assert pictures.imread("samples.png").shape[:2] == ((2 * 8 + 1) * 20, 16 + (3 * 8 + 2) * 20)
    assert draw() == first and draw(seed=1) != first
    draw(label=None, count=1)
    assert pictures.imread("samples.png").shape[:2] == (14 + 8 * 20, (10 * 8 + 9) * 20)


def renamed(folder, target, class_names):
    "A copy of a trained model whose classes have other names."
    target.mkdir()
    about = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**about, "class_names": class_names}))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


ZOO = ["cat", "dog", "black cat", "3 owls", "no", "Ünicorn", "a,b", "null", "12", "9"]


@pytest.mark.parametrize("typed, said", [
    ("label=cat", "1 image of cat"), ("label=dog", "1 image of dog"), ("label=[cat,dog,cat]", "3 images of cat, dog"),
    ("label=black cat", "1 image of black cat"), ("label=3 owls", "1 image of 3 owls"), ("label=no", "1 image of no"),
    ("label=Ünicorn", "1 image of Ünicorn"), ("label='a,b'", "1 image of a,b"), ("label='null'", "1 image of null"),
    ("label=8", "1 image of 12 (label 8)"), ("label='12'", "1 image of 12 (label 8)"),
    ("label='8'", "1 image of 12 (label 8)"),
    ("label=9", "1 image of 9"), ("label=[1,black cat]", "2 images of dog, black cat"),
    ("label=null", "10 images of cat, dog, black cat, 3 owls, no, Ünicorn, a,b, null, 12 (label 8), 9")])
def test_classes_are_asked_for_by_name_and_named_in_the_answer(finished, somewhere, capsys, typed, said):
    zoo = renamed(finished, somewhere / "zoo", ZOO)
    status, out, err = typed_in(capsys, pmd_sample, f"run={zoo}", typed, "steps=1")
    assert (status, out) == (0, f"{said}: samples.png\n"), err


@pytest.mark.parametrize("typed, near", [
    ("label=cta", "cat"), ("label=[cat,dig]", "dog"), ("label=BLACK CAT", "black cat")])
def test_a_name_that_is_not_there_gets_the_nearest(finished, somewhere, capsys, typed, near):
    zoo = renamed(finished, somewhere / "zoo", ZOO)
    said = refused(capsys, pmd_sample, f"run={zoo}", typed)
    assert f"Did you mean {near}?" in said and "black cat, 3 owls" in said
    assert [path.name for path in somewhere.iterdir()] == ["zoo"]


def test_a_folder_of_images_has_those_of_the_grid_and_goes_on_where_it_stopped(somewhere, capsys):
    wish = ["model=digits", "label=[3,7]", "count=4", "steps=2", "seed=5"]
    assert typed_in(capsys, pmd_sample, *wish, "out=many/")[0] == 0
    names = [f"{label}_{number:06d}.png" for label, number in zip([3, 3, 3, 3, 7, 7, 7, 7], range(8))]
    assert sorted(path.name for path in Path("many").iterdir()) == [*names, "settings.json"]
    drawn = from_pretrained("digits").sample([3, 3, 3, 3, 7, 7, 7, 7], seed=5, steps=2, guidance_scale=2.0)
    for name, image in zip(names, drawn):
        seen = torch.from_numpy(pictures.imread(Path("many") / name))
        assert seen.shape == (8, 8) and (seen - (image[0] / 2 + 0.5)).abs().max() < 0.003, "pixel by pixel"
    before = {name: (Path("many") / name).read_bytes() for name in names}
    kept = (Path("many") / names[0]).stat().st_mtime_ns
    for name in names[3:6]:
        (Path("many") / name).unlink()
    assert "8 images (5 were there): many" in typed_in(capsys, pmd_sample, *wish, "out=many/")[1]
    assert {name: (Path("many") / name).read_bytes() for name in names} == before
    assert (Path("many") / names[0]).stat().st_mtime_ns == kept, "what is there is not drawn again"
    assert "8 images (8 were there)" in typed_in(capsys, pmd_sample, *wish, "out=many/")[1]


@pytest.mark.parametrize("other, said", [
    ("seed=6", "many/ with seed=6 is not possible: the images in it have seed=5"), ("count=5", "count=5"),
    ("label=3", "label=[3]"), ("steps=3", "sampler="), ("model=mnist", "weights=")])
def test_images_of_other_settings_do_not_come_into_the_same_folder(somewhere, capsys, other, said):
    wish = {"model": "digits", "label": "[3,7]", "count": "1", "steps": "2", "seed": "5", "out": "many/"}
    line = lambda changes: [f"{name}={value}" for name, value in {**wish, **changes}.items()]
    typed_in(capsys, pmd_sample, *line({}))
    before = sorted(Path("many").iterdir())
    assert said in refused(capsys, pmd_sample, *line(dict([other.split("=")])))
    assert sorted(Path("many").iterdir()) == before


def test_a_folder_with_other_files_is_left_alone(occupied, capsys):
    said = refused(capsys, pmd_sample, "model=digits", "out=occupied/", "steps=2")
    assert "out=occupied/, which holds other files already, is not possible; allowed: a new or empty folder" in said


@pytest.mark.parametrize("wish, said", [
    (["count=100000000"], "count=100000000, a grid of 1,000,000,000 images, is not possible; allowed: 1,000 images"),
    (["count=101"], "One file each: out=FOLDER/"), (["count=100000000", "out=many/"], "1,000,000 images in a fol")])
def test_too_many_images_are_refused_with_the_way_that_works(somewhere, capsys, wish, said):
    assert said in refused(capsys, pmd_sample, "model=digits", "steps=2", *wish)
    assert list(somewhere.iterdir()) == []


def resident_megabytes():
    "The memory of this process."
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_more_images_take_no_more_memory(tmp_path):
    pipeline, used = from_pretrained("digits"), []
    pipeline.sampler.steps = 2
    labels, paths = torch.arange(10).repeat(175), [tmp_path / f"{number}.png" for number in range(1750)]
    for until in (750, 1750):
        draw_missing(pipeline, labels, 0, [number for number in range(until) if not paths[number].exists()], paths)
        used.append(resident_megabytes())
    assert used[1] < used[0] + 40 and all(path.exists() for path in paths), f"it grew from {used[0]} MB to {used[1]} MB"


def test_a_class_name_with_odd_signs_makes_a_plain_file_name():
    pipeline = from_pretrained("digits")
    pipeline.class_names = ["a/b c", "Käse", *"23456789"]
    assert image_names(pipeline, [0, 1, 0]) == ["a-b-c_000000.png", "Käse_000001.png", "a-b-c_000002.png"]


def test_a_run_is_measured_again_also_without_its_log(finished, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):  # a model that was passed on
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    status, out, _ = typed_in(capsys, pmd_evaluate, f"run={tmp_path}", *QUICK[-3:])
    again, first = (json.loads(path.read_text()) for path in (tmp_path / "evaluation.json", finished / "metrics.json"))
    assert status == 0 and out.splitlines()[-1] == f"written: {tmp_path / 'evaluation.json'}"
    assert again["conditional_accuracy"] == first["conditional_accuracy"] and again["fd"] == pytest.approx(first["fd"])


@pytest.mark.parametrize("change, said", [
    ({}, None), ({"data.split_seed": 1}, "data.split_seed=1"), ({"data.test_fraction": 0.3}, "data.test_fraction=0.3"),
    ({"data.batch_size": 7, "data.seed": 3}, None)])
def test_data_split_in_another_way_are_refused(finished, change, said):
    config = changed(change, "evaluate", "run=x")
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        same_data(config, load_pipeline(finished), instantiate_node(config.data), finished)


def test_other_images_are_refused(finished, somewhere, capsys):
    for i in range(8):
        path = somewhere / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.imsave(path, torch.rand(9, 9).numpy())
    assert "cat, dog" in refused(capsys, pmd_evaluate, f"run={finished}", "data=image_folder", "data.root=pets",
                                 "data.val_fraction=0.3", "data.test_fraction=0.3")
    assert "no model at nowhere" in refused(capsys, pmd_evaluate, "run=nowhere")


def test_a_sweep_ends_in_a_row_per_job_and_survives_a_job_that_fails(somewhere, capsys):
    status, out, err = typed_in(capsys, pmd_train, "-m", *QUICK, "trainer.max_steps=2", "moe.top_k=1,9",
                                "+trainer.detect_anomaly=false", "seed=range(4,5)", "run_dir=sweep")
    assert status == 0 and "job 2 failed: top_k=9 is not possible" in err
    lines = out.splitlines()
    assert lines[-1] == "sweep folder: sweep"
    head, first, second = [line.split() for line in lines[-4:-1]]
    columns = [name for name in SWEEP_COLUMNS if name not in ("accuracy", "flops")]
    assert head[:3] == ["job", "moe.top_k", "seed"] and head[3:] == columns
    assert first[:3] == ["0", "1", "4"] and len(first) == len(head) and second == ["1", "9", "4", "failed"]
    with open("sweep/sweep.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["moe.top_k"], second["moe.top_k"]) == ("1", "9")
    assert float(first["fd"]) > 0 and "top_k=9" in second["error"]
    assert sorted(p.name for p in Path("sweep").iterdir()) == ["000-moe.top_k-1-seed-4", "sweep.csv", "sweep.json"]
    assert json.loads(Path("sweep/sweep.json").read_text())["command"].startswith("pmd-train -m ")
    assert "holds a sweep already" in refused(capsys, pmd_train, "-m", "run_dir=sweep")


def test_ctrl_c_stops_a_sweep_and_says_how_to_finish_the_job(somewhere, capsys):
    with ctrl_c_at(1):
        status, out, err = typed_in(capsys, pmd_train, "-m", *QUICK, "trainer.max_steps=3", "seed=0,1", "run_dir=sweep")
    assert status == 130 and out == "job 1 of 2: seed=0\n"
    assert err.splitlines()[-1].endswith(
        shlex.join(["pmd-train", "resume=sweep/000-seed-0", *QUICK, "trainer.max_steps=3", "seed=0"])
    )


@pytest.mark.parametrize("mistake, said", [
    (["seed=interval(0,1)"], "cannot be swept"), (["seed=0,1", "trainer.devices=2"], "trainer.devices=1"),
    (["moe.top_k=8,9", "run_dir=none"], "Every job of the sweep failed")])
def test_a_mistake_in_a_sweep(somewhere, capsys, mistake, said):
    status, _, err = typed_in(capsys, pmd_train, *mistake, "--multirun")
    assert status == 2 and said in err.splitlines()[-1] and "Traceback" not in err
    assert all(p.name == "none" for p in somewhere.iterdir())


@pytest.mark.parametrize("function, given", [(pmd_train, "run_dir=x"), (pmd_sample, "run=x"), (pmd_evaluate, "run=x")])
def test_help_and_cfg(somewhere, capsys, function, given):
    for option in ("--help", "-h"):
        status, out, err = typed_in(capsys, function, option, "no.such=key")
        assert (status, err) == (0, "") and "usage: pmd-" in out and "seed: 0" in out
    status, out, err = typed_in(capsys, function, "--cfg", given, "seed=3")
    assert (status, err) == (0, "") and "seed: 3" in out and given.replace("=", ": ") in out
    assert "option --foo" in refused(capsys, function, "--foo")
    assert list(somewhere.iterdir()) == []


def test_the_console_script_in_a_process_of_its_own(somewhere):
    script = Path(sysconfig.get_path("scripts")) / "pmd-train"
    done = subprocess.run([script, "model.num_latnets=3"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == "pmd-train: There is no setting 'model.num_latnets'. Did you mean model.num_latents?\n"
    assert list(somewhere.iterdir()) == []
