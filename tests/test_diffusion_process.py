# Made from nbs/12_process.ipynb by `pmd-dev tests`. Edit the notebook.
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.process import (
    Diffusion,
    LossNoise,
    PredictionType,
    bits_per_dim,
    cosine,
    linear,
    posterior,
    sigmoid,
    zero_terminal_snr,
)


@pytest.mark.parametrize("ours, theirs", [(linear, "linear"), (cosine, "squaredcos_cap_v2"), (sigmoid, "sigmoid")])
def test_betas_equal_diffusers(ours, theirs):
    from diffusers import DDPMScheduler

    alpha_bar = ours(1000)
    betas = 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    assert_close(betas.float(), DDPMScheduler(beta_schedule=theirs).betas, atol=3e-8, rtol=0)


def test_zero_terminal_snr_equals_diffusers():
    from diffusers import DDPMScheduler

    peer = DDPMScheduler(beta_schedule="linear", rescale_betas_zero_snr=True)
    table = zero_terminal_snr(linear())
    betas = 1 - table / torch.cat([torch.ones(1, dtype=torch.float64), table[:-1]])
    assert table[-1] == 0
    assert_close(betas.float(), peer.betas, atol=3e-6, rtol=0)


@pytest.mark.parametrize("schedule", [linear, cosine, sigmoid])
@pytest.mark.parametrize("T", [50, 100, 200, 400, 1000])
def test_every_schedule_falls_from_almost_1_to_almost_0_whatever_t(schedule, T):
    table = schedule(T)
    assert table.shape == (T,) and table.dtype == torch.float64
    assert (table.diff() < 0).all() and 0.9 < table[0] < 1 and 0 < table[-1] < 2e-3


def test_zero_terminal_snr_by_hand():
    table = torch.tensor([0.81, 0.49, 0.01])  # √ᾱ is 0.9, 0.7, 0.1; less the last: 0.8, 0.6, 0; times 0.9 / 0.8
    assert_close(zero_terminal_snr(table), torch.tensor([0.81, 0.675**2, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("T", [10, 1000])
def test_the_tables_are_their_formulas_in_double_precision(T):
    rise = [i / (T - 1) for i in range(T)]
    betas = {linear: [1000 / T * (1e-4 + (0.02 - 1e-4) * r) for r in rise],
             sigmoid: [1000 / T * (1e-4 + (0.02 - 1e-4) / (1 + math.exp(6 - 12 * r))) for r in rise]}
    level = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
    betas[cosine] = [1 - after / before for before, after in zip(level, level[1:])]
    for schedule, beta in betas.items():
        expected = torch.tensor([1 - min(b, 0.999) for b in beta], dtype=torch.float64).cumprod(0)
        assert_close(schedule(T), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("prediction_type", list(PredictionType))
@pytest.mark.parametrize("alpha_bar", [0.9999, 0.5, 0.001])
def test_an_answer_turns_back_into_image_and_noise(prediction_type, alpha_bar):
    torch.manual_seed(0)
    x0, eps = torch.randn(2, 50, dtype=torch.float64)
    a, b = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    y, x_t = prediction_type.target(x0, eps, a, b), a * x0 + b * eps
    assert_close(prediction_type.to_x0(y, x_t, a, b), x0)
    assert_close(prediction_type.to_eps(y, x_t, a, b), eps)


def test_v_and_x_t_are_a_rotation_of_eps_and_x0():
    a, b = math.cos(0.7), math.sin(0.7)
    x0, eps = torch.randn(2, 50, dtype=torch.float64)
    v, x_t = PredictionType.v.target(x0, eps, a, b), a * x0 + b * eps
    assert_close(x_t**2 + v**2, x0**2 + eps**2)


class Oracle:
    "A model that knows one image and answers with its exact target."
    null_label = 10

    def __init__(self, diffusion, x0):
        self.diffusion, self.x0, self.labels = diffusion, x0, None

    def __call__(self, x_t, t, label, return_routing=False):
        self.labels = label
        a, b = self.diffusion.rates(t, x_t)
        y = self.diffusion.prediction_type.target(self.x0, (x_t - a * self.x0) / b, a, b)
        return (y, []) if return_routing else y


@pytest.mark.parametrize("prediction_type", ["eps", "x0", "v"])
@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("min_snr_gamma", [None, 5])
def test_a_model_that_knows_the_image_has_no_loss(prediction_type, loss, min_snr_gamma):
    if loss == "huber" and prediction_type != "x0":
        min_snr_gamma = None
    diffusion = Diffusion(prediction_type=prediction_type, loss=loss, min_snr_gamma=min_snr_gamma)
    x0 = torch.rand(6, 1, 4, 4, dtype=torch.float64) * 2 - 1
    draw = diffusion.sample_noise(6, (1, 4, 4), torch.Generator().manual_seed(0))
    value, routings = diffusion.loss(Oracle(diffusion, x0), x0, torch.zeros(6, dtype=torch.long), draw)
    assert value < 1e-9 and routings == []


def test_q_sample_and_velocity_equal_diffusers():
    from diffusers import DDPMScheduler

    peer, diffusion = DDPMScheduler(beta_schedule="linear"), Diffusion(schedule=linear)
    torch.manual_seed(0)
    x0, eps, t = torch.randn(64, 1, 8, 8), torch.randn(64, 1, 8, 8), torch.randint(0, 1000, (64,))
    assert_close(diffusion.q_sample(x0, t, eps), peer.add_noise(x0, eps, t), atol=4e-6, rtol=0)
    a, b = diffusion.rates(t, x0)
    assert_close(PredictionType.v.target(x0, eps, a, b), peer.get_velocity(x0, eps, t), atol=4e-6, rtol=0)


def test_min_snr_weights_are_those_of_the_paper():
    t = torch.arange(1000)
    a2 = cosine()
    snr = a2 / (1 - a2)
    capped = snr.clamp(max=5)
    for prediction_type, wanted in (("x0", capped), ("eps", capped / snr), ("v", capped / (snr + 1))):
        assert_close(Diffusion(prediction_type=prediction_type, min_snr_gamma=5).weight(t), wanted.float(),
                     rtol=1e-5, atol=1e-7)
    assert_close(Diffusion().weight(t), torch.ones(1000))


@pytest.mark.parametrize("schedule", [linear, cosine])
@pytest.mark.parametrize("prediction_type, loss", [("x0", "mse"), ("v", "mse"), ("v", "l1"), ("x0", "huber")])
def test_with_zero_terminal_snr_min_snr_trains_the_last_timestep_as_much_as_the_one_before(
    prediction_type, loss, schedule
):
    diffusion = Diffusion(1000, schedule, True, prediction_type, loss, min_snr_gamma=5)
    weight, snr = diffusion.weight(torch.arange(1000)), diffusion.alpha_bar / (1 - diffusion.alpha_bar)
    assert snr[-1] == 0 and (weight > 0).all()
    assert_close(weight[-1], weight[-2], rtol=1e-4, atol=0)
    if loss == "mse":  # and no other timestep has another weight than the paper's
        assert_close(weight[:-1], (snr.clamp(max=5) / (1 if prediction_type == "x0" else snr + 1))[:-1].float())


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("prediction_type", ["eps", "x0", "v"])
@pytest.mark.parametrize("t", [100, 500, 900])
def test_a_weighted_loss_is_min_snr_times_the_error_of_x0_whatever_is_predicted(loss, prediction_type, t):
    """One error in x0, told in three ways, costs the same.

    The factor from y to x0 counts squared for the squared error and once for the absolute one.
    """
    if loss == "huber" and prediction_type != "x0":
        return
    diffusion, x0 = Diffusion(1000, cosine, False, prediction_type, loss, min_snr_gamma=5), torch.zeros(1, 1, 2, 2)
    noise = LossNoise(torch.tensor([t]), torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
                      torch.tensor([False]))
    error, snr = torch.tensor([0.3, -0.1, 0.2, 0.05]).view(1, 1, 2, 2), diffusion.alpha_bar / (1 - diffusion.alpha_bar)

    class Wrong(Oracle):
        "The exact target of an image that is wrong by `error`."
        def __call__(self, x_t, t, label, return_routing=False):
            a, b = self.diffusion.rates(t, x_t)
            wrong = self.x0 + error
            return self.diffusion.prediction_type.target(wrong, (x_t - a * wrong) / b, a, b), []

    value, _ = diffusion.loss(Wrong(diffusion, x0), x0, torch.zeros(1, dtype=torch.long), noise)
    cost = {"mse": error**2, "l1": error.abs(), "huber": error**2 / 2}[loss].mean()
    assert_close(value, snr[t].clamp(max=5).float() * cost, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction_type", ["eps", "v"])
def test_hubers_error_with_min_snr_is_refused_by_the_loss_and_an_old_model_still_loads(prediction_type):
    diffusion = Diffusion(100, prediction_type=prediction_type, loss="huber", min_snr_gamma=5)  # as a loaded model does
    x0 = torch.zeros(2, 1, 2, 2)
    assert diffusion.q_sample(x0, torch.tensor([1, 50]), x0).shape == x0.shape
    said = f"min_snr_gamma=5 with loss=huber and prediction_type={prediction_type} is not possible; allowed: loss=mse"
    with pytest.raises(UserError, match=said) as error:
        diffusion.loss(Oracle(diffusion, x0), x0, torch.zeros(2, dtype=torch.long),
                       diffusion.sample_noise(2, (1, 2, 2), torch.Generator().manual_seed(0)))
    assert "\n" not in str(error.value)


def test_levels_cover_the_range_and_each_is_as_likely_as_another():
    diffusion = Diffusion(100)
    draws = torch.stack(
        [diffusion.sample_noise(10, (1,), torch.Generator().manual_seed(seed)).t for seed in range(2000)]
    )
    assert (draws.sort(dim=1).values // 10 == torch.arange(10)).all(), "one timestep in every tenth of the range"
    counts = torch.bincount(draws.flatten(), minlength=100)
    assert counts.min() > 140 and counts.max() < 260        # 200 expected, standard deviation 14
    first = draws[:, 0].double()
    assert abs(first.mean() - 49.5) < 2, "the order is random: no place in the batch prefers a timestep"


def test_labels_are_dropped_at_the_given_rate_and_replaced_by_the_models_null_label():
    diffusion = Diffusion(label_dropout=0.3)
    x0 = torch.zeros(4000, 1, 1, 1)
    oracle = Oracle(diffusion, x0)
    diffusion.loss(oracle, x0, torch.full((4000,), 7),
                   diffusion.sample_noise(4000, (1, 1, 1), torch.Generator().manual_seed(0)))
    assert set(oracle.labels.tolist()) == {7, 10}
    assert abs((oracle.labels == 10).double().mean() - 0.3) < 0.03


def test_two_processes_share_one_draw():
    draw = Diffusion().sample_noise(8, (1, 2, 2), torch.Generator().manual_seed(0))
    halves = [draw.share(rank, 2) for rank in (0, 1)]
    for whole, *parts in zip(draw, *halves):
        assert torch.equal(whole, torch.cat(parts))


def test_all_random_numbers_of_a_loss_come_from_its_generator():
    draws = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        draws.append(Diffusion(label_dropout=0.5).sample_noise(64, (1, 2, 2), torch.Generator().manual_seed(3)))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*parts) for parts in zip(*draws))


@pytest.mark.parametrize("size", [1, 100, 128])
def test_the_largest_random_number_still_gives_a_timestep(size, monkeypatch):
    "127 + 0.99999994 is 128 in float32: rounded, the last of the batch would stand one past the end of the table."
    largest = lambda *shape, generator=None: torch.full([] if shape == ((),) else shape, 1 - 2**-24)
    monkeypatch.setattr(torch, "rand", largest)
    assert Diffusion(1000).sample_noise(size, (1,), torch.Generator().manual_seed(0)).t.max() == 999


@pytest.mark.parametrize("options, message", [
    (dict(timesteps=1), "timesteps=1 is not possible; allowed: a whole number, 2 or more"),
    (dict(prediction_type="eps", zero_snr=True),
     "prediction_type=eps with zero terminal SNR is not possible; allowed: x0 or v"),
    (dict(prediction_type="w"), "prediction_type=w is not possible; allowed: eps, x0, v"),
    (dict(loss="l3"), "loss=l3 is not possible; allowed: mse, l1, huber"),
    (dict(label_dropout=1.5), "label_dropout=1.5"), (dict(min_snr_gamma=float("nan")), "min_snr_gamma=nan")])
def test_impossible_settings_are_refused_with_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        Diffusion(**options)


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, torch.tensor])
def test_settings_may_be_numbers_of_numpy_or_tensors(kind):
    diffusion = Diffusion(kind(100), label_dropout=np.float32(0.5), min_snr_gamma=kind(5))
    assert diffusion.timesteps == 100 and type(diffusion.label_dropout) is float and diffusion.min_snr_gamma == 5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_timesteps_of_any_width_are_an_index_and_bytes_no_mask(dtype):
    diffusion, x0, t = Diffusion(100, min_snr_gamma=5), torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 99])
    for a, b in ((diffusion.rates(t.to(dtype), x0), diffusion.rates(t, x0)),
                 (diffusion.weight(t.to(dtype)), diffusion.weight(t))):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("t, x0, said", [
    (torch.tensor([True]), torch.zeros(1, 1, 2, 2), "timesteps of torch.bool"),
    (torch.tensor([0.5]), torch.zeros(1, 1, 2, 2), "timesteps of torch.float32"),
    (torch.tensor([0]), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "images of torch.uint8")])
def test_what_would_be_rounded_to_nothing_is_refused(t, x0, said):
    with pytest.raises(UserError, match=said):
        Diffusion(100).q_sample(x0, t, torch.zeros(1, 1, 2, 2))


def test_posterior_is_bayes_rule():
    "Where everything is normal, q(x_s | x_t, x0) follows from the joint covariance of x_s and x_t given x0."
    alpha_bar, alpha_bar_next, x0, x_t = 0.2, 0.5, 0.7, -0.4
    var_s, var_t = 1 - alpha_bar_next, 1 - alpha_bar
    cov = math.sqrt(alpha_bar / alpha_bar_next) * var_s
    mean = math.sqrt(alpha_bar_next) * x0 + cov / var_t * (x_t - math.sqrt(alpha_bar) * x0)
    ours, variance = posterior(torch.tensor(x0), torch.tensor(x_t), alpha_bar, alpha_bar_next)
    assert_close(ours, torch.tensor(mean))
    assert abs(variance - (var_s - cov**2 / var_t)) < 1e-12


def test_the_last_step_lands_on_the_image():
    mean, variance = posterior(torch.tensor(0.3), torch.tensor(2.0), alpha_bar=0.999, alpha_bar_next=1.0)
    assert_close(mean, torch.tensor(0.3))
    assert variance == 0


def test_the_old_letters_tell_their_new_names():
    with pytest.raises(UserError, match="P is now alpha_bar_next"):
        posterior(torch.tensor(0.3), torch.tensor(2.0), 0.5, P=1.0)


class GaussianDenoiser:
    "The exact E[x0 | x_t] for pixels drawn from N(mean, std²); null_label is not used."
    null_label = 0

    def __init__(self, diffusion, mean=0.1, std=0.25):
        self.diffusion, self.mean, self.std = diffusion, mean, std

    def __call__(self, x_t, t, label, return_routing=False):
        a, b = self.diffusion.rates(t, x_t)
        gain = a * self.std**2 / (a**2 * self.std**2 + b**2)
        x0 = self.mean + gain * (x_t - a * self.mean)
        return self.diffusion.prediction_type.target(x0, (x_t - a * x0) / b, a, b)


def gaussian_bits(fixed_large, T=200, levels=256):
    diffusion = Diffusion(T, schedule=cosine, prediction_type="eps")
    generator = torch.Generator().manual_seed(0)
    x0 = 0.1 + 0.25 * torch.randn(64, 1, 16, 16, generator=generator, dtype=torch.float64)
    x0 = (((x0 + 1) * (levels - 1) / 2).round() * 2 / (levels - 1) - 1)           # put the pixels on the grey levels
    return x0, bits_per_dim(GaussianDenoiser(diffusion), diffusion, x0, torch.zeros(64, dtype=torch.long), levels,
                            fixed_large, False, generator)


def test_the_bound_lies_above_the_true_likelihood_and_near_it():
    x0, small = gaussian_bits(fixed_large=False)
    _, large = gaussian_bits(fixed_large=True)
    width = 2 / 255
    truth = -(torch.distributions.Normal(0.1, 0.25).log_prob(x0).mean() + math.log(width)) / math.log(2)
    assert abs(truth - (math.log2(0.25 * math.sqrt(2 * math.pi * math.e)) + math.log2(255 / 2))) < 0.02, (
        "the entropy of the pixels"
    )
    for bound in (small.mean(), large.mean()):
        assert truth < bound < truth + 1


def test_half_a_bin_depends_on_the_number_of_grey_levels():
    _, many = gaussian_bits(True, T=50, levels=256)
    _, few = gaussian_bits(True, T=50, levels=17)
    assert abs((many.mean() - few.mean()) - math.log2(255 / 16)) < 0.6, (
        "16 times coarser bins are log2(16) = 4 bits cheaper"
    )


def bound_by_hand(model, diffusion, x0, levels, fixed_large, generator):
    "Ho et al. 2020, eq. 5, 7 and 13, with the normal distributions of PyTorch."
    from torch.distributions import Normal, kl_divergence

    after = diffusion.alpha_bar
    before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
    beta, half = 1 - after / before, 1 / (levels - 1)
    posterior_beta = (1 - before) / (1 - after) * beta
    nats = kl_divergence(Normal(after[-1].sqrt() * x0, (1 - after[-1]).sqrt()), Normal(0.0, 1.0))
    for t in range(len(after)):
        x_t = after[t].sqrt() * x0 + (1 - after[t]).sqrt() * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        from_x0, from_x_t = before[t].sqrt() * beta[t], (after[t] / before[t]).sqrt() * (1 - before[t])
        mean = lambda x, t=t, x_t=x_t, p=from_x0, q=from_x_t: (p * x + q * x_t) / (1 - after[t])
        guess = mean(model(x_t, torch.full((len(x0),), t), None))  # the model predicts x0
        if t == 0:
            p = Normal(guess, posterior_beta[1].sqrt())  # there is no posterior's variance at t = 0
            upper = torch.where(x0 >= 1 - half, 1, p.cdf(x0 + half))
            nats = nats - (upper - torch.where(x0 <= -1 + half, 0, p.cdf(x0 - half))).clamp(min=1e-12).log()
        else:
            variance = beta[t] if fixed_large else posterior_beta[t]
            nats = nats + kl_divergence(Normal(mean(x0), posterior_beta[t].sqrt()), Normal(guess, variance.sqrt()))
    return nats.mean((1, 2, 3)) / math.log(2)


@pytest.mark.parametrize("fixed_large", [False, True])
@pytest.mark.parametrize("schedule, T, levels", [(cosine, 5, 256), (linear, 30, 16), (cosine, 2, 2)])
def test_the_bound_is_its_formula(fixed_large, schedule, T, levels):
    diffusion = Diffusion(T, schedule, prediction_type="x0")
    grey = torch.randint(levels, (3, 1, 4, 4), generator=torch.Generator().manual_seed(1))  # black and white as well
    x0 = grey.double() * 2 / (levels - 1) - 1
    model, generator = GaussianDenoiser(diffusion), lambda: torch.Generator().manual_seed(0)
    label = torch.zeros(3, dtype=torch.long)
    found = bits_per_dim(model, diffusion, x0, label, levels, fixed_large, False, generator())
    assert_close(found, bound_by_hand(model, diffusion, x0, levels, fixed_large, generator()))
