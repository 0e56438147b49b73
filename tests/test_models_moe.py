# Made from nbs/30_moe.ipynb by `pmd-dev tests`. Edit the notebook.
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.attention import MLP
from perceiver_moe_diffusion.models.moe import (
    BiasBalancedRouter,
    MLPExpert,
    NoisyTopKRouter,
    Routing,
    TopKRouter,
    balance_loss,
    build_moe,
    combine,
    dispatch,
    expert_load,
    importance_loss,
    load_loss,
    router_z_loss,
    run_experts,
    sort_by_expert,
)


def naive_moe(rows, gate, experts, top_k):
    "y = Σ G_e(x) E_e(x), one token and one expert at a time (Shazeer et al. 2017, eq. 1 and 3 to 5)."
    out = []
    for x in rows:
        logits = gate @ x
        chosen = logits.topk(top_k).indices
        weights = logits[chosen].softmax(dim=0)
        out.append(sum(w * experts[e](x) for w, e in zip(weights, chosen.tolist())))
    return torch.stack(out)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_task_loss_reaches_the_router(top_k):
    torch.manual_seed(0)
    moe = build_moe(6, 4, top_k)
    out, _ = moe(torch.randn(2, 5, 6))
    out.square().sum().backward()
    assert moe.router.gate.weight.grad.abs().max() > 1e-6


def test_renormalised_top_k_is_softmax_over_the_chosen_logits():
    torch.manual_seed(0)
    routing = TopKRouter(6, 5, 3)(torch.randn(7, 6))
    chosen = routing.probs.gather(-1, routing.expert_ids)
    assert_close(routing.weight, chosen / chosen.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("top_k", [0, 5, -1, 2.0, True, "2", None, [2], torch.tensor([1, 2]), float("nan")])
def test_top_k_outside_the_experts_is_refused(top_k):
    with pytest.raises(UserError, match="top_k=.* is not possible; allowed: 1 to 4") as error:
        TopKRouter(6, 4, top_k)
    assert str(top_k) in str(error.value)
    assert TopKRouter(6, 4, torch.tensor(2)).top_k == 2, "a number of any kind is a number"


def test_expert_load_is_per_layer_and_1_is_a_fair_share():
    even, crowded = routing_of(torch.eye(4).repeat(3, 1)), routing_of(torch.eye(4)[[2] * 12])
    load = expert_load([even, crowded])
    assert load.dtype == torch.float64
    assert load.tolist() == [[1, 1, 1, 1], [0, 0, 4, 0]]
    unrouted = even._replace(expert_ids=even.expert_ids.masked_fill(even.expert_ids == 0, -1))
    assert_close(unrouted.load, torch.tensor([0, 4, 4, 4], dtype=torch.float64) / 3)
    with pytest.raises(UserError, match="the load of no layers"):
        expert_load([])


SIX_TOKENS = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
TIMES = [lambda x: 10 * x, lambda x: 100 * x, lambda x: 1000 * x]


def six_routed() -> Routing:
    "What a router might say of the six tokens."
    expert_ids = torch.tensor([[2, 0], [0, 1], [2, 1], [0, 2], [1, 2], [1, -1]])
    weight = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [1.0, 0.0]])
    return Routing(expert_ids, weight, torch.zeros(6, 3))


def test_sort_by_expert_lays_the_tokens_of_each_expert_side_by_side_and_in_order():
    pairs = sort_by_expert(six_routed(), 3)
    assert pairs.counts == [3, 4, 4]
    assert pairs.source.tolist() == [0, 1, 3] + [1, 2, 4, 5] + [0, 2, 3, 4]
    assert six_routed().expert_ids.flatten()[pairs.order].tolist() == [0] * 3 + [1] * 4 + [2] * 4, "no −1 is left"
    torch.manual_seed(0)
    routing = TopKRouter(6, 9, 3)(torch.randn(50, 6))
    pairs = sort_by_expert(routing, 9)
    assert sorted(pairs.order.tolist()) == list(range(150)), "every pair once"
    assert pairs.counts == routing.counts.tolist()
    assert torch.equal(pairs.source, pairs.order // 3)


def test_an_expert_without_tokens_has_a_count_of_zero():
    routing = Routing(torch.tensor([[1], [1]]), torch.ones(2, 1), torch.zeros(2, 4))
    assert sort_by_expert(routing, 4).counts == [0, 2, 0, 0]


def test_shapes_without_values_are_sorted_as_if_the_load_were_uniform():
    shapes = [torch.empty(5, n, device="meta") for n in (2, 2, 4)]
    pairs = sort_by_expert(Routing(shapes[0].long(), *shapes[1:]), 4)
    assert pairs.counts == [3, 3, 2, 2] and pairs.source.shape == (10,)


def test_run_experts_calls_each_expert_once_with_its_own_slice_of_every_array():
    calls = []

    def expert(number):
        def run(x, places, factor):
            calls.append((number, x[:, 0].tolist(), places.tolist()))
            return factor * x
        return run

    pairs = sort_by_expert(six_routed(), 3)
    rows = [SIX_TOKENS, torch.arange(6) + 100]
    out = run_experts([expert(e) for e in range(3)], pairs, rows, {"factor": -1.0})
    assert calls == [
        (0, [1, 2, 4], [100, 101, 103]),
        (1, [2, 3, 5, 6], [101, 102, 104, 105]),
        (2, [1, 3, 4, 5], [100, 102, 103, 104]),
    ]
    assert_close(out, -SIX_TOKENS[pairs.source])


def test_an_idle_expert_runs_on_zero_rows_only_where_gradients_are_wanted():
    pairs = sort_by_expert(Routing(torch.tensor([[1], [1]]), torch.ones(2, 1), torch.zeros(2, 2)), 2)
    sizes = []
    experts = [lambda x: (sizes.append(len(x)), x)[1]] * 2
    run_experts(experts, pairs, [torch.ones(2, 3)], {})
    with torch.no_grad():
        run_experts(experts, pairs, [torch.ones(2, 3)], {})
    assert sizes == [0, 2, 2]


def test_an_expert_that_changes_the_shape_is_named():
    pairs = sort_by_expert(six_routed(), 3)
    with pytest.raises(UserError, match=r"the expert Linear with an output of shape \[3, 5\] .*\[3, 1\], the shape of"):
        run_experts([nn.Linear(1, 5)] * 3, pairs, [SIX_TOKENS], {})


def test_combine_adds_the_weighted_outputs_to_their_tokens():
    pairs = sort_by_expert(six_routed(), 3)
    outputs = run_experts(TIMES, pairs, [SIX_TOKENS], {})
    by_hand = [0.9 * 1000 + 0.1 * 10, 0.5 * 20 + 0.5 * 200, 0.6 * 3000 + 0.4 * 300,
               0.8 * 40 + 0.2 * 4000, 0.7 * 500 + 0.3 * 5000, 1.0 * 600]
    assert_close(combine(outputs, pairs, six_routed()).squeeze(1), torch.tensor(by_hand))


def test_combine_weights_outputs_of_any_shape_in_their_own_precision():
    pairs = sort_by_expert(six_routed(), 3)
    ones = torch.ones(len(pairs.source), 2, 4, dtype=torch.bfloat16)
    sums = combine(ones, pairs, six_routed())
    assert sums.shape == (6, 2, 4) and sums.dtype == torch.bfloat16
    assert_close(sums.float(), torch.ones(6, 2, 4), atol=0.01, rtol=0, msg="the weights of a token add up to 1")


@pytest.mark.parametrize("top_k, num_experts", [(1, 4), (2, 4), (4, 4), (2, 9)])
def test_dispatch_equals_the_naive_loop_in_outputs_and_all_gradients(top_k, num_experts):
    torch.manual_seed(top_k)
    rows = torch.randn(17, 6, dtype=torch.float64)
    gate = torch.randn(num_experts, 6, dtype=torch.float64)
    experts = nn.ModuleList(MLP(6, mult=2).double() for _ in range(num_experts))

    def fast(rows, gate):
        logits = rows @ gate.T
        weight, index = logits.topk(top_k)
        return dispatch(Routing(index, weight.softmax(dim=-1), logits), experts, rows)

    gradients = []
    for compute in (fast, lambda rows, gate: naive_moe(rows, gate, experts, top_k)):
        inputs = [rows.clone().requires_grad_(), gate.clone().requires_grad_()]
        out = compute(*inputs)
        wanted = [*inputs, *experts.parameters()]
        grads = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
        gradients.append([out, *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, wanted))])
    for ours, naive in zip(*gradients):
        assert_close(ours, naive)


def test_with_k_equal_to_e_it_is_the_dense_mixture():
    torch.manual_seed(0)
    moe, x = build_moe(6, 3, 3), torch.randn(2, 5, 6)
    probs = moe.router.gate(x).softmax(dim=-1)
    dense = sum(probs[..., e, None] * expert(x) for e, expert in enumerate(moe.experts))
    assert_close(moe(x)[0], dense)


def test_a_row_without_an_expert_gets_zero():
    routing = Routing(torch.tensor([[0, -1], [-1, -1], [1, 0]]), torch.ones(3, 2), torch.zeros(3, 2))
    out = dispatch(routing, [lambda x: x, lambda x: 10 * x], torch.ones(3, 1))
    assert_close(out, torch.tensor([[1.0], [0.0], [11.0]]))
    assert routing.counts.tolist() == [2, 1]


def test_an_idle_expert_has_a_gradient_of_zero():
    torch.manual_seed(0)
    moe = build_moe(6, 8, 1)
    out, routing = moe(torch.randn(1, 3, 6))
    out.sum().backward()
    idle = [expert for expert, count in zip(moe.experts, routing.counts) if count == 0]
    assert idle, "three tokens cannot fill eight experts"
    for parameter in (p for expert in idle for p in expert.parameters()):
        assert_close(parameter.grad, torch.zeros_like(parameter))


class MeanExpert(nn.Module):
    "Answers each of its tokens with the mean of that token's whole sequence: an expert that must see the sequence."

    def __init__(self, dim):
        super().__init__()

    def forward(self, rows, where, sequence):
        return sequence.mean(dim=1, keepdim=True).expand_as(sequence).flatten(0, 1)[where]


def test_experts_of_other_architectures_see_the_whole_sequence():
    torch.manual_seed(0)
    moe, x = build_moe(4, 2, 2, experts=[MeanExpert, MLPExpert]), torch.randn(3, 5, 4)
    out, routing = moe(x)
    weight = torch.zeros(15, 2).scatter(1, routing.expert_ids, routing.weight).view(3, 5, 2, 1)
    assert_close(out, weight[:, :, 0] * x.mean(dim=1, keepdim=True) + weight[:, :, 1] * moe.experts[1](x))


def test_rows_may_be_whole_samples():
    "Routing over samples: each row is an image, and what belongs to it is dispatched with it."
    images, scale = torch.ones(3, 1, 2, 2), torch.tensor([1.0, 2.0, 3.0])
    routing = Routing(torch.tensor([[1], [0], [1]]), torch.ones(3, 1), torch.zeros(3, 2))
    experts = [lambda x, s: x * s.view(-1, 1, 1, 1), lambda x, s: -x * s.view(-1, 1, 1, 1)]
    assert_close(dispatch(routing, experts, images, scale)[:, 0, 0, 0], torch.tensor([-1.0, 2.0, -3.0]))


def test_padding_is_neither_routed_nor_counted():
    torch.manual_seed(0)
    moe, x = build_moe(4, 3, 2), torch.randn(2, 5, 4)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    out, routing = moe(x, mask)
    assert routing.counts.sum() == 2 * mask.sum()
    assert_close(out[~mask], torch.zeros(2, 4))
    assert_close(out[mask], moe(x)[0][mask])


def test_an_added_expert_with_a_closed_gate_changes_nothing():
    torch.manual_seed(0)
    moe, x = build_moe(4, 3, 2), torch.randn(2, 5, 4)
    before = moe(x)[0]
    gate = moe.router.gate
    gate.weight = nn.Parameter(torch.cat([gate.weight, torch.zeros(1, 4)]))
    moe.router.scores = lambda rows, logits: logits.index_fill(1, torch.tensor([3]), -torch.inf)
    moe.experts.append(MLPExpert(4))
    assert_close(moe(x)[0], before)


def test_in_evaluation_the_output_does_not_depend_on_batch_companions():
    torch.manual_seed(0)
    for router in (TopKRouter, NoisyTopKRouter, BiasBalancedRouter):
        moe, x = build_moe(4, 3, 2, router=router).eval(), torch.randn(6, 5, 4)
        assert_close(moe(x)[0][:2], moe(x[:2])[0])


def test_an_expert_has_hidden_channels_for_a_top_2_layer_to_cost_what_a_dense_one_does():
    count = lambda module: sum(p.numel() for p in module.parameters() if p.ndim == 2)
    assert 2 * count(MLPExpert(8)) == count(MLP(8, mult=4))
    assert count(MLPExpert(8, mult=3)) == count(MLP(8, mult=3))


def test_an_expert_drops_hidden_channels_in_training_alone():
    torch.manual_seed(0)
    expert, rows = MLPExpert(8, dropout=0.5), torch.randn(5, 8)
    assert not torch.equal(expert(rows), expert(rows))
    assert torch.equal(expert.eval()(rows), expert(rows))


def test_with_padding_the_experts_see_the_sequence_its_mask_and_the_places():
    seen = []

    class Sees(MLPExpert):
        def forward(self, rows, where, sequence, mask=None):
            seen.append((where.tolist(), sequence, mask))
            return super().forward(rows)

    moe, x = build_moe(4, 1, 1, experts=[Sees]), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    moe(x, mask)
    assert seen[0][0] == [0, 2, 3, 4] and torch.equal(seen[0][1], x) and torch.equal(seen[0][2], mask)


def test_a_load_that_has_no_expert_for_a_token_says_so_with_minus_one():
    routing = Routing(torch.tensor([[0, -1], [1, 0]]), torch.ones(2, 2), torch.zeros(2, 3))
    assert routing.counts.tolist() == [2, 1, 0]


def routing_of(logits, top_k=1):
    index = logits.topk(top_k).indices
    return Routing(index, torch.ones_like(index, dtype=logits.dtype), logits)


def test_balance_loss_is_1_when_uniform_and_e_when_collapsed():
    uniform = 20 * torch.eye(4).repeat(3, 1)            # each expert is surely chosen by a quarter of the rows
    collapsed = 20 * torch.eye(4)[[0] * 12]
    assert_close(balance_loss(routing_of(uniform)), torch.tensor(1.0))
    assert_close(balance_loss(routing_of(collapsed)), torch.tensor(4.0))


def test_a_collapse_by_a_hair_hardly_shows_in_the_balance_loss():
    by_a_hair = torch.tensor([[0.01, 0.0, 0.0, 0.0]] * 12)
    assert routing_of(by_a_hair).counts.tolist() == [12, 0, 0, 0]
    assert_close(balance_loss(routing_of(by_a_hair)), 4 * by_a_hair[0].softmax(dim=0)[0])
    assert balance_loss(routing_of(by_a_hair)) < 1.01


def test_balance_loss_can_fall_below_1():
    "Choices and probabilities may disagree: most tokens choose expert 0 by a hair, the others surely expert 1."
    logits = torch.tensor([[0.01, 0.0]] * 9 + [[-9.0, 9.0]] * 3)
    assert balance_loss(routing_of(logits)) < 0.9


def test_opposite_collapses_do_not_cancel_between_layers():
    layers = [routing_of(20 * torch.eye(2)[[e] * 6]) for e in (0, 1)]
    together = routing_of(torch.cat([layer.logits for layer in layers]))
    assert_close(balance_loss(together), torch.tensor(1.0))
    assert all(balance_loss(layer) > 1.9 for layer in layers)


def test_the_gradient_of_the_balance_loss_lowers_the_crowded_expert():
    logits = torch.tensor([[2.0, 0.0, 0.0]] * 5, requires_grad=True)
    balance_loss(routing_of(logits)).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_z_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    first, second = math.log(1 + 1), math.log(math.exp(1) + math.exp(3))
    assert_close(router_z_loss(routing_of(logits)), torch.tensor((first**2 + second**2) / 2))


def test_noise_only_while_training():
    torch.manual_seed(0)
    router, rows = NoisyTopKRouter(6, 8, 2), torch.randn(200, 6)
    assert not torch.equal(router(rows).expert_ids, router(rows).expert_ids)
    router.eval()
    assert torch.equal(router(rows).expert_ids, router(rows).expert_ids)
    assert torch.equal(router(rows).expert_ids, TopKRouter.forward(router, rows).expert_ids)


def noisy_routing(logits, std, top_k, draws=1):
    "What a noisy router with these logits and this noise says, draw by draw."
    router = NoisyTopKRouter(1, len(logits), top_k)
    router.gate.weight.data = logits[:, None].clone()
    router.noise.weight.data = std.expm1().log()[:, None].clone()  # softplus of it is the standard deviation
    return router(torch.ones(draws, 1))


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_the_chance_of_an_expert_is_how_often_the_noisy_router_chooses_it(top_k):
    torch.manual_seed(top_k)
    routing = noisy_routing(torch.tensor([1.0, 0.6, 0.3, -0.5]), torch.tensor([0.7, 0.7, 0.3, 1.5]), top_k, 20_000)
    often = routing.counts / 20_000
    assert_close(routing.chance.mean(dim=0), often, atol=0.015, rtol=0)  # 4 standard errors
    assert routing.chance.std(dim=0).max() <= 0.5, "and it varies no more than the choice does"


def test_the_chance_is_that_of_new_noise_for_one_expert_while_the_others_keep_theirs():
    torch.manual_seed(0)
    logits, std = torch.tensor([0.5, 0.0, -0.5, 0.2, 0.1]), torch.tensor([0.4, 0.8, 1.2, 0.5, 0.9])
    routing = noisy_routing(logits, std, top_k=2)
    for e in range(5):
        again = routing.scores.repeat(20_000, 1)
        again[:, e] = logits[e] + std[e] * torch.randn(20_000)
        often = (again.topk(2).indices == e).any(dim=1).float().mean()
        assert_close(routing.chance[0, e], often, atol=0.015, rtol=0)


def test_importance_and_load_loss_are_squared_coefficients_of_variation():
    routing = Routing(torch.tensor([[0, 1], [0, -1]]), torch.tensor([[0.75, 0.25], [1.0, 9.0]]), torch.zeros(2, 4))
    importance = torch.tensor([1.75, 0.25, 0.0, 0.0])
    assert_close(importance_loss(routing), importance.var(correction=0) / importance.mean() ** 2)
    even, crowded = routing_of(torch.eye(4)), routing_of(torch.eye(4)[[2] * 12])
    assert_close(importance_loss(even), torch.tensor(0.0))
    assert_close(importance_loss(crowded), torch.tensor(3.0))
    torch.manual_seed(0)
    noisy = noisy_routing(torch.tensor([2.0, 0.0, 0.0]), torch.ones(3), 1, 10)
    load = noisy.chance.sum(dim=0)
    assert_close(load_loss(noisy), load.var(correction=0) / load.mean() ** 2)
    assert importance_loss(Routing(torch.zeros(0, 1).long(), torch.zeros(0, 1), torch.zeros(0, 4))) == 0, "no rows"


def test_the_load_loss_sees_what_the_importance_loss_does_not():
    "Two tokens of weight 1 at expert 0, four of weight ½ at expert 1: equally important, unequally busy."
    weight = torch.tensor([[1.0]] * 2 + [[0.5]] * 4)
    routing = Routing(torch.tensor([[0]] * 2 + [[1]] * 4), weight, torch.zeros(6, 2))
    assert_close(importance_loss(routing), torch.tensor(0.0))
    noisy = NoisyTopKRouter(2, 2, 1)
    noisy.gate.weight.data, noisy.noise.weight.data = 20 * torch.eye(2), torch.zeros(2, 2)
    assert_close(load_loss(noisy(torch.eye(2)[[0, 0, 1, 1, 1, 1]])), torch.tensor(1 / 9))


def test_a_step_on_either_loss_lowers_the_crowded_expert():
    torch.manual_seed(0)
    for loss in (importance_loss, load_loss):
        router = NoisyTopKRouter(1, 3, 2)
        router.gate.weight.data = torch.tensor([[1.0], [0.0], [-1.0]])
        loss(router(torch.ones(500, 1))).backward()
        assert router.gate.weight.grad[0] > 0 and router.gate.weight.grad[2] < 0
        assert router.noise.weight.grad.abs().max() > 0, "the size of the noise learns, too"


@pytest.mark.parametrize("routing", [lambda: TopKRouter(4, 3)(torch.ones(5, 4)),
                                     lambda: NoisyTopKRouter(4, 3).eval()(torch.ones(5, 4))])
def test_there_is_no_load_loss_without_noise(routing):
    with pytest.raises(UserError, match="load loss of a router without noise .* NoisyTopKRouter, while training"):
        load_loss(routing())


def test_with_k_equal_to_e_or_without_noise_to_speak_of_every_chance_is_certain():
    all_chosen = noisy_routing(torch.tensor([1.0, 0.0]), torch.ones(2), 2)
    assert all_chosen.chance.tolist() == [[1, 1]] and load_loss(all_chosen) == 0
    router = NoisyTopKRouter(1, 2, 1)
    router.gate.weight.data, router.noise.weight.data = torch.tensor([[1.0], [0.0]]), torch.full((2, 1), -200.0)
    routing = router(torch.ones(3, 1))
    load_loss(routing).backward()
    assert routing.chance.tolist() == [[1, 0]] * 3
    assert router.noise.weight.grad.isfinite().all() and router.gate.weight.grad.isfinite().all()


def test_two_processes_see_the_variation_of_both_and_have_the_gradient_of_it(monkeypatch):
    import perceiver_moe_diffusion.models.moe as module

    shares = [torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([5.0, 1.0, 0.0], requires_grad=True)]
    whole = module.squared_variation(sum(shares))
    wanted = torch.autograd.grad(whole, shares)
    for share, other, gradient in zip(shares, reversed(shares), wanted):
        reduced = lambda value, other=other: value.detach() + (other.detach() if value.requires_grad else value)
        monkeypatch.setattr(module, "all_reduce_sum", reduced)
        loss = module.squared_variation(share)
        assert_close(loss, whole)
        loss.backward()
        assert_close(share.grad / 2, gradient, msg="data-parallel training takes the mean over two processes")


def test_the_bias_moves_selection_but_not_weights():
    torch.manual_seed(0)
    router, rows = BiasBalancedRouter(6, 4, 2).eval(), torch.randn(50, 6)
    router.bias += torch.tensor([10.0, 0, 0, 0])
    routing = router(rows)
    assert (routing.expert_ids == 0).any(dim=-1).all(), "everyone now takes expert 0"
    assert_close(routing.weight, routing.logits.gather(-1, routing.expert_ids).softmax(dim=-1))


def test_the_bias_follows_the_load_by_sign_and_counts_only_training():
    router, rows = BiasBalancedRouter(2, 2, 1, rate=0.5), torch.tensor([[1.0, 0.0]] * 3)
    router.gate.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    router(rows), router(rows)                  # two micro-batches before one step
    assert router.load.tolist() == [6, 0]
    router.after_optimizer_step()
    assert router.bias.tolist() == [-0.5, 0.5] and router.load.tolist() == [0, 0]
    router.eval()(rows)
    assert router.load.tolist() == [0, 0]


def test_a_router_stores_its_bias_and_not_the_load_since_the_last_step():
    assert set(BiasBalancedRouter(4, 3).state_dict()) == {"gate.weight", "bias"}


def naive_rows(moe, rows, top_k):
    "The loop: one row and one expert at a time; with k = 1 the weight is the probability among all."
    out = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        best = (moe.router.gate.weight @ row).softmax(dim=0).topk(top_k)
        weights = best.values if top_k == 1 else best.values / best.values.sum()
        out[i] = sum(w * moe.experts[e](row) for w, e in zip(weights, best.indices.tolist()))
    return out


# Shapes that nobody thought of (property-based testing, Claessen & Hughes 2000). The two examples are what it found: an
# empty batch, and one of nothing but padding.
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(kind=st.sampled_from([TopKRouter, NoisyTopKRouter, BiasBalancedRouter]), num_experts=st.integers(0, 6),
       top_k=st.integers(-1, 7), size=st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 4)),
       share=st.sampled_from([None, 0.0, 0.5, 1.0]), grad=st.booleans(), seed=st.integers(0, 99))
@example(kind=TopKRouter, num_experts=3, top_k=2, size=(0, 4, 2), share=None, grad=False, seed=0)
@example(kind=TopKRouter, num_experts=3, top_k=2, size=(2, 4, 2), share=0.0, grad=False, seed=0)
def test_a_layer_of_any_shape_is_the_naive_loop_or_one_sentence(kind, num_experts, top_k, size, share, grad, seed):
    torch.manual_seed(seed)
    if not 1 <= top_k <= num_experts:
        with pytest.raises(UserError, match=f"top_k={top_k}" if num_experts >= 1 else "num_experts=0"):
            build_moe(size[-1], num_experts, top_k, kind)
        return
    moe, x = build_moe(size[-1], num_experts, top_k, kind).eval(), torch.randn(size)
    mask = None if share is None else torch.rand(size[:2]) < share
    with torch.set_grad_enabled(grad):
        out, routing = moe(x, mask)
    real, expected = torch.ones(size[:2], dtype=torch.bool) if mask is None else mask, torch.zeros_like(x)
    expected[real] = naive_rows(moe, x[real], top_k)
    assert_close(out, expected)
    assert routing.counts.sum() == top_k * int(real.sum())
    assert balance_loss(routing).isfinite() and router_z_loss(routing).isfinite()
