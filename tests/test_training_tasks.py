# Made from nbs/46_tasks.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver_moe_diffusion.core import Stream, UserError, fold_seed
from perceiver_moe_diffusion.data.batches import Batch
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.classifier import Classifier
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.mixture_of_denoisers import (
    IntervalRouter,
    LabelRouter,
    MixtureOfDenoisers,
    NoiseRouter,
)
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.models.upscaler import Upscaler
from perceiver_moe_diffusion.tools.testing import OneDevice
from perceiver_moe_diffusion.training.loop import TrainingModule
from perceiver_moe_diffusion.training.tasks import ClassifierModule, DiffusionModule, UpscalingModule


def moe_core(**settings):
    "The settings of a very small Perceiver whose latents are mixtures of experts."
    moe = partial(build_moe, num_experts=4, top_k=2)
    return partial(PerceiverIO, dim=16, num_latents=4, depth=1, num_heads=2, feed_forward=moe, **settings)


def tiny_denoiser(input_shape=(1, 8, 8), num_classes=10):
    "A very small denoiser; the same weights after the same seed."
    adapter = partial(ConvAdapter, dim=16, stem_patch=1, token_patch=4, stem_channels=8, num_bands=2)
    return PerceiverDenoiser(input_shape, num_classes, condition_dim=16, adapter=adapter, core=moe_core())


def of_process(task, rank=0, processes=1):
    "A task as one process of a training sees it."
    task.trainer = SimpleNamespace(global_rank=rank, world_size=processes)
    return task


def denoising(model=None, **settings):
    "The task of a very small denoiser; always with the same weights."
    torch.manual_seed(0)
    return of_process(DiffusionModule(model or tiny_denoiser(), Diffusion(), torch.optim.AdamW, **settings))


def batch_of(n=8, step=3, device="cpu"):
    "The first n digits."
    return Batch(digits().inputs(slice(0, n)).to(device), digits().labels[:n].to(device), step)


def test_a_task_without_a_loss_is_none():
    with pytest.raises(NotImplementedError):
        TrainingModule(tiny_denoiser(), torch.optim.AdamW).loss(batch_of(), Stream.TRAINING_NOISE)


@torch.no_grad()
def test_the_noise_of_a_step_follows_from_seed_stream_and_step_alone():
    task, batch = denoising(seed=5), batch_of()
    loss, routings = task.loss(batch, Stream.TRAINING_NOISE)
    torch.manual_seed(99)
    assert task.loss(batch, Stream.TRAINING_NOISE)[0] == loss, "the global generator has no part in it"
    assert task.loss(batch, Stream.VALIDATION_NOISE)[0] != loss
    assert task.loss(batch_of(step=4), Stream.TRAINING_NOISE)[0] != loss
    assert denoising(seed=6).loss(batch, Stream.TRAINING_NOISE)[0] != loss
    assert [len(routing.logits) for routing in routings] == [8 * 5, 8 * 4], "latents (with the condition), then tokens"


@torch.no_grad()
def test_two_processes_draw_what_one_would_have_drawn():
    batch = batch_of(8)
    whole, _ = denoising().loss(batch, Stream.TRAINING_NOISE)
    shares = []
    for rank, part in enumerate((slice(0, 4), slice(4, 8))):
        share = Batch(batch.input[part], batch.label[part], batch.step)
        shares.append(of_process(denoising(), rank, 2).loss(share, Stream.TRAINING_NOISE)[0])
    assert shares[0] != shares[1]
    assert_close(sum(shares) / 2, whole)


def classifying(**settings):
    "The task of a very small classifier; always with the same weights."
    torch.manual_seed(0)
    return ClassifierModule(Classifier((1, 8, 8), 10, core=moe_core(), query_dim=16), torch.optim.AdamW, **settings)


@torch.no_grad()
def test_the_target_is_smoothed_in_training_and_plain_in_validation():
    task, batch, shown = classifying(label_smoothing=0.2), batch_of(), {}
    task.log_dict = lambda values, **how: shown.update(values)
    loss, routings = task.loss(batch, Stream.TRAINING_NOISE)
    logits = task.model(batch.input)
    target = torch.full((8, 10), 0.02).scatter(1, batch.label.unsqueeze(1), 0.82)
    assert_close(loss, -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean())
    assert [len(routing.logits) for routing in routings] == [8 * 4, 8 * 1], "latents, then the one query"
    task.validation_step(batch, 0)
    assert_close(shown["val_loss"], F.cross_entropy(logits, batch.label))
    assert shown["val_accuracy"] == (logits.argmax(dim=-1) == batch.label).float().mean()


@pytest.mark.parametrize("smoothing", [-0.1, 1, 1.5, float("nan")])
def test_a_smoothing_that_leaves_nothing_of_the_label_is_refused(smoothing):
    with pytest.raises(UserError, match=f"label_smoothing={smoothing} is not possible; allowed: 0 or more and less"):
        classifying(label_smoothing=smoothing)


def enlarging():
    "The task of two very small upscalers; always with the same weights."
    torch.manual_seed(0)
    net = Upscaler((1, 8, 8), 10, IntervalRouter, [tiny_denoiser, tiny_denoiser])
    return of_process(UpscalingModule(net, Diffusion(), torch.optim.AdamW))


def test_each_image_is_denoised_beside_its_own_small_version():
    task, batch = enlarging(), batch_of()
    denoiser = task.denoiser(batch)
    assert_close(denoiser.small, F.avg_pool2d(batch.input, 2))
    loss, (routing,) = task.loss(batch, Stream.TRAINING_NOISE)
    noise = task.diffusion.sample_noise(
        8, (1, 8, 8), torch.Generator().manual_seed(fold_seed(0, Stream.TRAINING_NOISE, 3)))
    assert_close(loss, task.diffusion.loss(denoiser, batch.input, batch.label, noise)[0])
    assert routing.expert_ids.flatten().tolist() == (noise.t >= 500).long().tolist()
    loss.backward()
    assert all(p.grad is not None for p in task.model.parameters())


def test_what_does_not_enlarge_has_another_task():
    with pytest.raises(UserError, match="task=upscale with a PerceiverDenoiser .* Use experiment=meme_upscale"):
        UpscalingModule(tiny_denoiser(), Diffusion(), torch.optim.AdamW)


SETTINGS = {"warmup_steps": 7, "balance_weight": 0.25, "z_weight": 0.125, "seed": 11, "importance_weight": 0.5,
            "load_weight": 0.75}


@pytest.mark.parametrize("task", [
    denoising(**SETTINGS), classifying(**SETTINGS),
    UpscalingModule(enlarging().model, Diffusion(), torch.optim.AdamW, **SETTINGS)])
def test_every_task_trains_with_the_settings_that_it_was_given(task):
    assert {name: getattr(task, name) for name in SETTINGS} == SETTINGS
    assert task.make_optimizer is torch.optim.AdamW


@pytest.mark.parametrize("task", [DiffusionModule, ClassifierModule])
def test_a_task_has_the_defaults_that_all_trainings_share(task):
    import inspect

    shared, own = (inspect.signature(kind).parameters for kind in (TrainingModule, task))
    both = set(shared) & set(own)
    assert {"warmup_steps", "balance_weight", "z_weight", "seed", "importance_weight", "load_weight"} <= both
    assert {name: own[name].default for name in both} == {name: shared[name].default for name in both}
    pinned = {"warmup_steps": 50, "balance_weight": 0.01, "z_weight": 1e-3, "seed": 0}
    assert {name: shared[name].default for name in pinned} == pinned


def mixture(router):
    "A mixture of two very small denoisers."
    return MixtureOfDenoisers((1, 8, 8), 10, router, [tiny_denoiser, tiny_denoiser])


def soft_intervals(*sizes):
    return IntervalRouter(*sizes, softness=0.3)


TASKS = {
    "denoiser": denoising,
    "intervals": lambda: denoising(mixture(IntervalRouter)),
    "soft intervals": lambda: denoising(mixture(soft_intervals)),
    "router over timesteps": lambda: denoising(mixture(NoiseRouter)),
    "router over labels": lambda: denoising(mixture(LabelRouter)),
    "upscaler": enlarging,
    "classifier": classifying,
}


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_task_never_mixes_devices(name):
    task, batch = TASKS[name]().to("meta"), batch_of(6, device="meta")
    with OneDevice():
        loss, routings = task.loss(batch, Stream.TRAINING_NOISE)
        loss.backward()
    assert loss.device.type == "meta" and loss.shape == () and routings
    assert {x.device.type for routing in routings for x in routing} == {"meta"}
    assert {p.grad.device.type for p in task.model.parameters() if p.grad is not None} == {"meta"}


@pytest.mark.parametrize("schedule", [dict(min_snr_gamma=5.0), dict(zero_snr=True), dict(prediction_type="eps"),
                                      dict(prediction_type="x0", loss="huber")])
def test_the_loss_of_a_diffusion_is_where_the_images_are(schedule):
    diffusion, batch = Diffusion(**schedule), batch_of(6, device="meta")
    noise = diffusion.sample_noise(6, (1, 8, 8), torch.Generator().manual_seed(0))
    with OneDevice():
        loss, routings = diffusion.loss(tiny_denoiser().to("meta"), batch.input, batch.label, noise)
    assert loss.device.type == "meta" and len(routings) == 2


def test_a_loss_that_cannot_be_weighted_is_refused_when_its_task_is_made():
    diffusion = Diffusion(loss="huber", min_snr_gamma=5)
    with pytest.raises(UserError, match="min_snr_gamma=5 with loss=huber and prediction_type=v is not possible"):
        DiffusionModule(tiny_denoiser(), diffusion, torch.optim.AdamW)


@pytest.mark.parametrize("router", [IntervalRouter, soft_intervals, NoiseRouter, LabelRouter])
def test_a_mixture_of_denoisers_is_where_it_is(router):
    net, x = mixture(router).to("meta"), torch.zeros(6, 1, 8, 8, device="meta")
    t = label = torch.zeros(6, dtype=torch.long, device="meta")
    for mode in (True, False):
        with OneDevice():
            y, (routing,) = net.train(mode)(x, t, label, return_routing=True)
        assert y.device.type == "meta" and y.shape == x.shape
        assert {part.device.type for part in routing} == {"meta"} and len(routing.expert_ids) == 6


for name in TASKS: test_the_loss_of_a_task_never_mixes_devices(name)
