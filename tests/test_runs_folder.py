# Made from nbs/84_folder.ipynb by `pmd-dev tests`. Edit the notebook.
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.folder import (
    RUN_DIR,
    RUN_FORMAT,
    check_room,
    check_writable,
    choose_folder,
    comparable,
    open_folder,
    same_settings,
    saved_settings,
    to_container,
)
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.tools.testing import QUICK, changed, quick_config
from perceiver_moe_diffusion.tools.workflow import project_root

# a run of version 0.3.1 that was stopped by Ctrl-C, and what had been typed to begin it
OLD_RUN = project_root(Path(__file__).parent if "__file__" in globals() else None) / "tests/data/v0_3_1/run"
OLD_OVERRIDES = [
    "model.dim=16", "model.num_latents=2", "model.depth=1", "model.num_heads=2", "model.adapter.stem_channels=8",
    "moe.num_experts=2", "moe.top_k=1", "moe.mult=1.0", "trainer.max_steps=40", "trainer.val_check_interval=20",
    "checkpoint_every=20", "data.batch_size=16", "evaluation.samples_per_class=2", "evaluation.classifier_steps=5",
    "evaluation.max_fd_images=20",
]


def test_a_disk_without_room_for_a_checkpoint_is_refused_before_anything_is_written(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "not" / "there yet", free // 10, "run_dir")
    with pytest.raises(UserError, match="MB free, and a checkpoint and the model need about .* MB. Make room"):
        open_folder(quick_config(), tmp_path / "run", weights=free // 4)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    "An empty working directory, in a process of which nobody has said that it is one of several."
    monkeypatch.chdir(tmp_path)
    for name in (RUN_DIR, "TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_folder_is_named_by_date_data_and_seed_and_not_made_yet(somewhere):
    assert re.fullmatch(r"runs/\d{8}-\d{6}-digits-seed5", str(choose_folder(changed({"seed": 5}))))
    assert choose_folder(changed({"run_dir": "my/run"})) == Path("my/run")
    assert list(somewhere.iterdir()) == []


def test_a_folder_with_files_is_refused_by_the_process_that_speaks_for_all(somewhere, monkeypatch):
    Path("full").mkdir()
    assert choose_folder(changed({"run_dir": "full"})) == Path("full"), "an empty folder is as good as a new one"
    Path("full/file").write_text("")
    with pytest.raises(UserError, match="run_dir=full, which holds files already, .* resume=full"):
        choose_folder(changed({"run_dir": "full"}))
    monkeypatch.setenv("RANK", "1")  # by then the first process has written there
    assert choose_folder(changed({"run_dir": "full"})) == Path("full")


def test_processes_that_are_started_later_find_the_folder_in_the_environment(somewhere, monkeypatch):
    monkeypatch.setenv(RUN_DIR, "chosen")
    assert choose_folder(quick_config()) == choose_folder(changed({"run_dir": "mine"})) == Path("chosen")


def test_torchrun_needs_a_folder_that_all_processes_know(somewhere, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UserError, match="torchrun without run_dir is not possible; allowed: run_dir=PATH"):
        choose_folder(quick_config())
    assert choose_folder(changed({"run_dir": "run"})) == Path("run")


def test_trying_whether_files_can_be_written_leaves_the_folder_and_nothing_in_it(somewhere):
    check_writable(Path("new/run"), "run_dir")
    assert list(Path("new/run").iterdir()) == []
    Path("file").write_text("mine")
    with pytest.raises(UserError, match="The folder file/run cannot be written .* Choose another: out=PATH"):
        check_writable(Path("file/run"), "out")
    assert Path("file").read_text() == "mine"


def test_a_new_folder_gets_the_settings_and_a_resumed_one_keeps_its_own(somewhere, monkeypatch):
    folder = Path("runs/one")
    open_folder(quick_config(), folder)
    text = (folder / "config.yaml").read_text()
    assert text.startswith(f"# format {RUN_FORMAT}\n") and [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert OmegaConf.to_container(OmegaConf.create(text)) == to_container(quick_config())
    open_folder(changed({"resume": str(folder), "checkpoint_every": 7}), folder)
    assert (folder / "config.yaml").read_text() == text
    monkeypatch.setenv("RANK", "1")
    open_folder(quick_config(), Path("runs/two"))
    assert list(Path("runs/two").iterdir()) == [], "one process writes for all"


@pytest.fixture
def settings_folder(tmp_path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(quick_config()))
    return tmp_path


def test_settings_that_do_not_change_what_is_learned_are_free(settings_folder):
    same_settings(quick_config(), settings_folder)
    free = {"trainer.devices": 2, "checkpoint_every": 7, "trainer.max_time": "00:00:01:00", "run_dir": "x"}
    same_settings(changed(free), settings_folder)


@pytest.mark.parametrize("where, value, said", [
    ("trainer.max_steps", 7, "trainer.max_steps=7"),
    ("seed", 1, "seed=1 is not possible: the run has seed=0"),
    ("optimizer.lr", 0.5, "optimizer.lr=0.5"),
    ("diffusion.prediction_type", "eps", "diffusion.prediction_type=eps"),
    ("data.val_fraction", 0.2, "data.val_fraction=0.2"),
    ("trainer.gradient_clip_val", None, "trainer.gradient_clip_val=None"),
    ("moe.layer.experts", [], "moe.layer.experts=[]"),
])
def test_other_settings_are_refused_and_named(settings_folder, where, value, said):
    with pytest.raises(UserError) as refused:
        same_settings(changed({where: value}), settings_folder)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_setting_that_a_person_types_is_the_one_that_is_told(settings_folder):
    with pytest.raises(UserError, match="with moe.top_k=1 is not possible: the run has moe.top_k=2"):
        same_settings(load_config([*QUICK, "moe.top_k=1"]), settings_folder)


@pytest.mark.parametrize("text", [None, "a: [1, 2", "a: ${b", "\x00"])
def test_settings_that_cannot_be_read(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        saved_settings(tmp_path)


def test_the_settings_of_0_3_1_are_read_under_their_new_names():
    assert not (OLD_RUN / "config.yaml").read_text().startswith("# format"), "the old version wrote no such line"
    settings = saved_settings(OLD_RUN)
    assert settings["diffusion.prediction_type"] == settings["task.diffusion.prediction_type"] == "v"
    assert not [name for name in settings if "objective" in name]
    assert settings["model.net.core.feed_forward.experts.0.mult"] == 1.0, "a node in a list has settings like any other"


@pytest.mark.parametrize("line, version", [("# format 2\n", 2), ("# format 1\n", 1), ("", 1), ("# of Tuesday\n", 1)])
def test_the_formats_that_are_known_are_read(tmp_path, line, version):
    assert version <= RUN_FORMAT
    (tmp_path / "config.yaml").write_text(f"{line}seed: 3\ndiffusion: {{objective: v}}\n")
    assert saved_settings(tmp_path) == {"seed": 3, "diffusion.prediction_type": "v"}


def test_a_format_from_the_future_is_refused_by_name(tmp_path):
    (tmp_path / "config.yaml").write_text("# format 99\nseed: 3\n")
    said = "config.yaml of format 99 is not possible; allowed: 1 to 2. Install the version that wrote it."
    with pytest.raises(UserError, match=said):
        saved_settings(tmp_path)


@pytest.mark.parametrize("old, new", [
    ("perceiver_moe_diffusion.moe.TopKRouter", "perceiver_moe_diffusion.models.moe.TopKRouter"),
    ("perceiver_moe_diffusion.denoiser.Denoiser", "perceiver_moe_diffusion.models.denoiser.PerceiverDenoiser"),
    ("perceiver_moe_diffusion.data.ImageDataModule", "perceiver_moe_diffusion.data.module.DataModule"),
    ("perceiver_moe_diffusion.pipeline.Pipeline", "perceiver_moe_diffusion.pipelines.generate.GeneratorPipeline"),
])
def test_a_class_that_has_moved_or_has_a_new_name_is_the_same_class(old, new):
    assert comparable("some.node._target_", old) == comparable("some.node._target_", new)
    assert comparable("some.node._target_", old) != comparable("some.node._target_", "torch.optim.AdamW")


def test_only_classes_are_compared_by_their_last_name():
    assert comparable("data.root", "a/b.c") == "a/b.c" and comparable("x._target_", None) is None


def test_a_run_of_0_3_1_is_the_same_run_and_another_is_not():
    same_settings(load_config(OLD_OVERRIDES), OLD_RUN)
    with pytest.raises(UserError, match="the run has moe.load_weight=0.0"):
        same_settings(load_config([*OLD_OVERRIDES, "moe.load_weight=0.1"]), OLD_RUN)
    for line, said in (("optimizer.lr=1e-4", "optimizer.lr=0.003"),
                       ("moe/router=noisy_top_k", "moe.router._target_=perceiver_moe_diffusion.moe.TopKRouter"),
                       ("diffusion.prediction_type=x0", "diffusion.prediction_type=v")):
        with pytest.raises(UserError, match=f"the run has {said}"):
            same_settings(load_config([*OLD_OVERRIDES, line]), OLD_RUN)

def test_an_old_run_of_a_folder_of_images_goes_on(tmp_path):
    line = ["data=image_folder", "data.root=pets"]
    now = OmegaConf.create(to_container(load_config(line)))
    for name in ("background", "cache", "class_order"):  # settings that it did not have
        del now.data.dataset[name]
    now.data.dataset._target_ = "perceiver_moe_diffusion.data.images.image_folder"  # and where it stood
    (tmp_path / "config.yaml").write_text(f"# format 2\n{OmegaConf.to_yaml(now)}")
    same_settings(load_config([*line, "data.dataset.class_order=text"]), tmp_path)
    same_settings(load_config([*line, "data.dataset.class_order=text", "data.dataset.cache=elsewhere"]), tmp_path)
    for more, said in (([], "the run has data.dataset.class_order=text"),
                       (["data.dataset.class_order=text", "data.dataset.background=black"], "background=white")):
        with pytest.raises(UserError, match=said):
            same_settings(load_config([*line, *more]), tmp_path)



def test_an_old_run_of_texts_goes_on(tmp_path):
    line = ["data=imdb", "model=classifier", "model/preprocessor=text", "data.root=reviews.csv"]
    now = OmegaConf.create(to_container(load_config(line)))
    for name in ("encoding", "label_order", "separator"):  # settings that it did not have
        del now.data.dataset[name]
    (tmp_path / "config.yaml").write_text(f"# format 2\n{OmegaConf.to_yaml(now)}")
    same_settings(load_config([*line, "data.dataset.label_order=unsigned"]), tmp_path)
    with pytest.raises(UserError, match="the run has data.dataset.label_order=unsigned"):
        same_settings(load_config(line), tmp_path)
