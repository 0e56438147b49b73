# Made from nbs/25_denoiser.ipynb by `pmd-dev tests`. Edit the notebook.
import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.models.adapters import ConvAdapter, InputQuery, PatchAdapter, PositionQuery
from perceiver_moe_diffusion.models.attention import Dense
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser, TimeAndClass, check_images, timestep_embedding
from perceiver_moe_diffusion.models.moe import NoisyTopKRouter, build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO


def test_timesteps_get_distinct_embeddings_of_equal_length():
    embedded = timestep_embedding(torch.arange(1000), 64)
    assert_close(embedded.norm(dim=1), torch.full((1000,), 32.0).sqrt())
    assert (torch.cdist(embedded, embedded) + 10 * torch.eye(1000)).min() > 1e-2


def test_every_class_and_no_class_give_different_conditions():
    torch.manual_seed(0)
    condition = TimeAndClass(10, 32)(torch.full((11,), 5), torch.arange(11))
    assert (torch.cdist(condition, condition) + 10 * torch.eye(11)).min() > 1e-3


def test_a_timestep_is_embedded_as_its_cosines_and_sines_at_falling_frequencies():
    t, dim = torch.tensor([0, 1, 37, 999]), 8
    rates = [10_000 ** (-i / 4) for i in range(4)]
    expected = [[wave(step * rate) for wave in (math.cos, math.sin) for rate in rates] for step in t.tolist()]
    assert_close(timestep_embedding(t, dim), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("x", [torch.zeros(2, 8, 8), torch.zeros(2, 1, 8, 9), torch.zeros(2, 1, 8, 8, dtype=torch.long),
                               [[0.0]]])
def test_what_is_no_batch_of_its_images_is_refused_by_name(x):
    with pytest.raises(UserError, match=r"^x .* allowed: a tensor of shape \(any, 1, 8, 8\) of floats"):
        check_images("x", x, (1, 8, 8))
    check_images("x", torch.zeros(2, 1, 8, 8, dtype=torch.float64), (1, 8, 8))


def tiny(query=InputQuery, adapter=None, residual=True, feed_forward=None, shape=(1, 8, 8)):
    "A very small denoiser with experts; always with the same weights."
    torch.manual_seed(0)
    adapter = adapter or partial(ConvAdapter, dim=32, stem_patch=1, token_patch=2, stem_channels=16)
    feed_forward = feed_forward or partial(build_moe, num_experts=4, top_k=2)
    sizes = dict(dim=32, num_latents=8, depth=1, num_heads=2)
    core = partial(PerceiverIO, **sizes, feed_forward=feed_forward, query_residual=residual)
    return PerceiverDenoiser(shape, 10, adapter, query, core, condition_dim=32)


@pytest.mark.parametrize("adapter", [None, partial(PatchAdapter, dim=32)])
@pytest.mark.parametrize("query", [InputQuery, PositionQuery])
def test_all_parts_fit_together_and_get_gradients(adapter, query):
    net = tiny(query, adapter)
    out = net(torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 3, 9, 10]))
    assert out.shape == (4, 1, 8, 8)
    out.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("router", [None, NoisyTopKRouter])
def test_in_evaluation_an_image_does_not_depend_on_its_batch(router):
    "Guidance doubles the batch; that must change nothing."
    feed_forward = partial(build_moe, num_experts=4, top_k=2, **({"router": router} if router else {}))
    net = tiny(feed_forward=feed_forward).eval()
    x, t, label = torch.randn(6, 1, 8, 8), torch.arange(6) * 100, torch.arange(6)
    assert_close(net(x, t, label)[:2], net(x[:2], t[:2], label[:2]))


def test_time_and_class_change_the_answer():
    net, x = tiny().eval(), torch.randn(2, 1, 8, 8)
    answer = lambda t, label: net(x, torch.full((2,), t), torch.full((2,), label))
    assert not torch.allclose(answer(10, 3), answer(900, 3)) and not torch.allclose(answer(10, 3), answer(10, 4))


def test_the_routing_record_changes_nothing():
    net, x, t, label = tiny().eval(), torch.randn(2, 1, 8, 8), torch.tensor([5, 6]), torch.tensor([1, 2])
    image, routings = net(x, t, label, return_routing=True)
    assert_close(image, net(x, t, label))
    assert len(routings) == 2 and tiny(feed_forward=Dense)(x, t, label, return_routing=True)[1] == []


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8), (1, 4, 8)])
def test_images_of_another_shape_are_refused_with_one_sentence(shape):
    with pytest.raises(UserError, match=r"images of shape .* allowed: a tensor of shape \(any, 1, 8, 8\) of floats"):
        tiny()(torch.randn(2, *shape), torch.tensor([0, 1]), torch.tensor([0, 1]))


X, T, LABEL = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), torch.tensor([0, 1])


@pytest.mark.parametrize("x, t, label, said", [
    (X.byte(), T, LABEL, "images of shape (2, 1, 8, 8) and torch.uint8"), (X.double(), T, LABEL, "torch.float64"),
    (X[0], T, LABEL, "images of shape (1, 8, 8)"), (X.numpy(), T, LABEL, "images as ndarray"),
    (X, 5, LABEL, "timesteps as int"), (X, T[:1], LABEL, "timesteps of shape (1,)"), (X, T.bool(), LABEL, "torch.bool"),
    (X, T[0], LABEL, "timesteps of shape ()"), (X, T, 3, "labels as int"), (X, T, [0, 1], "labels as list"),
    (X, T, "cat", "labels as str"), (X, T, LABEL.float(), "labels of shape (2,) and torch.float32"),
    (X, T, LABEL[:, None], "labels of shape (2, 1)"), (X, T, torch.tensor([0, 11]), "labels from 0 to 11"),
    (X, T, torch.tensor([-1, 3]), "labels from -1 to 3")], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_batch_is_refused_with_one_sentence(x, t, label, said):
    with pytest.raises(UserError, match="is not possible; allowed: ") as error:
        tiny()(x, t, label)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_and_timesteps_may_be_whole_numbers_of_any_width(dtype):
    net, x = tiny().eval(), torch.randn(2, 1, 8, 8)
    assert torch.equal(net(x, T.to(dtype), LABEL.to(dtype)), net(x, T, LABEL))
    assert torch.equal(net(x, T.float(), LABEL), net(x, T, LABEL))


def x0_errors_after_training(query, residual, steps=60):
    "Mean squared error of x0 on training images at t = 300, after a short training with ε-prediction."
    torch.manual_seed(0)
    images, labels = digits().inputs(), digits().labels
    net, diffusion = tiny(query, partial(PatchAdapter, dim=32), residual), Diffusion(1000, prediction_type="eps")
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(steps):
        index = torch.randint(len(images), (32,))
        loss, _ = diffusion.loss(net, images[index], labels[index], diffusion.sample_noise(32, (1, 8, 8)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x0, t = images[:200], torch.full((200,), 300)
    eps = torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    a, b = (float(rate[0]) for rate in diffusion.rates(t, images))
    x_t = a * x0 + b * eps
    with torch.no_grad():
        predicted = diffusion.prediction_type.to_x0(net.eval()(x_t, t, labels[:200]), x_t, a, b)
    return float((predicted - x0).square().mean())


def test_queries_that_carry_the_input_beat_the_bottleneck():
    assert x0_errors_after_training(InputQuery, True) < 0.6 * x0_errors_after_training(PositionQuery, False)
