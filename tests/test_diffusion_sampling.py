# Made from nbs/13_sampling.ipynb by `pmd-dev tests`. Edit the notebook.
import math
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.process import Diffusion, PredictionType, cosine, linear, sigmoid
from perceiver_moe_diffusion.diffusion.sampling import (
    DDIM,
    DDPM,
    DPMSolverPP,
    NoiseStream,
    classifier_free_guidance,
    inpaint,
    sdedit_start,
    trailing_step_pairs,
)


class Toy:
    "A model with a different answer for each label, and none of the batch's business elsewhere."
    null_label = 10

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, label):
        self.calls.append(len(x))
        return torch.tanh(x) * (1 + label.view(-1, 1, 1, 1)) + t.view(-1, 1, 1, 1) / 1000


X, T5, LABEL = (torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((5,), 300),
                torch.arange(5))


@pytest.mark.parametrize("s", [0.5, 2.0, 7.5])
def test_the_two_forms_of_guidance_agree(s):
    model, w = Toy(), s - 1
    cond, uncond = model(X, T5, LABEL), model(X, T5, torch.full_like(LABEL, 10))
    assert_close(classifier_free_guidance(model, X, T5, LABEL, s), (1 + w) * cond - w * uncond)


def test_scale_1_is_conditional_and_0_unconditional_and_either_is_one_forward():
    model = Toy()
    assert_close(classifier_free_guidance(model, X, T5, LABEL, 1.0), model(X, T5, LABEL))
    assert_close(classifier_free_guidance(model, X, T5, LABEL, 0.0), model(X, T5, torch.full_like(LABEL, 10)))
    assert set(model.calls) == {5}
    classifier_free_guidance(model, X, T5, LABEL, 1.5)
    assert model.calls[-1] == 10


def test_each_image_may_have_its_own_scale():
    scales = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    together = classifier_free_guidance(Toy(), X, T5, LABEL, scales)
    alone = torch.cat(
        [classifier_free_guidance(Toy(), X[i : i + 1], T5[:1], LABEL[i : i + 1], float(s))
         for i, s in enumerate(scales)]
    )
    assert_close(together, alone)


@pytest.mark.parametrize("prediction_type", list(PredictionType))
def test_guidance_commutes_with_the_prediction_type(prediction_type):
    """Guiding the answer is guiding x0: the step from one to the other is linear.

    (Clipping and rescale are not, hence the order of the loop.)
    """
    a, b = 0.6, 0.8
    cond, uncond, x = torch.randn(3, 2, 1, 4, 4)
    guided = prediction_type.to_x0(uncond + 3 * (cond - uncond), x, a, b)
    x0_c, x0_u = prediction_type.to_x0(cond, x, a, b), prediction_type.to_x0(uncond, x, a, b)
    assert_close(guided, x0_u + 3 * (x0_c - x0_u))


def test_full_rescale_brings_back_the_conditional_contrast():
    model = Toy()
    guided = classifier_free_guidance(model, X, T5, LABEL, 5.0, rescale=1.0)
    assert_close(guided.std((1, 2, 3)), model(X, T5, LABEL).std((1, 2, 3)))
    assert_close(classifier_free_guidance(model, X, T5, LABEL, 5.0, rescale=0.5),
                 (guided + classifier_free_guidance(model, X, T5, LABEL, 5.0)) / 2)


@pytest.mark.parametrize("T, steps", [(1000, 1), (1000, 12), (1000, 1000), (10, 7)])
def test_steps_begin_at_pure_noise_end_at_the_image_and_are_linked(T, steps):
    pairs = trailing_step_pairs(T, steps)
    assert len(pairs) == steps and pairs[0][0] == T - 1 and pairs[-1][1] == -1
    assert all(t > t_next for t, t_next in pairs)
    assert all(pair[1] == following[0] for pair, following in zip(pairs, pairs[1:]))


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(UserError, match="allowed: 1 to 1000"):
        trailing_step_pairs(1000, steps)


def test_an_images_noise_does_not_depend_on_the_batch():
    many, few = NoiseStream([(7, i) for i in range(5)], (1, 4, 4)), NoiseStream([(7, 3)], (1, 4, 4))
    for _ in range(40):                                   # beyond one block
        assert torch.equal(many()[3:4], few())


def test_images_and_steps_have_different_noise():
    stream = NoiseStream([(0, 0), (0, 1), (1, 0)], (1, 30, 30))
    first, second = stream(), stream()
    flat = torch.cat([first, second]).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(6)
    assert correlation.abs().max() < 0.2 and abs(flat.std() - 1) < 0.05


def test_how_many_steps_are_drawn_at_a_time_changes_nothing():
    at_once, one_by_one = NoiseStream([(2, 0), (2, 1)], (3, 5, 5)), NoiseStream([(2, 0), (2, 1)], (3, 5, 5))
    together = at_once.draw(20)
    assert together.shape == (20, 2, 3, 5, 5)
    assert torch.equal(together, torch.cat([one_by_one.draw(1) for _ in range(20)]))


@pytest.mark.parametrize("device", ["cpu", "meta", torch.device("cpu"), torch.device("meta")])
def test_the_noise_does_not_depend_on_the_device_that_wants_it(device):
    "Two kinds of device are everywhere: the CPU, and `meta`, which has shapes and no numbers."
    plain, placed = (NoiseStream([(4, 0), (4, 1)], (1, 3, 5), *where) for where in ((), (device,)))
    for _ in range(20):                                   # beyond one block
        expected, found = plain(), placed()
        assert found.device.type == torch.device(device).type and found.shape == expected.shape == (2, 1, 3, 5)
        assert found.is_meta or torch.equal(found, expected)


def test_the_noise_is_normal():
    """Moments, tails, and the largest distance to the normal distribution function (Kolmogorov & Smirnov), at 1.6
    million numbers.
    """
    z = NoiseStream([(3, i) for i in range(4)], (1, 100, 500)).draw(8).flatten().double().sort().values
    n = len(z)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((z**power).mean() - moment) < 4 * spread / n**0.5, f"moment {power}"
    ecdf = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (torch.special.ndtr(z) - ecdf).abs().max() < 1.63 / n**0.5  # 1 % of truly normal samples are further off
    beyond_4 = float((z.abs() > 4).sum())
    assert abs(beyond_4 - n * 6.334e-5) < 4 * (n * 6.334e-5) ** 0.5 and z.abs().max() > 4.2


def test_steps_images_and_neighbours_share_nothing():
    "The two numbers made from one pair are independent: neither they nor their squares are correlated."
    flat = NoiseStream([(1, 0), (1, 1)], (1, 200, 200)).draw(8).flatten(0, 1).flatten(1)
    for rows in (flat, flat.square()):
        assert (torch.corrcoef(rows) - torch.eye(16)).abs().max() < 5 / flat.shape[1] ** 0.5


class GaussianModel:
    "The exact denoiser for data from N(0.3, 0.5²)."
    null_label = 0

    def __init__(self, diffusion):
        self.diffusion = diffusion

    def __call__(self, x, t, label):
        a, b = self.diffusion.rates(t, x)
        x0 = 0.3 + a * 0.25 / (a**2 * 0.25 + b**2) * (x - a * 0.3)
        return self.diffusion.prediction_type.target(x0, (x - a * x0) / b, a, b)


def endpoint_error(sampler):
    diffusion = Diffusion(1000, cosine)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
    a, b = diffusion.alpha_bar[-1].sqrt(), (1 - diffusion.alpha_bar[-1]).sqrt()
    exact = 0.3 + 0.5 * (x - 0.3 * a) / (a**2 * 0.25 + b**2).sqrt()         # the ODE keeps each point's quantile
    *_, last = sampler.iterate(GaussianModel(diffusion), diffusion, torch.zeros(9, dtype=torch.long), x)
    return float((last.x_next - exact).abs().max())


def path_error(sampler, start=900, stop=200):
    "The largest distance from the exact path at `stop`, after the sampler's even steps from the exact path at `start`."
    diffusion, z = Diffusion(1000, cosine), torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)

    def exact(t):  # the point of each path that has the quantile z
        alpha_bar = diffusion.alpha_bar[t]
        return 0.3 * alpha_bar.sqrt() + z * (alpha_bar * 0.25 + 1 - alpha_bar).sqrt()

    t = [round(start + i * (stop - start) / sampler.steps) for i in range(sampler.steps + 1)]
    *_, last = sampler.iterate(GaussianModel(diffusion), diffusion, torch.zeros(9, dtype=torch.long), exact(start),
                               pairs=list(zip(t, t[1:])))
    return float((last.x_next - exact(stop)).abs().max())


def order(error, sampler, few, many):
    "p, if the error behaves like steps^(−p)."
    error_after = lambda steps: error(sampler(steps, 1.0, clip=False))
    return math.log(error_after(few) / error_after(many)) / math.log(many / few)


def test_between_two_timesteps_ddim_is_of_first_order_and_dpm_solver_of_second():
    for few, many in ((10, 20), (20, 40), (40, 80)):
        assert 0.9 < order(path_error, DDIM, few, many) < 1.1
        assert 1.8 < order(path_error, DPMSolverPP, few, many) < 2.4


def test_ddim_is_first_order_and_dpm_solver_better():
    ddim = [endpoint_error(DDIM(n, 1.0, clip=False)) for n in (10, 20, 40)]
    second = [endpoint_error(DPMSolverPP(n, 1.0, clip=False)) for n in (10, 20, 40)]
    assert 1.6 < ddim[0] / ddim[1] < 2.4 and 1.6 < ddim[1] / ddim[2] < 2.4
    assert all(s < d / 2 for s, d in zip(second, ddim)) and second[2] < second[0] / 6


@pytest.mark.parametrize("sampler", [DDIM(100, 1.0, eta=1.0, clip=False), DDPM(100, 1.0, clip=False)])
def test_stochastic_samplers_reach_the_datas_distribution(sampler):
    diffusion = Diffusion(1000, cosine)
    images = sampler.sample(GaussianModel(diffusion), diffusion, torch.zeros(40, dtype=torch.long), (1, 20, 20),
                            [(0, i) for i in range(40)])
    assert abs(images.mean() - 0.3) < 0.03 and abs(images.std() - 0.5) < 0.06


def eps_model(x, t, label):
    "A smooth stand-in for a trained network that predicts ε."
    return torch.sin(3 * x) * 0.3 + 0.8 * x * (1 + t.view(-1, 1, 1, 1)) / 1000


def ours(sampler, prediction_type="eps", model=eps_model, schedule=linear, noise=None, start=1.0):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * start
    diffusion = Diffusion(1000, schedule, prediction_type=prediction_type)
    *_, last = sampler.iterate(model, diffusion, torch.zeros(2, dtype=torch.long), x, noise)
    return last.x_next


def theirs(scheduler, steps, start=1.0, **step_options):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * start
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        answer = eps_model(scheduler.scale_model_input(x, t), t.long().expand(2), None)
        x = scheduler.step(answer, t, x, **step_options).prev_sample
    return x


@pytest.mark.parametrize("steps", [10, 20, 50, 100])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_equals_diffusers(steps, clip):
    from diffusers import DDIMScheduler

    peer = DDIMScheduler(beta_schedule="linear", clip_sample=clip, set_alpha_to_one=True, timestep_spacing="trailing")
    assert_close(ours(DDIM(steps, 1.0, clip=clip)), theirs(peer, steps, use_clipped_model_output=clip),
                 atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [2, 5, 10, 12, 20, 50])
def test_dpm_solver_equals_diffusers_and_its_first_order_is_ddim(order, steps):
    from diffusers import DPMSolverMultistepScheduler

    peer = DPMSolverMultistepScheduler(
        beta_schedule="linear",
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=order,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    sampler = (DDIM if order == 1 else DPMSolverPP)(steps, 1.0, clip=False)
    peer.set_timesteps(steps)
    if [int(t) for t in peer.timesteps] != [t for t, _ in trailing_step_pairs(1000, steps)]:
        pytest.skip("diffusers rounds these timesteps differently")
    assert_close(ours(sampler), theirs(peer, steps), atol=5e-5, rtol=1e-5)


def test_euler_equals_ddim():
    "Euler's method in σ, fed x_T/√ᾱ_T, is DDIM in other words."
    from diffusers import EulerDiscreteScheduler

    peer = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing")
    assert_close(ours(DDIM(20, 1.0, clip=False)), theirs(peer, 20, start=linear()[-1].rsqrt().item()),
                 atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_heuns_method_on_our_tables_equals_diffusers(steps):
    """In σ = √((1−ᾱ)/ᾱ) the path is dx̄/dσ = ε(x̄/√(σ²+1), t).

    Heun takes the mean of the slopes at both ends, Euler at the last step.
    """
    from diffusers import HeunDiscreteScheduler

    sigma = [*((1 - linear()) / linear()).sqrt().float().tolist(), 0.0]
    slope = lambda x, t: eps_model(x / (sigma[t]**2 + 1) ** 0.5, torch.full((2,), t), None)
    start = linear()[-1].rsqrt().item()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * start
    for t, t_next in trailing_step_pairs(1000, steps):
        h, d = sigma[t_next] - sigma[t], slope(x, t)
        x = x + h * (d if t_next < 0 else (d + slope(x + h * d, t_next)) / 2)
    peer = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing")
    assert_close(x, theirs(peer, steps, start=start), atol=5e-5, rtol=1e-5)


def test_ddpm_equals_ddim_at_eta_1_with_the_same_noise():
    noise = lambda: NoiseStream([(5, 0), (5, 1)], (1, 8, 8))
    assert_close(ours(DDPM(50, 1.0, clip=False), noise=noise()),
                 ours(DDIM(50, 1.0, clip=False, eta=1.0), noise=noise()), atol=1e-5, rtol=1e-5)


def test_ddpm_equals_diffusers_with_the_same_noise(monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    stream = NoiseStream([(5, 0), (5, 1)], (1, 8, 8))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: stream())
    peer = DDPMScheduler(beta_schedule="linear", variance_type="fixed_small", clip_sample=False,
                         timestep_spacing="trailing")
    assert_close(ours(DDPM(50, 1.0, clip=False), noise=NoiseStream([(5, 0), (5, 1)], (1, 8, 8))), theirs(peer, 50),
                 atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_ddim_between_eta_0_and_1_equals_diffusers_with_the_same_noise(eta):
    from diffusers import DDIMScheduler

    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    peer = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    drawn = ours(DDIM(20, 1.0, clip=False, eta=eta), noise=lambda: noise)
    # the same noise at each step pushes some pixels far out, where float32 is coarse
    assert_close(drawn, theirs(peer, 20, eta=eta, variance_noise=noise), atol=5e-4, rtol=1e-4)


SAMPLERS = [DDIM(8), DDIM(8, eta=1.0), DDPM(8), DPMSolverPP(8)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler):
    diffusion, labels, seeds = Diffusion(100), torch.arange(6), [(3, i) for i in range(6)]
    together = sampler.sample(Toy(), diffusion, labels, (1, 4, 4), seeds)
    alone = torch.cat([sampler.sample(Toy(), diffusion, labels[i:i + 1], (1, 4, 4), seeds[i:i + 1]) for i in range(6)])
    assert_close(together, alone)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", [linear, cosine])
@pytest.mark.parametrize("prediction_type", ["x0", "v"])
def test_pure_noise_at_the_start_is_no_special_case(sampler, schedule, prediction_type):
    "With zero terminal SNR ᾱ is exactly 0 at the first step: no division by it anywhere."
    diffusion = Diffusion(100, schedule, zero_snr=True, prediction_type=prediction_type)
    images = sampler.sample(Toy(), diffusion, torch.arange(3), (1, 4, 4), [(0, i) for i in range(3)])
    assert images.isfinite().all() and images.abs().max() <= 1.001


def test_clipping_keeps_x0_in_range_and_the_noise_consistent():
    diffusion = Diffusion(100)
    for step in DDIM(8, 5.0).iterate(Toy(), diffusion, LABEL, X):
        a, b = diffusion.alpha_bar[step.t].sqrt(), (1 - diffusion.alpha_bar[step.t]).sqrt()
        assert step.x0.abs().max() <= 1
        assert_close(a.float() * step.x0 + b.float() * step.eps, step.x, atol=1e-5, rtol=1e-5)


def test_outside_its_interval_guidance_is_off():
    model, diffusion = Toy(), Diffusion(100)
    sigma = lambda t: float(((1 - diffusion.alpha_bar[t]) / diffusion.alpha_bar[t]).sqrt())
    for step in DDIM(10, 3.0, guidance_interval=[0.3, 2.0]).iterate(model, diffusion, LABEL, X):
        assert model.calls[-1] == (10 if 0.3 <= sigma(step.t) <= 2.0 else 5)


def test_a_loop_that_is_not_asked_further_stops():
    model = Toy()
    steps = DDIM(8, 1.0).iterate(model, Diffusion(100), LABEL, X)
    next(steps), next(steps)
    steps.close()
    assert len(model.calls) == 2


@pytest.mark.parametrize("sampler", [*SAMPLERS, DDIM(8, guidance_rescale=0.5, guidance_interval=[0.3, 2.0])])
def test_images_are_made_on_the_device_of_the_labels(sampler):
    devices = set()

    class Trivial:
        null_label = 10

        def __call__(self, x, t, label):
            devices.update(part.device.type for part in (x, t, label))
            return 0.5 * x

    labels = torch.zeros(3, dtype=torch.long, device="meta")
    images = sampler.sample(Trivial(), Diffusion(100), labels, (1, 4, 4), [(0, i) for i in range(3)])
    assert images.is_meta and images.shape == (3, 1, 4, 4) and devices == {"meta"}


def test_progress_is_told_every_step_and_changes_nothing():
    seen, diffusion, seeds = [], Diffusion(100), [(3, i) for i in range(2)]

    def watched(steps):
        for step in steps:
            seen.append(step.t)
            yield step

    plain, told = (DDIM(8).sample(Toy(), diffusion, LABEL[:2], (1, 4, 4), seeds, **more)
                   for more in ({}, {"progress": watched}))
    assert torch.equal(plain, told) and seen == [t for t, _ in trailing_step_pairs(100, 8)]


def test_outside_its_interval_the_model_is_asked_with_its_label_and_inside_it_is_guided():
    model, diffusion = Toy(), Diffusion(100)
    inside = 0
    for step in DDIM(10, 3.0, guidance_interval=[0.3, 2.0], clip=False).iterate(model, diffusion, LABEL, X):
        alpha_bar = step.alpha_bar
        guided = 0.3 <= math.sqrt((1 - alpha_bar) / alpha_bar) <= 2.0
        inside += guided
        t = torch.full((5,), step.t)
        cond, uncond = model(step.x, t, LABEL), model(step.x, t, torch.full_like(LABEL, 10))
        y = uncond + 3 * (cond - uncond) if guided else cond
        assert_close(step.x0, math.sqrt(alpha_bar) * step.x - math.sqrt(1 - alpha_bar) * y)  # x0 of a predicted v
    assert 0 < inside < 10


@pytest.mark.parametrize("T", [100, 1000])
def test_the_ends_of_the_interval_are_measured_in_sigma(T):
    model, diffusion, steps = Toy(), Diffusion(T), [t for t, _ in trailing_step_pairs(T, 10)]
    for chosen in steps:
        sigma = math.sqrt((1 - diffusion.alpha_bar[chosen]) / diffusion.alpha_bar[chosen])
        sampler, model.calls = DDIM(10, 3.0, guidance_interval=[0.999 * sigma, 1.001 * sigma]), []
        list(sampler.iterate(model, diffusion, LABEL, X))
        assert model.calls == [10 if t == chosen else 5 for t in steps], "guided at this step, and at no other"


@pytest.mark.parametrize("sampler, message", [
    (DDIM(8, float("nan")), "guidance_scale=nan"), (DDIM(8, -1.0), "guidance_scale=-1.0"),
    (DDIM(8, float("inf")), "guidance_scale=inf"), (DDIM(8, guidance_rescale=2), "guidance_rescale=2"),
    (DDIM(8, guidance_interval=[2, 1]), r"guidance_interval=\[2, 1\]"),
    (DDIM(8, eta=1.5), "eta=1.5"), (DDIM(0), "steps=0"), (DDIM(101), "steps=101")])
def test_impossible_settings_are_refused_with_one_sentence(sampler, message):
    with pytest.raises(UserError, match=message):
        next(sampler.iterate(Toy(), Diffusion(100), LABEL, X))


def test_a_scale_is_at_most_1000_and_a_list_of_scales_has_one():
    DDIM(guidance_scale=1000).check()
    for scale, told in ((1000.5, "1000.5"), (-0.1, "-0.1"), ([], "a number, or a list of numbers"),
                        (torch.zeros(0), "a number, or a list of numbers")):
        with pytest.raises(UserError, match=told):
            DDIM(guidance_scale=scale).check()


class Smooth:
    "A denoiser whose answer for an image depends on nothing else in its batch."
    null_label = 3

    def __call__(self, x, t, label):
        return torch.tanh(x) * (1 + label.view(-1, 1, 1, 1)) / 4 + torch.sin(t.view(-1, 1, 1, 1) / 10)


class Flat(Smooth):
    "A denoiser whose answer has no contrast at all."

    def __call__(self, x, t, label):
        return torch.zeros_like(x) + label.view(-1, 1, 1, 1) / 4


NUMBERS = st.sampled_from([0, 1, 2.5, 1000, 1001, -1, float("nan"), float("inf"), True, "2", None])
SETTINGS = st.fixed_dictionaries({
    "steps": st.integers(1, 12) | st.integers(-1, 42),
    "guidance_scale": st.floats(0, 50) | st.lists(st.floats(0, 9), min_size=1, max_size=3) | NUMBERS,
    "guidance_rescale": st.floats(0, 1) | st.floats(0, 1) | NUMBERS,
    "guidance_interval": st.none() | st.tuples(st.floats(0, 3), st.floats(3, 50)) | st.lists(NUMBERS, max_size=3),
    "clip": st.booleans()})
PROCESS = st.tuples(st.integers(2, 40) | st.integers(0, 40), st.sampled_from([linear, cosine, sigmoid]), st.booleans(),
                    st.sampled_from(["eps", "x0", "v"]))
ONE_PIXEL = dict(steps=1, guidance_scale=0.3, guidance_rescale=0.3, guidance_interval=None, clip=True)


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(kind=st.sampled_from([DDIM, DDPM, DPMSolverPP, partial(DDIM, eta=0.5)]), wish=SETTINGS, process=PROCESS,
       model=st.sampled_from([Smooth(), Flat()]), shape=st.tuples(*[st.integers(1, 3)] * 3))
@example(kind=DDIM, wish=ONE_PIXEL, process=(2, linear, False, "eps"), model=Smooth(), shape=(1, 1, 1))
@example(kind=DDIM, wish=ONE_PIXEL, process=(2, linear, False, "v"), model=Flat(), shape=(1, 2, 2))
@example(kind=DDIM, wish={**ONE_PIXEL, "guidance_scale": []}, process=(2, linear, False, "v"), model=Flat(),
         shape=(1, 2, 2))
def test_settings_of_any_kind_give_finite_images_or_one_sentence(kind, wish, process, model, shape):
    def draw(labels, **more):
        seeds = [(1, i) for i in range(len(labels))]
        return kind(**{**wish, **more}).sample(model, diffusion, torch.tensor(labels), shape, seeds)
    each = wish["guidance_scale"] if isinstance(wish["guidance_scale"], list) else None
    labels = [0, 2] if each is None else [0, 1, 2][:len(each)]
    try:
        diffusion = Diffusion(*process)
        images = draw(labels)
    except UserError as error:
        assert "\n" not in str(error) and "allowed" in str(error)
        return
    assert images.shape == (len(labels), *shape) and images.isfinite().all()
    alone = draw(labels[:1], **({} if each is None else {"guidance_scale": each[:1]}))
    assert_close(alone, images[:1], rtol=1e-4, atol=1e-4)


def test_inpainting_keeps_the_known_pixels_exactly():
    diffusion, known = Diffusion(100), torch.rand(5, 1, 4, 4) * 2 - 1
    keep = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    keep[..., :2] = True
    noise = NoiseStream([(9, i) for i in range(5)], (1, 4, 4))
    *_, last = DDIM(8, 1.0).iterate(Toy(), diffusion, LABEL, X, on_step=inpaint(known, keep, diffusion, noise))
    assert_close(last.x_next[..., :2], known[..., :2])
    assert not torch.allclose(last.x_next[..., 2:], known[..., 2:])


def test_starting_from_an_image_takes_a_share_of_the_steps():
    diffusion, image = Diffusion(1000, cosine), torch.full((2, 1, 4, 4), 0.3)
    noise = lambda: NoiseStream([(1, 0), (1, 1)], (1, 4, 4))
    start = sdedit_start(image, 0.3, 20, diffusion, noise())
    assert len(start["pairs"]) == 6
    assert len(sdedit_start(image, 0.01, 20, diffusion, noise())["pairs"]) == 1, "the last step, in any case"

    def far(strength):
        "How far the drawn images are from the one that they start from."
        drawn = DDIM(20, 1.0).sample(GaussianModel(diffusion), diffusion, torch.zeros(2, dtype=torch.long), (1, 4, 4),
                                     [(0, 0), (0, 1)], **sdedit_start(image, strength, 20, diffusion, noise()))
        return (drawn - image).abs().mean()

    assert far(0.05) < 0.15 < far(1.0)


@pytest.mark.parametrize("sampler", [DDIM(8), DDIM(8, eta=1.0), DDPM(8), DPMSolverPP(8)])
def test_with_strength_0_the_image_stays_as_it_is(sampler):
    model, start = Toy(), sdedit_start(X.clone(), 0, 8, Diffusion(100), lambda: 1 / 0)
    assert start["pairs"] == [] and torch.equal(start["x"], X), "no step, and no noise"
    assert list(sampler.iterate(model, Diffusion(100), LABEL, **start)) == []
    drawn = sampler.sample(model, Diffusion(100), LABEL, (1, 4, 4), [(0, i) for i in range(5)], **start)
    assert torch.equal(drawn, X) and model.calls == []


def test_before_the_last_step_the_known_pixels_are_as_noisy_as_the_step_and_the_others_are_left_alone():
    diffusion, known, x = Diffusion(100), torch.rand(5, 1, 4, 4) * 2 - 1, X.clone()
    keep = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    keep[..., :2] = True
    noise = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    hook = inpaint(known, keep, diffusion, lambda: noise)
    for t_next in (99, 40, 0):
        alpha_bar = float(diffusion.alpha_bar[t_next])
        painted = hook(x, t_next)
        assert torch.equal(painted[..., 2:], x[..., 2:])
        noised = math.sqrt(alpha_bar) * known + math.sqrt(1 - alpha_bar) * noise
        assert_close(painted[..., :2], noised[..., :2])


def test_whatever_inpainting_makes_is_where_the_picture_is():
    "A tensor that is made without a word about its device lands on the default one, here one without values."
    hook = inpaint(X.clone(), X > 0, Diffusion(100), lambda: X)
    with torch.device("meta"):
        assert hook(X, 40).device.type == "cpu"


@pytest.mark.parametrize("sampler", [DDPM(6), DDIM(6, eta=1.0)])
def test_noise_is_drawn_for_each_step_but_the_last(sampler):
    drawn = []
    noise = lambda: drawn.append(1) or torch.zeros_like(X)
    assert len(list(sampler.iterate(Toy(), Diffusion(100), LABEL, X, noise))) == 6
    assert len(drawn) == 5, "the clean image gets none"
