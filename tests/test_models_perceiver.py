# Made from nbs/22_perceiver.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.moe import BiasBalancedRouter, build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO


def small(**options):
    torch.manual_seed(0)
    return PerceiverIO(5, 8, **{"dim": 16, "num_latents": 6, "depth": 2, **options})


VARIANTS = [dict(), dict(feed_forward=partial(build_moe, num_experts=4, top_k=2)), dict(num_stages=3),
            dict(num_stages=3, share_weights=True), dict(query_residual=False, output_dim=3), dict(depth=0),
            dict(input_depth=2, input_feed_forward=partial(build_moe, num_experts=4, top_k=2))]


@pytest.mark.parametrize("options", VARIANTS)
def test_the_order_of_the_inputs_does_not_matter(options):
    net, inputs, query = small(**options), torch.randn(2, 9, 5), torch.randn(2, 7, 8)
    assert_close(net(inputs.flip(1), query).output, net(inputs, query).output)


@pytest.mark.parametrize("options", VARIANTS)
def test_a_subset_of_the_queries_gets_the_same_answers(options):
    net, inputs, query = small(**options), torch.randn(2, 9, 5), torch.randn(2, 7, 8)
    assert_close(net(inputs, query[:, 2:4]).output, net(inputs, query).output[:, 2:4])


@pytest.mark.parametrize("options", VARIANTS)
def test_padding_is_never_seen(options):
    net, inputs, query = small(**options), torch.randn(2, 9, 5), torch.randn(2, 7, 8)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[:, 9:] = False
    padded = torch.cat([inputs, 1e3 * torch.randn(2, 3, 5)], dim=1)
    assert_close(net(padded, query, mask).output, net(inputs, query).output)


@pytest.mark.parametrize("options", VARIANTS)
def test_samples_do_not_see_each_other(options):
    net, inputs, query = small(**options).eval(), torch.randn(4, 9, 5), torch.randn(4, 7, 8)
    assert_close(net(inputs, query).output[1:2], net(inputs[1:2], query[1:2]).output)


@pytest.mark.parametrize("options", VARIANTS)
def test_every_weight_gets_a_gradient(options):
    net = small(**options)
    net(torch.randn(2, 9, 5), torch.randn(2, 7, 8)).output.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_class_is_the_three_lines_of_the_naive_version():
    net, inputs, query = small(depth=1), torch.randn(2, 9, 5), torch.randn(2, 7, 8)
    latents, _ = net.stages[0].read(net.latents.expand(2, -1, -1), inputs)
    latents, _ = net.stages[0].blocks[0](latents)
    output, _ = net.decoder(query, latents)
    assert_close(net(inputs, query).output, output)


def test_shared_stages_read_again_without_new_weights():
    count = lambda net: sum(p.numel() for p in net.parameters())
    twice, often = small(num_stages=2, share_weights=True), small(num_stages=5, share_weights=True)
    assert count(twice) == count(often) == count(small(num_stages=2))
    inputs, query = torch.randn(2, 9, 5), torch.randn(2, 7, 8)
    assert not torch.allclose(twice(inputs, query).output, often(inputs, query).output)


def test_a_routing_per_mixture_layer_and_none_for_dense_ones():
    moe = partial(build_moe, num_experts=4, top_k=2, router=BiasBalancedRouter)
    out = small(feed_forward=moe, num_stages=2)(torch.randn(2, 9, 5), torch.randn(2, 7, 8))
    # 2 stages × 2 blocks of latents, then the queries
    assert [len(r.expert_ids) for r in out.routings] == [12, 12, 12, 12, 14]
    assert small()(torch.randn(2, 9, 5), torch.randn(2, 7, 8)).routings == []


def test_input_layers_come_first_and_skip_the_padding():
    moe = partial(build_moe, num_experts=4, top_k=1)
    net, mask = small(input_depth=1, input_feed_forward=moe, feed_forward=moe), torch.ones(2, 9, dtype=torch.bool)
    mask[:, 5:] = False
    routings = net(torch.randn(2, 9, 5), torch.randn(2, 7, 8), mask).routings
    assert [len(r.expert_ids) for r in routings] == [10, 12, 12, 14]


def test_extra_latents_take_part():
    net, inputs, query = small(), torch.randn(2, 9, 5), torch.randn(2, 7, 8)
    extra = torch.randn(2, 1, 16, requires_grad=True)
    out = net(inputs, query, extra_latents=extra)
    assert out.latents.shape == (2, 7, 16)
    out.output.square().sum().backward()
    assert extra.grad.abs().max() > 0


def test_the_latents_start_near_zero():
    torch.manual_seed(0)
    latents = PerceiverIO(8, 8, dim=64, num_latents=50, depth=1, num_heads=2).latents
    assert latents.shape == (50, 64) and latents.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("options", [
    dict(num_latents=0), dict(num_stages=0), dict(input_depth=-1), dict(num_heads=3), dict(num_latents=2.5),
    dict(dim="8"), dict(depth=True), dict(num_stages=None), dict(input_depth=float("nan"))])
def test_impossible_sizes_are_refused_with_one_sentence(options):
    (name, value), = options.items()
    with pytest.raises(UserError, match=f"{name}={value}"):
        small(**options)


@pytest.mark.parametrize("inputs, query, said", [
    (torch.randn(2, 9, 7), torch.randn(2, 3, 8), "inputs of shape (2, 9, 7) and torch.float32"),
    (torch.randn(9, 6), torch.randn(2, 3, 8), "inputs of shape (9, 6)"),
    (torch.randn(2, 9, 6).double(), torch.randn(2, 3, 8), "inputs of shape (2, 9, 6) and torch.float64"),
    (torch.zeros(2, 9, 6, dtype=torch.uint8), torch.randn(2, 3, 8), "and torch.uint8"),
    (torch.randn(2, 9, 6).numpy(), torch.randn(2, 3, 8), "inputs as ndarray"),
    (torch.randn(2, 9, 6), torch.randn(2, 3, 9), "queries of shape (2, 3, 9)"),
    (torch.randn(2, 9, 6), torch.randn(1, 3, 8), "queries of shape (1, 3, 8)"),
    (torch.randn(2, 9, 6), torch.randn(2, 3, 8).half(), "queries of shape (2, 3, 8) and torch.float16"),
    (torch.randn(2, 9, 6), None, "queries as NoneType")], ids=lambda value: value if isinstance(value, str) else "")
def test_arrays_of_another_kind_are_refused_with_one_sentence(inputs, query, said):
    core = PerceiverIO(6, 8, dim=8, num_latents=3, depth=1)
    with pytest.raises(UserError, match=r"allowed: a tensor of shape \(.*\) of floats, torch.float32") as error:
        core(inputs, query)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_autocast_reads_floats_of_any_width():
    core, half = PerceiverIO(6, 8, dim=8, num_latents=3, depth=1), torch.randn(2, 9, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert core(half, torch.randn(2, 3, 8)).output.shape == (2, 3, 8)
        with pytest.raises(UserError, match="inputs of shape .* and torch.int64"):
            core(torch.zeros(2, 9, 6, dtype=torch.long), torch.randn(2, 3, 8))


def copy_block(ours, theirs):
    "Copy a `transformers` PerceiverLayer into a `Block`."
    own, attention = theirs.attention.self, theirs.attention
    ours.norm_x.load_state_dict(own.layernorm1.state_dict())
    if not isinstance(ours.norm_context, nn.Identity):
        ours.norm_context.load_state_dict(own.layernorm2.state_dict())
    ours.attention.to_q.load_state_dict(own.query.state_dict())
    ours.attention.to_kv.weight.data = torch.cat([own.key.weight, own.value.weight])
    ours.attention.to_kv.bias.data = torch.cat([own.key.bias, own.value.bias])
    ours.attention.to_out.load_state_dict(attention.output.dense.state_dict())
    ours.norm_ff.load_state_dict(theirs.layernorm.state_dict())
    ours.feed_forward.mlp[0].load_state_dict(theirs.mlp.dense1.state_dict())
    ours.feed_forward.mlp[3].load_state_dict(theirs.mlp.dense2.state_dict())


def test_equals_hugging_faces_perceiver_with_its_weights():
    from transformers import PerceiverConfig
    from transformers.models.perceiver.modeling_perceiver import PerceiverEncoder, PerceiverLayer

    torch.manual_seed(0)
    heads = dict(num_self_attention_heads=4, num_cross_attention_heads=4)
    sizes = dict(num_latents=6, d_latents=16, qk_channels=16, v_channels=16, num_blocks=1, num_self_attends_per_block=2)
    widening = dict(cross_attention_widening_factor=4, self_attention_widening_factor=4)
    config = PerceiverConfig(**sizes, **heads, **widening, attention_probs_dropout_prob=0.0)
    encoder = PerceiverEncoder(config, kv_dim=5).eval()
    decoder = PerceiverLayer(config, is_cross_attention=True, qk_channels=8, v_channels=8, num_heads=4,
                             q_dim=8, kv_dim=16, widening_factor=4, use_query_residual=False).eval()
    ours = small(query_residual=False, num_heads=4).eval()
    copy_block(ours.stages[0].read, encoder.cross_attention)
    copy_block(ours.stages[0].blocks[0], encoder.self_attends[0])
    copy_block(ours.stages[0].blocks[1], encoder.self_attends[1])
    copy_block(ours.decoder, decoder)
    inputs, query = torch.randn(2, 9, 5), torch.randn(2, 7, 8)
    out = ours(inputs, query)
    with torch.no_grad():
        latents = encoder(ours.latents.expand(2, -1, -1), inputs=inputs)[0]
        decoded = decoder(query, inputs=latents)[0]
    assert_close(out.latents, latents, atol=1e-5, rtol=1e-5)
    assert_close(out.output, decoded, atol=1e-5, rtol=1e-5)
