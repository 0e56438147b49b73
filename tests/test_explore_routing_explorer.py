# Made from nbs/66_routing_explorer.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
import html

import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DPMSolverPP
from perceiver_moe_diffusion.explore.routing import record_routing
from perceiver_moe_diffusion.explore.routing_explorer import PICTURES, routing_explorer, routing_picture
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.attention import Dense
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline

FOUR_EXPERTS = functools.partial(build_moe, num_experts=4, top_k=2)


def small_pipeline(feed_forward=FOUR_EXPERTS, image_shape=(1, 8, 8), depth=1):
    "A pipeline with fresh weights: routing can be counted in any model."
    torch.manual_seed(0)
    core = functools.partial(PerceiverIO, dim=16, num_latents=4, depth=depth, num_heads=2, feed_forward=feed_forward)
    model = PerceiverDenoiser(
        image_shape, 10, functools.partial(ConvAdapter, dim=16, stem_channels=8), core=core, condition_dim=16
    )
    return GeneratorPipeline(model, Diffusion(50), DPMSolverPP(steps=4), [str(i) for i in range(10)])


def some_digits(n=40):
    "[n, 1, 8, 8] and [n]"
    return digits().inputs(torch.arange(n)), digits().labels[:n]


@functools.cache
def fresh():
    "A pipeline with images of the classes 0 to 4 alone."
    images, labels = some_digits(60)
    return small_pipeline(), images[labels < 5], labels[labels < 5]


def drawn(live, **settings):
    "The picture after some controls were set."
    for name, value in settings.items():
        live.controls[name].value = value
    assert live.worker.wait(20)
    return bytes(live.image.value)


def sentence(live):
    return html.unescape(live.status.value)


def test_the_explorer_draws_each_picture_without_a_kernel():
    live = routing_explorer(*fresh())
    pictures = [drawn(live, picture=name) for name in PICTURES]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and live.status.value == ""
    assert len(set(pictures)) == len(PICTURES)


@pytest.mark.parametrize("name, value", [("layer", "latent block 0"), ("classes", (3,)), ("seed", 7)])
def test_each_control_changes_the_picture_and_back(name, value):
    live = routing_explorer(*fresh())
    before, old = drawn(live), live.controls[name].value
    assert drawn(live, **{name: value}) != before and live.status.value == ""
    assert drawn(live, **{name: old}) == before


@pytest.mark.parametrize("settings, message", [
    ({"seed": -1}, "seed=-1"),
    ({"classes": (7,)}, "allowed: classes of the images watched: [0, 1, 2, 3, 4]"),
])
def test_a_mistake_is_a_sentence_and_the_next_wish_is_served(settings, message):
    live = routing_explorer(*fresh())
    before, old = drawn(live), live.values()
    assert drawn(live, **settings) == before and message in sentence(live), "the last good picture stays"
    assert drawn(live, **old | {"picture": "load"}) != before and live.status.value == ""


def test_one_expert_per_token_has_every_picture_but_the_teams():
    live = routing_explorer(small_pipeline(functools.partial(build_moe, num_experts=3, top_k=1)), *some_digits(20))
    before = drawn(live)
    assert drawn(live, picture="co-activation") == before and "top_k=1" in sentence(live)
    assert drawn(live, picture="patches") != before and live.status.value == ""


def test_a_picture_of_your_own_is_one_more_entry(monkeypatch):
    monkeypatch.setitem(PICTURES, "blank", lambda pipeline, watched, layer, classes, seed: b"as it is")
    assert drawn(routing_explorer(*fresh()), picture="blank") == b"as it is"


def test_a_dense_model_and_what_the_model_lacks_are_refused():
    pipeline, images, labels = fresh()
    watched = functools.partial(record_routing, pipeline, images, labels)
    with pytest.raises(UserError, match="no mixture-of-experts layers.*moe=mixture"):
        routing_explorer(small_pipeline(Dense), images, labels)
    for settings, message in (
        (dict(picture="smell"), "picture='smell'.*load, over time"),
        (dict(picture="patches", classes=[10]), "label="),
        (dict(picture="over time", layer="encoder"), "layer='encoder'.*latent block 0, decoder"),
    ):
        with pytest.raises(UserError, match=message):
            routing_picture(pipeline, watched, **settings)


def test_the_watching_is_done_once_for_all_pictures_of_a_seed():
    pipeline, images, labels = small_pipeline(), *some_digits(20)
    live = routing_explorer(pipeline, images, labels)
    drawn(live)
    calls = []
    pipeline.model.register_forward_pre_hook(lambda model, arguments: calls.append(len(arguments[0])))
    for name in ("load", "over class", "co-activation"):
        drawn(live, picture=name)
    assert calls == []
    drawn(live, seed=1)
    assert calls == [20]
