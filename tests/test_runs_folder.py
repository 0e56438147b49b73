# Made from nbs/84_folder.ipynb by `pmd-dev tests`. Edit the notebook.
import copy
import functools
import pytest
from omegaconf import OmegaConf
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.folder import same_settings
from perceiver_moe_diffusion.runs.folder import saved_settings
from perceiver_moe_diffusion.runs.overrides import load_config


QUICK = ["model.dim=32", "model.num_latents=4", "model.depth=1", "sampler.steps=3",
         "evaluation.samples_per_class=4", "evaluation.max_fd_images=40", "evaluation.classifier_steps=20"]
quick_config = functools.cache(
    lambda name="train", *more: load_config([*(QUICK if name == "train" else []), *more], name)
)


def changed(changes, name="train", *more):
    "A copy of the quick configuration with some values set: much faster than composing it again."
    config = copy.deepcopy(quick_config(name, *more))
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


@pytest.fixture
def settings_folder(tmp_path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(quick_config()))
    return tmp_path


def test_settings_that_do_not_change_what_is_learned_are_free(settings_folder):
    same_settings(quick_config(), settings_folder)
    same_settings(
        changed({"trainer.devices": 2, "checkpoint_every": 7, "trainer.max_time": "00:00:01:00", "run_dir": "x"}),
        settings_folder,
    )


@pytest.mark.parametrize("where, value, said", [
    ("trainer.max_steps", 7, "trainer.max_steps=7"), ("seed", 1, "seed=1 is not possible: the run has seed=0"), ("optimizer.lr", 0.5, "optimizer.lr=0.5"),
    ("diffusion.prediction_type", "eps", "diffusion.prediction_type=eps"), ("data.val_fraction", 0.2, "data.val_fraction=0.2"),
    ("trainer.gradient_clip_val", None, "trainer.gradient_clip_val=None")])
def test_other_settings_are_refused_and_named(settings_folder, where, value, said):
    with pytest.raises(UserError) as refused:
        same_settings(changed({where: value}), settings_folder)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", [None, "a: [1, 2", "a: ${b", "\x00"])
def test_settings_that_cannot_be_read(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml cannot be read"):
        saved_settings(tmp_path)
