# Made from nbs/71_perceiver_study.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import torch

from perceiver_moe_diffusion.experiments.perceiver_study import classifier_costs
from perceiver_moe_diffusion.models.classifier import Classifier
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.perceiver import PerceiverIO


def classifier(**core):
    "A very small classifier of digits; always the same."
    torch.manual_seed(0)
    settings = {"dim": 32, "num_latents": 6, "depth": 1, "num_heads": 2, **core}
    return Classifier((1, 8, 8), 10, core=partial(PerceiverIO, **settings), query_dim=32)


def test_flops_are_those_of_one_image_however_many_are_classified():
    net = classifier()
    costs = classifier_costs(net, (1, 8, 8))
    assert costs["parameters"] == sum(p.numel() for p in net.parameters())
    assert costs["flops"] == count_flops(lambda: net(torch.zeros(6, 1, 8, 8))) // 6


def test_a_block_more_costs_parameters_and_flops():
    one, two, three = (classifier_costs(classifier(depth=depth), (1, 8, 8)) for depth in (1, 2, 3))
    for what in ("parameters", "flops"):
        assert three[what] - two[what] == two[what] - one[what] > 0
