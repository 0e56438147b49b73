# Made from nbs/45_loop.ipynb by `pmd-dev tests`. Edit the notebook.
import os
import signal
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from perceiver_moe_diffusion.core import Stream, UserError
from perceiver_moe_diffusion.data.batches import Batch
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.diffusion.process import Diffusion, LossNoise
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.attention import Dense
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.moe import (
    BiasBalancedRouter,
    NoisyTopKRouter,
    Routing,
    TopKRouter,
    build_moe,
    importance_loss,
    load_loss,
)
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.training.loop import (
    EMA,
    NonFiniteLoss,
    StopOnCtrlC,
    TrainerData,
    TrainingModule,
    ema_decay,
    router_losses,
    warmup_cosine,
)
from perceiver_moe_diffusion.training.tasks import DiffusionModule


def tiny_denoiser(router=TopKRouter) -> PerceiverDenoiser:
    "A very small denoiser; always with the same weights."
    torch.manual_seed(0)
    feed_forward = partial(build_moe, num_experts=4, top_k=2, router=router) if router else Dense
    adapter = partial(ConvAdapter, dim=16, stem_patch=1, token_patch=4, stem_channels=8, num_bands=2)
    core = partial(PerceiverIO, dim=16, num_latents=4, depth=1, num_heads=2, feed_forward=feed_forward)
    return PerceiverDenoiser((1, 8, 8), 10, condition_dim=16, adapter=adapter, core=core)


def test_the_learning_rate_rises_peaks_after_the_warm_up_and_ends_at_zero():
    factors = [warmup_cosine(n, 20, 100) for n in range(101)]
    peak = factors.index(max(factors))
    assert peak in (18, 19, 20), "the cosine falls a little before the warm-up is over"
    assert factors[0] == pytest.approx(1 / 20, rel=1e-3), "not zero: a first step of length 0 would be wasted"
    assert all(a < b for a, b in zip(factors[:peak], factors[1:peak + 1])), "it rises"
    assert all(a > b for a, b in zip(factors[peak:], factors[peak + 1:])), "and falls"
    assert factors[100] == pytest.approx(0, abs=1e-12) and warmup_cosine(101, 20, 100) == pytest.approx(0, abs=1e-12)


def test_no_warm_up_starts_at_the_full_learning_rate():
    assert warmup_cosine(0, 0, 100) == warmup_cosine(0, 1, 100) == 1



def test_a_training_of_no_steps_has_a_learning_rate_too():
    assert warmup_cosine(0, 0, 0) == 1, "the schedule is asked once, before the first step"


def test_the_decay_grows_to_its_limit():
    decays = [ema_decay(n, 0.99) for n in range(2000)]
    assert decays[0] == 0.1 and decays[-1] == 0.99
    assert all(a <= b for a, b in zip(decays, decays[1:]))


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan"), "0.9"])
def test_a_decay_outside_0_to_1_is_refused(decay):
    with pytest.raises(UserError, match="ema_decay"):
        EMA(decay)


def collapsed(expert: int) -> Routing:
    "Ten rows, two experts, and all rows go to one."
    logits = torch.full((10, 2), -9.0)
    logits[:, expert] = 9.0
    return Routing(torch.full((10, 1), expert), torch.ones(10, 1), logits)


def test_opposite_collapses_do_not_cancel():
    losses = router_losses([collapsed(0), collapsed(1)])
    torch.testing.assert_close(losses, {"balance": torch.tensor(2.0), "z": torch.tensor(81.0)})


def test_a_model_without_experts_has_no_router_losses():
    torch.testing.assert_close(router_losses([]), {"balance": torch.zeros(()), "z": torch.zeros(())})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_goes_on_at_the_step_of_the_trainer(accumulate):
    data = DataModule(digits, batch_size=10)
    loaded = TrainerData(data)
    loaded.trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=accumulate, global_rank=0, world_size=1)
    loader = loaded.train_dataloader()
    loaded.trainer.global_step = 7  # the checkpoint is read after the loader was made
    batch, expected = next(iter(loader)), data.train_batches().batch(7 * accumulate)
    assert batch.step == 7 * accumulate
    assert torch.equal(batch.input, expected.input) and torch.equal(batch.label, expected.label)


ADAMW = partial(torch.optim.AdamW, lr=1e-2)


def tiny(router=TopKRouter, optimizer=ADAMW, diffusion=None, **settings) -> DiffusionModule:
    "A training module with a very small denoiser; always with the same weights."
    settings = {"warmup_steps": 2, **settings}
    return DiffusionModule(tiny_denoiser(router), diffusion or Diffusion(), optimizer, **settings)


class Diary(Callback):
    "Writes down what happens, by number of the batch, or of the optimizer step for validation and gradients."

    def __init__(self):
        self.loss, self.rate, self.val_loss, self.norm, self.weights = {}, {}, {}, {}, []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.norm[trainer.global_step] = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]).item()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rate[batch.step] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.loss[batch.step] = trainer.callback_metrics["loss"].item()
        self.weights.append(module.model.core.latents.detach().clone())

    def on_validation_end(self, trainer, module):
        self.val_loss[trainer.global_step] = trainer.callback_metrics["val_loss"].item()


class At(Callback):
    "Does something just before a batch."

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch.step == self.step:
            self.action(batch)


def fit(module, steps=8, callbacks=(), checkpoint=None, ema=0.9, batch_size=16, **settings) -> tuple[Trainer, Diary]:
    "Train on the digits, validating now and then, from the start or from a checkpoint."
    diary = Diary()
    settings = {"devices": 1, "val_check_interval": 3, "limit_val_batches": 1, "gradient_clip_val": 1.0, **settings}
    saves = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    callbacks = [ema if isinstance(ema, Callback) else EMA(ema), diary, *callbacks]
    trainer = Trainer(max_steps=steps, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=saves,
                      enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
                      num_sanity_val_steps=0, **settings)
    trainer.fit(module, TrainerData(DataModule(digits, batch_size=batch_size)), ckpt_path=checkpoint, weights_only=True)
    return trainer, diary


def same_weights(found: DiffusionModule, expected: DiffusionModule) -> None:
    "Bit by bit."
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def by_hand(weights: list, decay: float) -> torch.Tensor:
    "The average after the last of the weights, straight from the formula."
    average = weights[0]
    for n, current in enumerate(weights[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * current
    return average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_fit_leaves_the_average_of_the_formula_in_the_module(accumulate):
    module = tiny()
    _, diary = fit(module, ema=0.3, accumulate_grad_batches=accumulate)
    steps = diary.weights[accumulate - 1::accumulate]
    torch.testing.assert_close(module.model.core.latents.detach(), by_hand(steps, decay=0.3))
    assert not torch.equal(module.model.core.latents, diary.weights[-1])


def test_validation_judges_the_average():
    module = tiny()
    trainer, diary = fit(module, steps=6, ema=0.9)
    batch = next(iter(trainer.val_dataloaders))
    with torch.no_grad():
        averaged, _ = module.eval().loss(batch, Stream.VALIDATION_NOISE)
        module.model.core.latents.copy_(diary.weights[-1])
        mixed, _ = module.loss(batch, Stream.VALIDATION_NOISE)
    assert diary.val_loss[6] == averaged.item() != mixed.item()


@pytest.mark.parametrize("router", [NoisyTopKRouter, BiasBalancedRouter])
def test_validation_changes_nothing(router):
    "Neither the weights, nor the random numbers, nor what a router remembers about its load."
    with_it, without = tiny(router), tiny(router)
    fit(with_it, val_check_interval=1)
    fit(without, limit_val_batches=0)
    same_weights(with_it, without)


def buffers(module: DiffusionModule, name: str) -> list[torch.Tensor]:
    "The buffers of the routers, by name: `bias` or `load`."
    return [getattr(m, name) for m in module.modules() if isinstance(m, BiasBalancedRouter)]


def test_a_router_counts_its_load_in_training_only():
    module = tiny(BiasBalancedRouter)
    images, t, labels = torch.zeros(2, 1, 8, 8), torch.tensor([3, 4]), torch.tensor([5, 6])
    module.eval().model(images, t, labels)
    assert all(not load.any() for load in buffers(module, "load"))
    module.train().model(images, t, labels)
    assert all(load.any() for load in buffers(module, "load"))


def test_a_balancing_bias_is_a_state_and_is_not_averaged():
    averaged, last = tiny(BiasBalancedRouter), tiny(BiasBalancedRouter)
    fit(averaged, ema=0.9)
    fit(last, ema=0.0)
    assert not torch.equal(averaged.model.core.latents, last.model.core.latents)
    torch.testing.assert_close(buffers(averaged, "bias"), buffers(last, "bias"), rtol=0, atol=0)
    assert any(bias.any() for bias in buffers(last, "bias"))


def test_the_default_decay_averages_over_a_thousand_steps():
    import inspect

    EMA()  # it is allowed
    decay = inspect.signature(EMA).parameters["decay"].default
    assert 1 / (1 - decay) == pytest.approx(1000)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_optimizer_follows_the_schedule(accumulate):
    _, diary = fit(tiny(warmup_steps=3), accumulate_grad_batches=accumulate)
    expected = [1e-2 * warmup_cosine(batch // accumulate, 3, 8) for batch in range(8 * accumulate)]
    assert list(diary.rate.values()) == pytest.approx(expected)


def test_training_without_an_end_is_refused():
    with pytest.raises(UserError, match="max_steps=-1"):
        fit(tiny(), steps=-1)


def test_training_makes_the_loss_smaller():
    _, diary = fit(tiny(), steps=40, ema=0.9, val_check_interval=4, batch_size=32)
    assert diary.val_loss[40] < 0.8 * diary.val_loss[4]


class Told(TrainingModule):
    "A task whose loss is 2, and whose routers did what they are told to have done."

    def __init__(self, routings, **settings):
        super().__init__(torch.nn.Linear(1, 1), ADAMW, **settings)
        self.routings = routings

    def loss(self, batch, stream):
        return torch.tensor(2.0), self.routings


def step_by_hand(module, step=3):
    "The module as its trainer sees it at a step, with nowhere to log to, and a batch of digits."
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=step)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return Batch(digits().inputs(slice(0, 4)), digits().labels[:4], step)


@pytest.mark.parametrize("balance_weight, z_weight, total", [(0, 0, 2), (0.5, 0, 2 + 0.5 * 2), (0, 0.1, 2 + 0.1 * 81)])
def test_what_is_minimised_is_the_loss_plus_the_weighted_auxiliary_losses(balance_weight, z_weight, total):
    module = Told([collapsed(0), collapsed(1)], balance_weight=balance_weight, z_weight=z_weight)
    assert module.training_step(step_by_hand(module), 0).item() == pytest.approx(total, rel=1e-4)


def test_the_losses_of_shazeer_count_with_their_weights_and_are_not_even_computed_without():
    torch.manual_seed(0)
    noisy = NoisyTopKRouter(4, 3, 2)(torch.randn(20, 4))
    plain, both = Told([noisy]), Told([noisy], importance_weight=0.5, load_weight=0.25)
    alone, added = (module.training_step(step_by_hand(module), 0) for module in (plain, both))
    expected = alone + 0.5 * importance_loss(noisy) + 0.25 * load_loss(noisy)
    torch.testing.assert_close(added, expected)
    quiet, asked = Told([collapsed(0)]), Told([collapsed(0)], load_weight=0.25)
    quiet.training_step(step_by_hand(quiet), 0)
    with pytest.raises(UserError, match="load loss of a router without noise"):
        asked.training_step(step_by_hand(asked), 0)


def test_a_step_on_the_balance_loss_makes_the_load_more_even():
    logits = torch.tensor([[2.0, 0.0]] * 10, requires_grad=True)
    module = Told([Routing(torch.zeros(10, 1, dtype=torch.long), torch.ones(10, 1), logits)], z_weight=0)
    module.training_step(step_by_hand(module), 0).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1] < 0).all(), "a step leads away from expert 0"


def test_validation_draws_noise_that_training_does_not_and_the_same_each_time():
    module, seen = tiny(), []
    module.model.register_forward_pre_hook(lambda model, args: seen.append((args[0], args[1])))
    batch = step_by_hand(module)
    module.training_step(batch, 0)
    for _ in range(2):
        module.validation_step(batch, 0)
    (trained, at), (judged, judged_at), again = seen
    assert not torch.equal(trained, judged) and not torch.equal(at, judged_at)
    assert torch.equal(judged, again[0]) and torch.equal(judged_at, again[1])


def test_the_defaults_are_those_that_recorded_results_were_trained_with():
    module = Told([])
    assert (module.warmup_steps, module.balance_weight, module.z_weight, module.seed) == (50, 0.01, 1e-3, 0)
    assert (module.importance_weight, module.load_weight) == (0, 0)


class StillDiffusion(Diffusion):
    "Always the same timestep and no noise: for comparing batches that are cut in different ways."

    def sample_noise(self, size, shape, generator=None):
        return LossNoise(torch.full((size,), 300), torch.zeros(size, *shape), torch.zeros(size, dtype=torch.bool))


@pytest.mark.parametrize("router", [TopKRouter, partial(BiasBalancedRouter, rate=0.05)])
def test_two_half_batches_are_one_batch(router):
    def trained(**settings):
        module = tiny(router, partial(torch.optim.SGD, lr=0.1), StillDiffusion(), balance_weight=0, z_weight=0)
        fit(module, limit_val_batches=0, **settings)
        return module.state_dict()
    halves, whole = trained(batch_size=16, accumulate_grad_batches=2), trained(batch_size=32)
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-6)


class Gradients(Callback):
    "Keeps the gradients of the last step."

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.of = {name: None if p.grad is None else p.grad.abs().max().item() for name, p in module.named_parameters()}


class OnlyTwo(TopKRouter):
    "Sends everything to experts 0 and 1."

    def scores(self, rows, logits):
        return logits + torch.tensor([99.0, 99.0, 0.0, 0.0])


def test_an_idle_expert_has_a_gradient_of_zero_rather_than_none():
    "Data-parallel training waits for the gradient of every parameter: a missing one hangs or stops it."
    gradients = Gradients()
    fit(tiny(OnlyTwo), steps=1, callbacks=[gradients])
    assert all(value is not None for value in gradients.of.values())
    experts = {i: [value for name, value in gradients.of.items() if f"experts.{i}." in name] for i in range(4)}
    assert max(experts[0]) > 0 and max(experts[1]) > 0
    assert set(experts[2] + experts[3]) == {0.0} and len(experts[2]) == len(experts[0]) > 0


def power_cut(batch) -> None:
    raise RuntimeError("the power went off")


def saved_every(steps: int, folder) -> ModelCheckpoint:
    "Lightning's own callback, as `pmd-train` uses it: one file, `last.ckpt`."
    return ModelCheckpoint(folder, filename="last", every_n_train_steps=steps, enable_version_counter=False)


def interrupted(module, folder, at, every, **settings) -> Diary:
    "A training that is cut off just before batch `at`; the last checkpoint stays in the folder."
    diary = Diary()
    with pytest.raises(RuntimeError, match="power"):
        fit(module, callbacks=[diary, At(at, power_cut), saved_every(every, folder)], **settings)
    return diary


@cache
def uninterrupted(router, accumulate: int = 1) -> tuple[DiffusionModule, Diary]:
    "Eight steps in one go."
    module = tiny(router)
    _, diary = fit(module, accumulate_grad_batches=accumulate)
    return module, diary


def resumed_like_uninterrupted(router, checkpoint, accumulate: int = 1) -> Diary:
    "Go on from a checkpoint and compare everything with the run that was never stopped."
    module = tiny(router)
    _, diary = fit(module, checkpoint=checkpoint, accumulate_grad_batches=accumulate)
    expected, whole = uninterrupted(router, accumulate)
    same_weights(module, expected)  # which is the average; the last weights are in the diaries
    torch.testing.assert_close(diary.weights, whole.weights[-len(diary.weights):], rtol=0, atol=0)
    for kind in ("loss", "rate", "norm", "val_loss"):
        found, expected = getattr(diary, kind), getattr(whole, kind)
        assert found == {step: expected[step] for step in found}, kind
    return diary


@pytest.mark.parametrize("router, accumulate, every, at", [
    (None, 1, 3, 5), (TopKRouter, 1, 2, 5), (NoisyTopKRouter, 1, 3, 5),
    (BiasBalancedRouter, 1, 4, 4), (BiasBalancedRouter, 2, 3, 9)])
def test_crash_and_resume_equals_the_uninterrupted_run_exactly(router, accumulate, every, at, tmp_path):
    interrupted(tiny(router), tmp_path, at, every, accumulate_grad_batches=accumulate)
    diary = resumed_like_uninterrupted(router, tmp_path / "last.ckpt", accumulate)
    first = at // accumulate // every * every * accumulate
    assert list(diary.loss) == list(range(first, 8 * accumulate)), "it goes on where the checkpoint was written"
    assert diary.val_loss, "and validates again"


def test_resuming_a_run_that_had_ended_gives_its_average(tmp_path):
    ended, again = tiny(), tiny()
    fit(ended, steps=4, callbacks=[saved_every(4, tmp_path)])
    fit(again, steps=4, checkpoint=tmp_path / "last.ckpt")
    same_weights(again, ended)


def test_a_checkpoint_needs_no_pickle(tmp_path):
    interrupted(tiny(), tmp_path, at=5, every=4)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    averaged, last = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert averaged.keys() == last.keys()
    assert not torch.equal(averaged["model.core.latents"], last["model.core.latents"])


def test_an_error_during_validation_corrupts_neither_the_weights_nor_the_checkpoint(tmp_path):
    class Fails(Callback):
        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            if trainer.global_step == 6:
                raise RuntimeError("no space left on device")
    module = tiny()
    with pytest.raises(RuntimeError, match="no space"):
        fit(module, callbacks=[Fails(), saved_every(2, tmp_path)])
    _, whole = uninterrupted(TopKRouter)
    torch.testing.assert_close(module.model.core.latents.detach(), whole.weights[5], rtol=0, atol=0)
    resumed_like_uninterrupted(TopKRouter, tmp_path / "last.ckpt")


def press_ctrl_c(batch) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("accumulate, at, step", [(1, 4, 5), (3, 10, 4)])
def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on_exactly(accumulate, at, step, tmp_path):
    stop, before = StopOnCtrlC(tmp_path / "last.ckpt"), signal.getsignal(signal.SIGINT)
    trainer, _ = fit(tiny(), callbacks=[stop, At(at, press_ctrl_c)], accumulate_grad_batches=accumulate)
    assert stop.asked and trainer.global_step == step, "the step in which it was pressed is finished, no other begun"
    assert signal.getsignal(signal.SIGINT) is before
    diary = resumed_like_uninterrupted(TopKRouter, tmp_path / "last.ckpt", accumulate)
    assert list(diary.loss)[0] == step * accumulate


def test_a_second_ctrl_c_ends_training_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):  # how Lightning leaves
        fit(tiny(), callbacks=[StopOnCtrlC(tmp_path / "last.ckpt"), At(2, press_ctrl_c), At(2, press_ctrl_c)])
    assert not (tmp_path / "last.ckpt").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_means_what_it_meant_before_once_training_is_over(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    stop = StopOnCtrlC(tmp_path / "last.ckpt")
    fit(tiny(), steps=2, callbacks=[stop])
    assert signal.getsignal(signal.SIGINT) is before and not stop.asked and not stop.path.exists()
    with pytest.raises(RuntimeError):
        fit(tiny(), steps=2, callbacks=[stop, At(1, power_cut)])
    assert signal.getsignal(signal.SIGINT) is before


def spoil(batch) -> None:
    batch.input.fill_(float("nan"))


def test_a_loss_that_is_nan_stops_training_and_names_the_step(tmp_path):
    module = tiny()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(NonFiniteLoss, match="loss is nan at step 5.*optimizer.lr") as stopped:
        fit(module, callbacks=[At(5, spoil), saved_every(2, tmp_path), StopOnCtrlC(tmp_path / "last.ckpt")])
    assert isinstance(stopped.value, UserError) and "\n" not in str(stopped.value)
    assert all(weight.isfinite().all() for weight in module.parameters())
    assert signal.getsignal(signal.SIGINT) is before
    resumed_like_uninterrupted(TopKRouter, tmp_path / "last.ckpt")


def test_a_gradient_that_is_infinite_stops_training_before_it_reaches_the_weights():
    class Explodes(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step == 3:
                next(module.parameters()).grad.fill_(float("inf"))
    module = tiny()
    with pytest.raises(NonFiniteLoss, match="norm of the gradient is inf at step 3"):
        fit(module, callbacks=[Explodes()])
    assert all(weight.isfinite().all() for weight in module.parameters())


def compared_training(router, accumulate: int, devices: int) -> dict:
    "What a training left behind, on one process or on several."
    module = tiny(router, partial(torch.optim.SGD, lr=0.1), balance_weight=0.1)
    strategy = "ddp" if devices > 1 else "auto"
    trainer, diary = fit(module, steps=4, devices=devices, strategy=strategy, accumulate_grad_batches=accumulate,
                         val_check_interval=4, limit_val_batches=1.0)
    return {"weights": module.state_dict(), "loss": diary.loss, "val_loss": diary.val_loss, "rank": trainer.global_rank}


CASES = {
    "a bias that balances, gathered gradients": (partial(BiasBalancedRouter, rate=0.05), 2),
    "balance loss": (TopKRouter, 1),
}
SCRIPT = """
import sys, torch
from test_training_loop import CASES, compared_training
results = {name: compared_training(*case, devices=2) for name, case in CASES.items()}
if results["balance loss"]["rank"] == 0:
    torch.save(results, sys.argv[1])
"""


def test_two_processes_train_like_one(tmp_path):
    script, out = tmp_path / "two.py", tmp_path / "two.pt"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    two = torch.load(out, weights_only=True)
    for name, case in CASES.items():
        one = compared_training(*case, devices=1)
        for what in ("weights", "loss", "val_loss"):
            message = lambda m, where=f"{name}, {what}": f"{where}: {m}"
            torch.testing.assert_close(two[name][what], one[what], rtol=1e-4, atol=1e-6, msg=message)
    weights = two["a bias that balances, gathered gradients"]["weights"]
    bias = [value for key, value in weights.items() if key.endswith("router.bias")]
    assert bias and all(value.abs().max() > 0 for value in bias), "the bias has moved, so its agreement says something"
