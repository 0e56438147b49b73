# Made from nbs/30_moe.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.attention import MLP
from perceiver_moe_diffusion.models.moe import BiasBalancedRouter
from perceiver_moe_diffusion.models.moe import MLPExpert
from perceiver_moe_diffusion.models.moe import NoisyTopKRouter
from perceiver_moe_diffusion.models.moe import Routing
from perceiver_moe_diffusion.models.moe import TopKRouter
from perceiver_moe_diffusion.models.moe import balance_loss
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.moe import dispatch
from perceiver_moe_diffusion.models.moe import router_z_loss
from torch import nn
from torch.testing import assert_close


def naive_moe(rows, gate, experts, top_k):
    "y = Σ G_e(x) E_e(x), one row and one expert at a time."
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


@pytest.mark.parametrize("top_k", [0, 5, -1])
def test_top_k_outside_the_experts_is_refused(top_k):
    with pytest.raises(UserError, match=f"top_k={top_k} is not possible; allowed: 1 to 4"):
        TopKRouter(6, 4, top_k)


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


def routing_of(logits, top_k=1):
    index = logits.topk(top_k).indices
    return Routing(index, torch.ones_like(index, dtype=logits.dtype), logits)


def test_balance_loss_is_1_when_uniform_and_e_when_collapsed():
    uniform = 20 * torch.eye(4).repeat(3, 1)            # each expert is surely chosen by a quarter of the rows
    collapsed = 20 * torch.eye(4)[[0] * 12]
    assert_close(balance_loss(routing_of(uniform)), torch.tensor(1.0))
    assert_close(balance_loss(routing_of(collapsed)), torch.tensor(4.0))


def test_balance_loss_can_fall_below_1():
    "Choices and probabilities may disagree: most rows choose expert 0 by a hair, the others are very sure of expert 1."
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
    by_hand = (
        (torch.log(torch.tensor(2.0))) ** 2
        + torch.log(torch.exp(torch.tensor(1.0)) + torch.exp(torch.tensor(3.0))) ** 2
    ) / 2
    assert_close(router_z_loss(routing_of(logits)), by_hand)


def test_noise_only_while_training():
    torch.manual_seed(0)
    router, rows = NoisyTopKRouter(6, 8, 2), torch.randn(200, 6)
    assert not torch.equal(router(rows).expert_ids, router(rows).expert_ids)
    router.eval()
    assert torch.equal(router(rows).expert_ids, router(rows).expert_ids)
    assert torch.equal(router(rows).expert_ids, TopKRouter.forward(router, rows).expert_ids)


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
