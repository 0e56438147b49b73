# Made from nbs/68_forward_process.ipynb by `pmd-dev tests`. Edit the notebook.
import html
import math
from functools import partial

import ipywidgets
import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.diffusion.process import Diffusion, cosine, linear, zero_terminal_snr
from perceiver_moe_diffusion.explore.forward_process import (
    FLOOR,
    SCHEDULES,
    forward_explorer,
    forward_figure,
    ingredients,
    log_snr,
    show_snr,
    show_strip,
    snr_curves,
)
from perceiver_moe_diffusion.explore.widgets import LiveFigure


@pytest.mark.parametrize("timesteps", [2, 50, 1000])
def test_each_curve_is_its_formula_and_decreases(timesteps):
    for (name, zero), curve in snr_curves(timesteps).items():
        alpha_bar = SCHEDULES[name](timesteps)
        alpha_bar = zero_terminal_snr(alpha_bar) if zero else alpha_bar
        assert_close(curve, (alpha_bar / (1 - alpha_bar)).log(), rtol=1e-9, atol=1e-9)
        assert curve.shape == (timesteps,) and bool((curve[1:] < curve[:-1]).all())


def test_only_zero_terminal_snr_ends_in_minus_infinity():
    for (name, zero), curve in snr_curves().items():
        assert bool(curve[:-1].isfinite().all()) and (curve[-1] == -math.inf) == zero, name


def test_log_snr_undoes_a_logistic_function():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64)
    assert_close(log_snr(x.sigmoid()), x, rtol=1e-3, atol=1e-3)  # 1 − ᾱ is rounded in ᾱ itself
    assert log_snr(torch.tensor([0.5]))[0] == 0


def test_the_figure_draws_the_curves_down_to_the_floor():
    lines = {line.get_label(): line for line in show_snr(timesteps=50).axes[0].get_lines()}
    for (name, zero), curve in snr_curves(50).items():
        line = lines[name + ", zero SNR" * zero]
        assert_close(torch.as_tensor(line.get_ydata()), curve.clamp(min=FLOOR))
        assert_close(torch.as_tensor(line.get_xdata()), torch.arange(50) / 50)


def test_a_schedule_of_your_own_is_drawn_too():
    schedules = {**SCHEDULES, "mine": lambda timesteps: torch.linspace(0.99, 0.01, timesteps)}
    assert [name for name, zero in snr_curves(10, schedules) if not zero] == [*SCHEDULES, "mine"]
    assert "mine" in [line.get_label() for line in show_snr(timesteps=10, schedules=schedules).axes[0].get_lines()]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("t", [0, 7, 19])
def test_x_t_is_q_sample_and_the_targets_are_their_formulas(name, zero, t):
    diffusion, x0 = Diffusion(20, SCHEDULES[name], zero), digits().inputs()[5]
    part = ingredients(diffusion, x0, t, seed=3)
    A = float(diffusion.alpha_bar[t])
    assert_close(part["x_t"], diffusion.q_sample(x0[None], torch.tensor([t]), part["ε"][None])[0])
    assert_close(part["x_t"], math.sqrt(A) * x0 + math.sqrt(1 - A) * part["ε"])
    assert_close(part["target v"], math.sqrt(A) * part["ε"] - math.sqrt(1 - A) * x0)
    assert_close(part["target ε"], part["ε"]), assert_close(part["target x0"], x0)


def test_the_noise_belongs_to_the_seed_and_not_to_the_level_or_schedule():
    x0 = digits().inputs()[5]
    noise = lambda schedule, t, seed: ingredients(Diffusion(20, schedule), x0, t, seed)["ε"]
    assert_close(noise(linear, 0, 1), noise(cosine, 19, 1), rtol=0, atol=0)
    assert not torch.equal(noise(linear, 0, 1), noise(linear, 0, 2))


def test_the_parts_are_made_where_the_image_is():
    "On a device without values: whatever meets a tensor of the CPU fails."
    parts = ingredients(Diffusion(20), torch.zeros(1, 4, 4, device="meta"), 7)
    assert {name: (part.device.type, tuple(part.shape)) for name, part in parts.items()} == dict.fromkeys(
        ("x0", "ε", "x_t", "target ε", "target x0", "target v"), ("meta", (1, 4, 4)))


def test_at_zero_terminal_snr_nothing_of_the_image_is_left():
    part = ingredients(Diffusion(20, cosine, zero_snr=True), digits().inputs()[5], 19)
    assert_close(part["x_t"], part["ε"], rtol=0, atol=0)
    assert_close(part["target v"], -part["x0"], rtol=0, atol=0)


@pytest.mark.parametrize("t", [-1, 20, 3.5, float("nan"), float("inf"), None, "three", True])
def test_a_level_that_does_not_exist_is_one_sentence(t):
    with pytest.raises(UserError, match="t=.* is not possible; allowed: a whole number from 0 to 19") as error:
        ingredients(Diffusion(20), digits().inputs()[0], t)
    assert "\n" not in str(error.value)


def test_a_seed_below_zero_is_one_sentence():
    with pytest.raises(UserError, match="seed=-1"):
        ingredients(Diffusion(20), digits().inputs()[0], 0, seed=-1)


def test_the_strip_has_a_row_for_each_schedule_and_shows_x_t():
    x0 = digits().inputs()[5]
    axes = show_strip(x0, shares=(0, 1), timesteps=20).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        name + end for name in SCHEDULES for end in ("", ", zero SNR")
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["t=0", "t=19"]
    shown = torch.as_tensor(axes.images[0].get_array())
    for row, name in ((0, "linear"), (2, "cosine"), (4, "sigmoid")):
        expected = ingredients(Diffusion(20, SCHEDULES[name]), x0, 19)["x_t"][0].clamp(-1, 1) / 2 + 0.5
        assert_close(shown[9 * row:9 * row + 8, 9:17].float(), expected)


TINY = dict(timesteps=20, index=5)
CASES = pytest.mark.parametrize("name,zero,t", [
    ("linear", False, 0), ("cosine", False, 11), ("cosine", True, 19), ("sigmoid", True, 4)])


def parts_of(figure):
    "What the figure shows under each title, as tensors."
    return {
        axes.get_title(): torch.as_tensor(axes.images[0].get_array().filled()) for axes in figure.axes if axes.images
    }


@CASES
def test_what_is_drawn_is_what_is_computed(name, zero, t):
    images = digits().inputs()
    figure = forward_figure(images, t, name, zero, seed=2, **TINY)
    diffusion = Diffusion(20, SCHEDULES[name], zero)
    expected = ingredients(diffusion, images[5], t, seed=2)
    shown = parts_of(figure)
    assert list(shown) == ["x0", "ε", "x_t", "target ε", "target x0", "target v"]
    for title, part in expected.items():
        assert_close(shown[title].float(), part[0])
    x_t = diffusion.q_sample(shown["x0"][None, None].float(), torch.tensor([t]), shown["ε"][None, None].float())
    assert_close(shown["x_t"].float(), x_t[0, 0])


@CASES
def test_the_marker_is_at_t_on_the_chosen_curve(name, zero, t):
    axes = next(
        axes for axes in forward_figure(digits().inputs(), t, name, zero, **TINY).axes if axes.get_ylabel() == "log SNR"
    )
    lines = {line.get_label(): line for line in axes.get_lines()}
    marker = next(line for label, line in lines.items() if label.startswith("t ("))
    curve = lines[name + ", zero SNR" * zero]
    assert list(marker.get_xdata()) == [t / 20] and marker.get_ydata()[0] == curve.get_ydata()[t] >= FLOOR
    assert curve.get_linewidth() == max(line.get_linewidth() for line in lines.values()), "the chosen one stands out"


def test_the_last_level_of_zero_snr_is_said_in_words():
    axes = [axes for axes in forward_figure(digits().inputs(), 19, zero_snr=True, **TINY).axes if axes.get_ylabel()]
    assert "−∞" in axes[0].get_title(loc="left")


def test_colour_images_are_drawn_too():
    figure = forward_figure(
        torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, 10, timesteps=20
    )
    assert all(part.shape == (4, 4, 3) and part.min() >= 0 and part.max() <= 1 for part in parts_of(figure).values())


@pytest.mark.parametrize("wrong,sentence", [
    (dict(t=20), "t=20 is not possible; allowed: a whole number from 0 to 19."),
    (dict(t=float("nan")), "t=nan is not possible; allowed: a whole number from 0 to 19."),
    (dict(index=1797), "index=1797 is not possible; allowed: a whole number from 0 to 1796."),
    (dict(index=-1), "index=-1 is not possible; allowed: a whole number from 0 to 1796."),
    (dict(schedule="square"), "schedule=square is not possible; allowed: linear, cosine, sigmoid."),
])
def test_a_mistake_is_one_sentence(wrong, sentence):
    with pytest.raises(UserError) as error:
        forward_figure(digits().inputs(), **{"t": 3, **TINY, **wrong})
    assert str(error.value) == sentence


def settled(live):
    "The picture and the sentence, once the worker has nothing left to do."
    assert live.worker.wait(20)
    return bytes(live.image.value), html.unescape(live.status.value)


def test_every_control_changes_the_picture():
    live = forward_explorer(digits().inputs(), timesteps=20)
    seen = [settled(live)[0]]
    for name, value in dict(t=15, schedule="linear", zero_snr=True, index=7, seed=1).items():
        live.controls[name].value = value
        picture, sentence = settled(live)
        assert picture.startswith(b"\x89PNG") and sentence == "", name
        seen.append(picture)
    assert len(set(seen)) == len(seen)


def test_the_explorer_recovers_from_a_wrong_image():
    live = forward_explorer(digits().inputs(), timesteps=20)
    good, _ = settled(live)
    live.controls["index"].value = 5000
    picture, sentence = settled(live)
    assert picture == good and "index=5000 is not possible; allowed: a whole number from 0 to 1796." in sentence
    live.controls["index"].value = 2
    picture, sentence = settled(live)
    assert picture != good and sentence == ""


def test_a_control_that_gives_nan_is_a_sentence_too():
    live = LiveFigure(partial(forward_figure, digits().inputs(), timesteps=20), {"t": ipywidgets.FloatText(value=3.0)})
    good, _ = settled(live)
    live.controls["t"].value = float("nan")
    picture, sentence = settled(live)
    assert picture == good and "t=nan is not possible" in sentence
    live.controls["t"].value = 4.0
    assert settled(live)[1] == "" and settled(live)[0] != good


def test_one_schedule_alone_can_be_explored():
    assert settled(forward_explorer(digits().inputs(), 20, {"only": cosine}))[1] == ""
