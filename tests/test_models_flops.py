# Made from nbs/32_flops.ipynb by `pmd-dev tests`. Edit the notebook.
import torch
from torch import nn

from perceiver_moe_diffusion.models.attention import Attention
from perceiver_moe_diffusion.models.experts import AttentionExpert, ConvExpert, RecurrentExpert
from perceiver_moe_diffusion.models.flops import FlopCounter, count_flops
from perceiver_moe_diffusion.models.moe import MLPExpert, build_moe


def test_matrix_products_and_convolutions_have_their_formulas():
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    conv, image = nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.randn(2, 2, 6, 5)
    assert count_flops(lambda: conv(image)) == 2 * (2 * 4 * 6 * 5) * (2 * 3 * 3)
    assert count_flops(lambda: (a + 1).exp().softmax(dim=-1)) == 0, "what is done number by number is not counted"


def test_both_products_of_the_fused_attention_are_counted():
    attention, x = Attention(8, num_heads=2), torch.randn(3, 10, 8)
    assert count_flops(lambda: attention(x)) == 3 * (8 * 10 * 8**2 + 4 * 10**2 * 8)


def test_counting_runs_once_without_gradients_and_changes_nothing():
    layer, x, seen = nn.Linear(4, 4), torch.randn(2, 4), []
    assert count_flops(lambda: seen.append(layer(x))) == 2 * 2 * 4 * 4
    assert len(seen) == 1 and not seen[0].requires_grad
    assert torch.equal(seen[0], layer(x)) and layer(x).requires_grad


def test_an_operation_may_come_without_keyword_arguments():
    "PyTorch hands over an empty dictionary; its own signature of this method allows for nothing at all."
    counter, a, b = FlopCounter(), torch.randn(3, 5), torch.randn(5, 7)
    out = counter.__torch_dispatch__(torch.ops.aten.mm.default, (), (a, b))
    assert torch.equal(out, a @ b) and counter.total == 2 * 3 * 5 * 7


def flops_of(expert, n, x):
    "FLOPs of an expert for the first n tokens of every sample."
    where = (torch.arange(len(x))[:, None] * x.shape[1] + torch.arange(n)).flatten()
    return count_flops(lambda: expert(x.flatten(0, 1)[where], where, sequence=x))


def test_operations_are_those_of_the_formulas():
    B, N, d, n = 2, 16, 8, 5
    x = torch.randn(B, N, d)
    mlp = 2 * B * n * 2 * d * 4 * d
    assert flops_of(MLPExpert(d, 4), n, x) == mlp
    assert flops_of(AttentionExpert(d), n, x) == 2 * B * (n * d * d + N * d * 2 * d + 2 * n * N * d + n * d * d)
    assert flops_of(RecurrentExpert(d), n, x) == 2 * B * n * (3 * d * d + 3 * d * d + d * d)
    kernel = flops_of(ConvExpert(d), n, x) - mlp
    assert 0 < kernel <= 2 * 2 * B * n * 9 * d, "the mask and the kernel: a few operations per neighbour and channel"


def test_only_the_chosen_experts_are_computed():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8)
    cost = lambda top_k: count_flops(lambda: build_moe(8, 4, top_k, experts=[MLPExpert]).eval()(x))
    assert cost(4) - cost(2) == 2 * (cost(2) - cost(1)) > 0
