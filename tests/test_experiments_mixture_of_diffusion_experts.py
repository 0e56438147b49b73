# Made from nbs/72_mixture_of_diffusion_experts.ipynb by `pmd-dev tests`. Edit the notebook.
import contextlib
import copy
import functools
import io
import json
import tempfile
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.experiments.mixture_of_diffusion_experts import (
    JudgeGrowth,
    expert_weights,
    grow,
    save_grown,
    show_experts,
)
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.mixture_of_denoisers import IntervalRouter, MixtureOfDenoisers
from perceiver_moe_diffusion.pipelines.files import load_pipeline
from perceiver_moe_diffusion.runs.build import build_run, make_pipeline
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.train import save_model, train

TINY = ("experiment=mixture_of_diffusion_experts", "model.dim=16", "model.num_latents=4", "model.depth=0",
        "model.expert.adapter.stem_channels=8", "diffusion.timesteps=100", "sampler.steps=4")


@functools.cache
def fresh(*overrides):
    "(data, pipeline) of a configuration, with fresh weights."
    config = load_config(overrides)
    data, module = build_run(config)
    return data, make_pipeline(config, module.model, data)


def run(folder, *overrides):
    "Train and evaluate without a word: (pipeline, its figures)."
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(load_config([*overrides, f"run_dir={folder}"]))
    return load_pipeline(folder), json.loads((folder / "metrics.json").read_text())


def some(n=22, classes=10):
    "Noisy images, their timesteps, and labels: every class, and none."
    torch.manual_seed(0)
    return torch.randn(n, 1, 8, 8), torch.arange(n) * 4, torch.arange(n) % (classes + 1)


def asking(top_k, mixture=None):
    "The same weights, with another number of activated experts."
    made = copy.deepcopy(mixture or fresh(*TINY)[1].model).eval()
    made.router.top_k = top_k
    return made


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_table_of_weights_is_what_the_mixture_computes(top_k):
    mixture, (x, t, label) = asking(top_k), some()
    weights = expert_weights(mixture)
    assert ((weights > 0).sum(dim=1) == top_k).all()
    answers = torch.stack([expert(x, t, label) for expert in mixture.experts], dim=1)
    assert_close(mixture(x, t, label), (weights[label][:, :, None, None, None] * answers).sum(dim=1))
    assert top_k == 1 or (weights.sum(dim=1) - 1).abs().max() < 1e-6


def test_a_closed_expert_has_no_weight():
    mixture = asking(2)
    mixture.router.open[3] = torch.tensor([False, True, False, False])
    assert expert_weights(mixture)[3].tolist() == [0, 1, 0, 0]


def test_the_picture_has_a_panel_for_each_table():
    axes = show_experts({"a": torch.rand(4, 2), "b": torch.rand(4, 3)}, ["x", "y", "z"]).axes
    assert [a.get_title() for a in axes[:2]] == ["a", "b"]
    assert [t.get_text() for t in axes[1].get_xticklabels()] == ["x", "y", "z", "none"]


def images_asked(mixture, x, t, label):
    "[E] how many images each expert is called with; None: it is not called at all."
    seen = [None] * len(mixture.experts)

    def hook(number):
        return lambda module, inputs, output: seen.__setitem__(number, len(inputs[0]))

    hooks = [expert.register_forward_hook(hook(e)) for e, expert in enumerate(mixture.experts)]
    with torch.no_grad():
        mixture(x, t, label)
    for handle in hooks:
        handle.remove()
    return seen


def step_flops(mixture, top_k, images=22):
    "FLOPs of one step for one image, without the second half that guidance adds."
    x, t, label = some(images, mixture.num_classes)
    return count_flops(lambda: asking(top_k, mixture)(x, t, label)) / images


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_an_expert_sees_the_images_that_activate_it_and_no_other(top_k):
    mixture, (x, t, label) = asking(top_k), some()
    expected = (expert_weights(mixture)[label] > 0).sum(dim=0).tolist()
    assert images_asked(mixture, x, t, label) == [n or None for n in expected] and sum(expected) == top_k * len(x)


def test_an_expert_that_no_class_activates_is_not_called():
    mixture, (x, t, label) = asking(1), some()
    mixture.router.open[:, 2] = False
    assert images_asked(mixture, x, t, label)[2] is None


def test_the_flops_of_a_step_are_those_of_the_activated_experts():
    mixture = fresh(*TINY)[1].model
    one, two, dense = (step_flops(mixture, k, images=220) for k in (1, 2, 4))
    few = "a share of the dense ensemble's, but for the positions, which each expert looks up once"
    assert one == pytest.approx(dense / 4, rel=0.01) and two == pytest.approx(dense / 2, rel=0.01), few


SEVEN = (*TINY, "data.classes=[0,1,2,3,4,5,6]", "model.router.top_k=2")
THREE = (*(o for o in TINY if not o.startswith(("experiment", "model.expert"))), "data.classes=[7,8,9]", "moe=dense",
         "model.adapter.stem_channels=8")


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_what_it_gives_for_old_classes_is_unchanged_to_the_last_bit(scale):
    old, new = fresh(*SEVEN)[1], fresh(*THREE)[1]
    grown, labels = grow(old, new), torch.arange(7)
    drawn = [pipeline.sample(labels, seed=3, guidance_scale=scale) for pipeline in (grown, old)]
    assert torch.equal(*drawn)
    assert grown.class_names == list("0123456789") and len(old.model.experts) == 4 and len(grown.model.experts) == 5


def test_new_classes_are_drawn_by_the_new_expert():
    old, new = fresh(*SEVEN)[1], fresh(*THREE)[1]
    grown = grow(old, new)
    drawn = {scale: (grown.sample([7, 8, 9], guidance_scale=scale), new.sample([0, 1, 2], guidance_scale=scale))
             for scale in (1.0, 2.0)}
    assert_close(*drawn[1.0])
    assert not torch.allclose(*drawn[2.0]), "the unconditional half is that of the old experts"


def test_a_grown_mixture_is_saved_and_read_and_grown_again(tmp_path):
    for name, overrides, seed in (("seven", SEVEN, 0), ("three", THREE, 1), ("one", (*THREE, "data.classes=[5]"), 2)):
        torch.manual_seed(seed)
        config = load_config(overrides)
        save_model(config, build_run(config), tmp_path / name)
    ten = grow(load_pipeline(tmp_path / "seven"), load_pipeline(tmp_path / "three"))
    save_grown(tmp_path / "ten", ten, tmp_path / "seven", tmp_path / "three")
    again, labels = load_pipeline(tmp_path / "ten"), torch.arange(10)
    assert torch.equal(again.sample(labels, seed=1), ten.sample(labels, seed=1))
    assert again.class_names == ten.class_names
    assert torch.equal(again.sample(labels[:7], seed=1), load_pipeline(tmp_path / "seven").sample(labels[:7], seed=1))
    save_grown(tmp_path / "eleven", grow(again, load_pipeline(tmp_path / "one")), tmp_path / "ten", tmp_path / "one")
    eleven = load_pipeline(tmp_path / "eleven")
    assert eleven.model.num_classes == 11
    assert torch.equal(eleven.sample(labels, seed=1), ten.sample(labels, seed=1))


def test_what_cannot_grow_is_refused():
    old, new = fresh(*SEVEN)[1], fresh(*THREE)[1]
    with pytest.raises(UserError, match="growing a PerceiverDenoiser .* router on the class"):
        grow(new, new)
    by_noise = copy.copy(old)
    by_noise.model = MixtureOfDenoisers((1, 8, 8), 7, IntervalRouter,
                                        [lambda expert=e, **_: expert for e in old.model.experts])
    with pytest.raises(UserError, match="growing a MixtureOfDenoisers"):
        grow(by_noise, new)
    with pytest.raises(UserError, match="another noise schedule"):
        grow(old, fresh(*THREE, "diffusion.timesteps=50")[1])
    with pytest.raises(UserError, match="another prediction type"):
        grow(old, fresh(*THREE, "diffusion.prediction_type=eps")[1])


TOLD = ("accuracy_all", "fd", "diversity")


@functools.cache
def seven_run():
    "The folder of a mixture of seven classes, hardly trained."
    folder = Path(tempfile.mkdtemp()) / "run"
    run(folder, *SEVEN, "trainer.max_steps=1", "trainer.val_check_interval=1", "evaluation.samples_per_class=2",
        "evaluation.max_fd_images=20", "evaluation.classifier_steps=1")
    return folder


def told(whole=None):
    "What `JudgeGrowth` says of it."
    data, new = fresh(*THREE)
    return JudgeGrowth(seven_run(), whole or DataModule(digits), max_images=60, classifier_steps=10)(new, data)


def test_every_figure_is_there_and_the_old_classes_are_what_they_were():
    results = told()
    assert results["largest_change_old"] == 0
    for scale in ("s1", "s2"):
        for what in TOLD:
            assert results[f"{what}_old_before_{scale}"] == results[f"{what}_old_after_{scale}"]
            assert torch.tensor(results[f"{what}_new_alone_{scale}"]).isfinite()
        for group, classes in (("new", "789"), ("old", "0123456")):
            assert {f"accuracy_{c}_{group}_after_{scale}" for c in classes} <= set(results)
    assert results["fd_new_alone_s1"] == pytest.approx(results["fd_new_after_s1"], rel=1e-4)
    assert results["fd_new_alone_s2"] != results["fd_new_after_s2"]


def test_a_mixture_that_is_not_there_is_told_before_anything_is_trained(tmp_path):
    config = load_config(["experiment=mixture_of_diffusion_experts_grown", f"run_dir={tmp_path / 'run'}",
                          f"evaluation.mixture={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match="no model at .*nowhere"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_classes_in_another_order_are_refused():
    with pytest.raises(UserError, match="classes 0, 1, .* those of the mixture, then those of the new expert"):
        told(DataModule(digits, classes=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]))
