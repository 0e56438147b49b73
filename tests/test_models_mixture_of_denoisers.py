# Made from nbs/33_mixture_of_denoisers.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM
from perceiver_moe_diffusion.models.adapters import PatchAdapter
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.mixture_of_denoisers import (
    ForClasses,
    IntervalRouter,
    LabelRouter,
    MixtureOfDenoisers,
    NoiseRouter,
    add_expert,
    remove_expert,
)
from perceiver_moe_diffusion.models.moe import balance_loss
from perceiver_moe_diffusion.models.perceiver import PerceiverIO


def tiny(input_shape=(1, 8, 8), num_classes=10, seed=0, **core):
    "A very small denoiser."
    torch.manual_seed(seed)
    core = partial(PerceiverIO, **{"dim": 16, "num_latents": 4, "depth": 1, "num_heads": 2, **core})
    return PerceiverDenoiser(
        input_shape, num_classes, partial(PatchAdapter, dim=16, patch_size=4), core=core, condition_dim=16
    )


def mixture(router, experts=4, num_classes=10):
    "A mixture of tiny denoisers with different weights."
    torch.manual_seed(1)
    return MixtureOfDenoisers((1, 8, 8), num_classes, router, [partial(tiny, seed=i) for i in range(experts)])


def batch(n=12, T=1000):
    torch.manual_seed(2)
    return torch.randn(n, 1, 8, 8), torch.linspace(0, T - 1, n).long(), torch.arange(n) % 11


def test_each_image_is_denoised_by_the_expert_of_its_interval():
    net = mixture(IntervalRouter).eval()
    x, t, label = batch()
    y, (routing,) = net(x, t, label, return_routing=True)
    assert routing.expert_ids.flatten().tolist() == [int(time) // 250 for time in t]
    for i, time in enumerate(t.tolist()):
        assert_close(y[i:i + 1], net.experts[time // 250](x[i:i + 1], t[i:i + 1], label[i:i + 1]))
    assert_close(routing.probs.gather(1, routing.expert_ids), torch.ones(12, 1))


def test_soft_borders_are_for_training_only_and_as_soft_as_asked():
    router, t = IntervalRouter(10, 4, softness=0.4), torch.full((4000,), 300)
    torch.manual_seed(0)
    share = (router(t, t).expert_ids == 1).float().mean()
    assert abs(share - (0.6 + 0.4 / 4)) < 0.03 and set(router(t, t).expert_ids.flatten().tolist()) == {0, 1, 2, 3}
    assert set(router.eval()(t, t).expert_ids.flatten().tolist()) == {1}


@pytest.mark.parametrize("intervals", [
    [[0, 500], [600, 1000]], [[0, 600], [500, 1000]], [[100, 500], [500, 1000]], [[0, 500], [500, 900]],
    [[500, 1000], [0, 500]], [[0, 0], [0, 1000]], [[0, 1000], [1000]],
])
def test_intervals_that_do_not_cover_all_timesteps_are_refused(intervals):
    with pytest.raises(UserError, match=r"intervals=.* cover \[0, 1000\) .*For example \[\[0, 500\], \[500, 1000\]\]"):
        IntervalRouter(10, 2, intervals=intervals)


def test_without_a_table_the_intervals_are_equal_and_cover_all():
    t = torch.arange(100)
    assert IntervalRouter(10, 3, timesteps=100)(t, t).counts.tolist() == [33, 33, 34]


def test_other_mistakes_of_intervals():
    with pytest.raises(UserError, match="2 intervals for 3 experts"):
        mixture(partial(IntervalRouter, intervals=[[0, 500], [500, 1000]]), experts=3)
    with pytest.raises(UserError, match="softness=2"):
        IntervalRouter(10, 4, softness=2)
    with pytest.raises(UserError, match="a timestep of 1500"):
        IntervalRouter(10, 4)(torch.tensor([1500]), torch.tensor([0]))


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_learned_router_looks_at_the_timestep_alone_and_is_taught_by_the_loss(top_k):
    net = mixture(partial(NoiseRouter, top_k=top_k))
    x, t, label = batch()
    _, (routing,) = net(x, t, label, return_routing=True)
    assert torch.equal(routing.expert_ids, net.router(t, label.flip(0)).expert_ids)
    loss, _ = Diffusion().loss(net, x, label % 10, Diffusion().sample_noise(12, (1, 8, 8)))
    loss.backward()
    assert net.router.router.gate.weight.grad.abs().max() > 0


def test_a_class_is_always_sent_to_the_same_experts_and_never_to_closed_ones():
    net = mixture(LabelRouter).eval()
    x, t, label = batch()
    net.router.open[3, 1:] = False                                     # class 3 may be routed to the first expert only
    y, (routing,) = net(x, t, label, return_routing=True)
    assert routing.expert_ids[3].tolist() == [0, -1] and routing.weight[3].tolist() == [1, 0]
    assert_close(y[3:4], net.experts[0](x[3:4], t[3:4], label[3:4]))
    assert torch.equal(routing.expert_ids[0], routing.expert_ids[11]), "both are of class 0"
    a, b = routing.expert_ids[1].tolist()
    parts = [w * net.experts[e](x[1:2], t[1:2], label[1:2])[0] for e, w in zip((a, b), routing.weight[1])]
    assert_close(y[1], sum(parts))


def test_only_the_chosen_experts_are_computed():
    cost = lambda k: count_flops(lambda: mixture(partial(LabelRouter, top_k=k)).eval()(*batch()))
    for k in (2, 4):
        assert cost(k) == pytest.approx(k * cost(1), rel=0.01), "but for the positions, which each expert looks up once"


def test_with_all_experts_the_mixture_is_the_dense_ensemble():
    net = mixture(partial(LabelRouter, top_k=4)).eval()
    x, t, label = batch()
    weight = net.router.table[label].softmax(-1)
    parts = [weight[:, e, None, None, None] * expert(x, t, label) for e, expert in enumerate(net.experts)]
    assert_close(net(x, t, label), sum(parts))


@pytest.mark.parametrize("bad", [11, -1])
def test_a_condition_outside_the_classes_is_refused(bad):
    x, t, label = batch()
    label[4] = bad
    message = f"a condition of .*{bad}.* 0 to 9, the classes of the router, and 10 for no label"
    with pytest.raises(UserError, match=message):
        mixture(LabelRouter).router(t, label)
    with pytest.raises(UserError, match=f"labels from .*{bad}.* 0 to 9, the classes of this model, and 10 for no lab"):
        mixture(IntervalRouter)(x, t, label)


@pytest.mark.parametrize("router", [IntervalRouter, NoiseRouter, LabelRouter])
def test_bytes_are_labels_and_no_mask(router):
    net, (x, t, label) = mixture(router).eval(), batch()
    assert torch.equal(net(x, (t % 256).byte(), label.byte()), net(x, t % 256, label))
    mistakes = ((dict(x=x.byte()), "images of shape"), (dict(t=3), "timesteps as int"), (dict(label=[1]), "labels as"))
    for wrong, said in mistakes:
        with pytest.raises(UserError, match=f"^{said}"):
            net(**{"x": x, "t": t, "label": label, **wrong})


@pytest.mark.parametrize("router", [IntervalRouter, NoiseRouter, LabelRouter])
def test_a_mixture_is_a_denoiser_like_any_other(router):
    net = mixture(router)
    x, t, label = batch()
    loss, (routing,) = Diffusion().loss(net, x, label % 10, Diffusion().sample_noise(12, (1, 8, 8)))
    (loss + 0.01 * balance_loss(routing)).backward()
    assert all(p.grad is not None for p in net.experts.parameters())
    net.eval()
    draw = lambda n: DDIM(steps=3).sample(net, Diffusion(), torch.arange(n), (1, 8, 8), [(0, i) for i in range(n)])
    assert_close(draw(5)[:2], draw(2), msg="an image does not depend on its batch")


def trained_on_eight():
    "A mixture of three experts for eight classes."
    torch.manual_seed(0)
    experts = [partial(tiny, seed=i) for i in range(3)]
    return MixtureOfDenoisers((1, 8, 8), 8, partial(LabelRouter, top_k=2), experts).eval()


def test_a_new_expert_changes_nothing_for_the_old_classes_guided_or_not():
    old = trained_on_eight()
    grown = add_expert(old, tiny(num_classes=2, seed=9))
    seeds = [(0, i) for i in range(8)]
    for scale in (0.0, 1.0, 3.0):
        sampler = DDIM(steps=4, guidance_scale=scale)
        drawn = [sampler.sample(net, Diffusion(), torch.arange(8), (1, 8, 8), seeds) for net in (grown, old)]
        assert torch.equal(*drawn), "to the last bit"


def test_new_classes_are_denoised_by_the_new_expert_alone():
    new = tiny(num_classes=2, seed=9)
    grown, (x, t, _) = add_expert(trained_on_eight(), new), batch()
    label = torch.tensor([8, 9] * 6)
    assert_close(grown(x, t, label), new(x, t, label - 8))
    twice = add_expert(grown, tiny(num_classes=1, seed=10))
    assert twice.num_classes == 11 and torch.equal(twice(x, t, label), grown(x, t, label))


def test_an_expert_that_is_still_routed_to_cannot_be_removed():
    grown = add_expert(trained_on_eight(), tiny(num_classes=2, seed=9))
    with pytest.raises(UserError, match=r"removing expert 3, which is still routed to by the classes 8, 9, .*Close it"):
        remove_expert(grown, 3)
    closed = trained_on_eight()
    closed.router.open[:, 1] = False
    x, t, label = batch()
    assert torch.equal(remove_expert(closed, 1)(x, t, label % 9), closed(x, t, label % 9))
    with pytest.raises(UserError, match="expert 7"):
        remove_expert(closed, 7)


def test_a_mixture_that_is_routed_by_something_else_cannot_grow_or_shrink():
    for change in (lambda net: add_expert(net, tiny()), lambda net: remove_expert(net, 0)):
        with pytest.raises(UserError, match="a mixture with a IntervalRouter .* one with a LabelRouter"):
            change(mixture(IntervalRouter))


def test_the_mixture_that_grows_is_left_as_it_is_and_shares_its_experts():
    old = trained_on_eight()
    before = {name: value.clone() for name, value in old.state_dict().items()}
    grown = add_expert(old, tiny(num_classes=2, seed=9))
    assert old.num_classes == 8 and all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert all(new.denoiser is expert for new, expert in zip(grown.experts, old.experts))
    assert not grown.training and add_expert(old.train(), tiny(num_classes=1)).training


def test_an_expert_is_never_activated_by_a_class_that_is_not_its_own():
    expert, (x, t, _) = ForClasses((1, 8, 8), 8, tiny, [3, 5]), batch(2)
    assert_close(expert(x, t, torch.tensor([5, 8])), expert.denoiser(x, t, torch.tensor([1, 2])))
    with pytest.raises(UserError, match="class 4"):
        expert(x, t, torch.tensor([3, 4]))
    with pytest.raises(UserError, match=r"classes=\[3\]"):
        ForClasses((1, 8, 8), 8, lambda **_: tiny(num_classes=2), [3])


def test_a_mixture_of_more_experts_than_classes_can_grow_and_keeps_how_many_are_activated():
    torch.manual_seed(0)
    experts = [partial(tiny, seed=i) for i in range(4)]
    old = MixtureOfDenoisers((1, 8, 8), 1, partial(LabelRouter, top_k=4), experts).eval()
    grown = add_expert(old, tiny(num_classes=1, seed=9))
    assert (old.router.top_k, grown.router.top_k) == (4, 4) and grown.router.table.shape == (3, 5)
    x, t, _ = batch()
    label = torch.zeros(len(x), dtype=torch.long)
    assert torch.equal(grown(x, t, label), old(x, t, label))


def test_the_table_of_a_grown_mixture_starts_at_zero_where_there_was_none():
    old = trained_on_eight()
    grown = add_expert(old, tiny(num_classes=2, seed=9))
    table = torch.zeros(11, 4)
    table[[*range(8), 10], :3] = old.router.table.detach()
    assert torch.equal(grown.router.table.detach(), table)


def test_a_soft_interval_draws_where_the_timesteps_are():
    router = IntervalRouter(10, 4, softness=0.5).to("meta").train()
    routing = router(torch.empty(6, dtype=torch.long, device="meta"), None)
    assert routing.expert_ids.is_meta and routing.weight.is_meta and routing.expert_ids.shape == (6, 1)
