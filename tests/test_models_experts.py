# Made from nbs/31_experts.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.attention import MLP, Attention
from perceiver_moe_diffusion.models.experts import AttentionExpert, ConvExpert, RecurrentExpert, neighbour_table
from perceiver_moe_diffusion.models.moe import MLPExpert, NoisyTopKRouter, TopKRouter, build_moe


def test_neighbours_are_symmetric_and_hold_the_token_itself_in_the_middle():
    for grid in ((4, 5), (6,), (2, 3, 2)):
        table = neighbour_table(grid)
        n, k = table.shape
        assert torch.equal(table[:, k // 2], torch.arange(n)) and k == 3 ** len(grid)
        pairs = {(i, j) for i, row in enumerate(table.tolist()) for j in row if j >= 0}
        assert pairs == {(j, i) for i, j in pairs}


def test_on_several_grids_nobody_is_beside_anybody_of_another():
    table = neighbour_table((2, 3), (4,))
    assert table.shape == (10, 9 + 3) and torch.equal(table[:6, :9], neighbour_table((2, 3)))
    text = neighbour_table((4,))
    assert torch.equal(table[6:, 9:], torch.where(text >= 0, text + 6, -1))
    assert (table[:6, 9:] == -1).all() and (table[6:, :9] == -1).all()


@pytest.mark.parametrize("grid", [(), (0, 3), (2.5,)])
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(UserError, match="grid="):
        neighbour_table(grid)


def everywhere(sequence):
    "All tokens of a sequence, as if the router had sent every one to the same expert."
    rows = sequence.flatten(0, 1)
    return rows, torch.arange(len(rows)), sequence


def test_the_convolution_is_pytorchs_own():
    torch.manual_seed(0)
    expert, x = ConvExpert(6, (4, 5)), torch.randn(2, 20, 6)
    image = x.transpose(1, 2).reshape(2, 6, 4, 5)
    kernel = expert.kernel.T.reshape(6, 1, 3, 3)
    expected = F.conv2d(image, kernel, padding=1, groups=6).flatten(2).transpose(1, 2)
    assert_close(expert(*everywhere(x)), expert.mlp(expected).flatten(0, 1))


def test_the_convolution_of_a_text_has_one_axis():
    torch.manual_seed(0)
    expert, x = ConvExpert(6, (7,)), torch.randn(2, 7, 6)
    expected = F.conv1d(x.transpose(1, 2), expert.kernel.T.unsqueeze(1), padding=1, groups=6).transpose(1, 2)
    assert_close(expert(*everywhere(x)), expert.mlp(expected).flatten(0, 1))


def test_an_image_and_a_text_in_one_sequence_are_two_convolutions():
    torch.manual_seed(0)
    both, x = ConvExpert(6, [(2, 3), (4,)]), torch.randn(2, 10, 6)
    image, text = ConvExpert(6, (2, 3)), ConvExpert(6, (4,))
    image.kernel, text.kernel = nn.Parameter(both.kernel[:9].detach()), nn.Parameter(both.kernel[9:].detach())
    image.mlp = text.mlp = both.mlp
    apart = [image(*everywhere(x[:, :6])).view(2, 6, 6), text(*everywhere(x[:, 6:])).view(2, 4, 6)]
    assert_close(both(*everywhere(x)).view(2, 10, 6), torch.cat(apart, dim=1))


def test_a_convolution_is_computed_for_the_chosen_tokens_alone():
    torch.manual_seed(0)
    expert, x = ConvExpert(6, (4, 5)), torch.randn(2, 20, 6)
    rows, where, _ = everywhere(x)
    chosen = torch.tensor([0, 7, 19, 25])
    assert_close(expert(rows[chosen], chosen, x), expert(rows, where, x)[chosen])


def test_an_expert_with_a_grid_can_be_sketched_without_memory():
    with torch.device("meta"):  # as a saved model is, before its weights are read
        assert ConvExpert(6, [(2, 3), (4,)]).kernel.shape == (12, 6)


def test_a_sequence_that_is_not_the_grid_is_refused():
    with pytest.raises(UserError, match=r"12 tokens .* grid \(2, 3\) and \(4,\) .* 10 tokens"):
        ConvExpert(6, [[2, 3], [4]])(*everywhere(torch.randn(1, 12, 6)))
    with pytest.raises(UserError, match=r"12 tokens .* grid \(4, 5\) .* 20 tokens"):
        ConvExpert(6, (4, 5))(*everywhere(torch.randn(1, 12, 6)))
    with pytest.raises(UserError, match="a square number"):
        ConvExpert(6)(*everywhere(torch.randn(1, 12, 6)))


def test_an_expert_starts_with_a_kernel_of_a_mean_over_nine_and_has_the_hidden_channels_it_was_given():
    torch.manual_seed(0)
    kernel = ConvExpert(256).kernel
    assert kernel.shape == (9, 256) and kernel.std().item() == pytest.approx(1 / 3, rel=0.05), "√9 numbers are added"
    assert RecurrentExpert(8).gru.hidden_size == 8 and RecurrentExpert(8, mult=2).gru.hidden_size == 16
    assert ConvExpert(8).mlp.state_dict().keys() == MLP(8, 4).state_dict().keys()


def test_attention_is_the_attention_of_the_whole_sequence_at_the_chosen_rows():
    torch.manual_seed(0)
    expert, x = AttentionExpert(8, 2), torch.randn(3, 5, 8)
    whole = Attention.forward(expert, x).flatten(0, 1)
    where = torch.tensor([1, 3, 4, 12])  # three rows of the first sample, none of the second, one of the third
    assert_close(expert(x.flatten(0, 1)[where], where, x), whole[where])


def test_the_recurrence_walks_along_the_chosen_rows_of_each_sample():
    torch.manual_seed(0)
    expert, x = RecurrentExpert(8), torch.randn(3, 5, 8)
    where = torch.tensor([1, 3, 4, 12])
    first, _ = expert.gru(x[:1, [1, 3, 4]])
    third, _ = expert.gru(x[2:, [2]])
    assert_close(expert(x.flatten(0, 1)[where], where, x), expert.out(torch.cat([first[0], third[0]])))


def test_the_reset_gate_acts_after_the_matrix():
    "The equations above, one step after the other."
    torch.manual_seed(0)
    expert, x = RecurrentExpert(4), torch.randn(1, 3, 4)
    gru, state, states = expert.gru, torch.zeros(4), []
    for token in x[0]:
        of_token = (gru.weight_ih_l0 @ token + gru.bias_ih_l0).chunk(3)
        of_state = (gru.weight_hh_l0 @ state + gru.bias_hh_l0).chunk(3)
        reset, update = (torch.sigmoid(of_token[i] + of_state[i]) for i in (0, 1))
        state = update * state + (1 - update) * torch.tanh(of_token[2] + reset * of_state[2])
        states.append(state)
    assert_close(expert(x[0], torch.arange(3), x), expert.out(torch.stack(states)))


@pytest.mark.parametrize("kind", [AttentionExpert, RecurrentExpert])
def test_whatever_an_expert_makes_is_where_its_rows_are(kind):
    "A tensor that is made without a word about its device lands on the default one, here one without values."
    torch.manual_seed(0)
    expert, sequence = kind(8), torch.randn(2, 4, 8)
    where = torch.tensor([0, 3, 4, 6])
    rows = sequence.flatten(0, 1)[where]
    expected = expert(rows, where, sequence)
    with torch.device("meta"):
        assert_close(expert(rows, where, sequence), expected)


KINDS = (ConvExpert, AttentionExpert, RecurrentExpert, MLPExpert)


def mixture(top_k=2, num_experts=4, kinds=KINDS, router=TopKRouter):
    torch.manual_seed(0)
    return build_moe(8, num_experts, top_k, router, kinds)


def test_with_every_expert_for_every_token_the_mixture_is_the_sum_of_the_whole_layers():
    layer, x = mixture(top_k=4), torch.randn(2, 16, 8)
    y, routing = layer(x)
    rows, where = x.flatten(0, 1), torch.arange(32)
    outputs = [expert(rows, where, sequence=x) for expert in layer.experts]
    expected = sum(routing.probs[:, e, None] * output for e, output in enumerate(outputs))
    assert_close(y.flatten(0, 1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_expert_of_any_kind_that_gets_no_row_still_gets_gradients_and_changes_nothing(kind):
    layer, x = mixture(top_k=1, num_experts=2, kinds=(kind, MLPExpert)), torch.randn(2, 16, 8)
    with torch.no_grad():
        layer.router.gate.weight.zero_()
        layer.router.gate.weight[1] = x.mean((0, 1)) * 0
        layer.router.gate.weight[1, 0] = 1.0
    x[..., 0] = 5.0                                            # all tokens choose the second expert
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert all(not p.grad.any() for p in layer.experts[0].parameters())


@pytest.mark.parametrize("router", [TopKRouter, NoisyTopKRouter])
def test_in_evaluation_samples_do_not_see_each_other(router):
    layer, x = mixture(router=router).eval(), torch.randn(4, 16, 8)
    assert_close(layer(x)[0][1:2], layer(x[1:2])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_neither_routed_nor_answered(kind):
    layer, x, mask = mixture(kinds=(kind,)), torch.randn(2, 16, 8), torch.ones(2, 16, dtype=torch.bool)
    mask[1, 10:] = False
    y, routing = layer(x, mask)
    assert len(routing.expert_ids) == 26 and not y[1, 10:].any() and y[1, :10].abs().min() > 0
    changed = torch.where(mask.unsqueeze(-1), x, 1e3 * torch.randn_like(x))
    assert_close(layer(changed, mask)[0], y, msg="what stands in the padding is seen by nobody")


class Wider(nn.Module):
    "Gives a channel too many."

    def __init__(self, dim):
        super().__init__()
        self.linear = nn.Linear(dim, dim + 1)

    def forward(self, rows, where, sequence, mask=None):
        return self.linear(rows)


@pytest.mark.parametrize("kinds", [(MLPExpert, Wider), (Wider,)])
def test_an_expert_of_another_shape_is_named(kinds):
    layer = mixture(top_k=2, num_experts=2, kinds=kinds)
    with pytest.raises(UserError, match=r"the expert Wider .* 9\].* 8\]"):
        layer(torch.randn(2, 16, 8))
