# Made from nbs/32_flops.ipynb by `pmd-dev tests`. Edit the notebook.
import torch
from perceiver_moe_diffusion.models.experts import AttentionExpert
from perceiver_moe_diffusion.models.experts import ConvExpert
from perceiver_moe_diffusion.models.experts import RecurrentExpert
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.moe import MLPExpert
from perceiver_moe_diffusion.models.moe import TopKRouter
from perceiver_moe_diffusion.models.moe import build_moe


KINDS = (ConvExpert, AttentionExpert, RecurrentExpert, MLPExpert)


def mixture(top_k=2, num_experts=4, kinds=KINDS, router=TopKRouter):
    torch.manual_seed(0)
    return build_moe(8, num_experts, top_k, router, kinds)


def flops_of(expert, n, x):
    "Operations of an expert for the first n rows of every sample."
    where = (torch.arange(len(x))[:, None] * x.shape[1] + torch.arange(n)).flatten()
    return count_flops(lambda: expert(x.flatten(0, 1)[where], where, sequence=x))


def test_operations_are_those_of_the_formulas():
    B, N, d, n = 2, 16, 8, 5
    x = torch.randn(B, N, d)
    mlp = 2 * B * n * 2 * d * 4 * d
    assert flops_of(MLPExpert(d, 4), n, x) == mlp
    assert flops_of(AttentionExpert(d), n, x) == 2 * B * (n * d * d + N * d * 2 * d + 2 * n * N * d + n * d * d)
    assert flops_of(RecurrentExpert(d), n, x) == 2 * B * n * (3 * d * d + 3 * d * d + d * d)
    assert 0 < flops_of(ConvExpert(d), n, x) - mlp <= 2 * 2 * B * n * 9 * d, (
        "the mask and the kernel: a few operations per neighbour and channel"
    )


def test_only_the_chosen_experts_are_computed():
    x = torch.randn(2, 16, 8)
    cost = lambda top_k: count_flops(lambda: mixture(top_k, kinds=(MLPExpert,)).eval()(x))
    assert cost(4) - cost(2) == 2 * (cost(2) - cost(1)) > 0
