# Made from nbs/21_attention.ipynb by `pmd-dev tests`. Edit the notebook.
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import PerceiverConfig
from transformers.models.perceiver.modeling_perceiver import PerceiverLayer

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.attention import Attention, Block, Dense, naive_attention


def look_up(query: list[float], keys: list[list[float]], values: list[list[float]]) -> list[float]:
    "Attention of one query, in plain Python."
    scores = [sum(a * b for a, b in zip(query, key)) / math.sqrt(len(query)) for key in keys]
    exponentials = [math.exp(score) for score in scores]
    weights = [e / sum(exponentials) for e in exponentials]
    return [sum(weight * value[i] for weight, value in zip(weights, values)) for i in range(len(values[0]))]


def attention_weights(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    "How much each query reads of each key, [B, H, Q, M]."
    return naive_attention(q, k, torch.eye(k.shape[-2], dtype=k.dtype).expand(*k.shape[:-2], -1, -1), mask)


def random_qkv(queries: int = 5, context: int = 7, dim: int = 8, seed: int = 0) -> tuple[torch.Tensor, ...]:
    "Queries, keys and values of two samples and three heads, that want gradients."
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, n, dim, generator=generator, requires_grad=True)
                 for n in (queries, context, context))


def test_attention_is_the_soft_look_up():
    q, k, v = random_qkv()
    out = naive_attention(q, k, v)
    for b, h, i in [(0, 0, 0), (1, 2, 4), (0, 1, 3)]:
        expected = look_up(q[b, h, i].tolist(), k[b, h].tolist(), v[b, h].tolist())
        torch.testing.assert_close(out[b, h, i], torch.tensor(expected), rtol=0, atol=1e-5)


def test_weights_are_positive_and_sum_to_one_and_what_is_masked_has_none():
    q, k, _ = random_qkv()
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[..., 0] = True
    for weights in (attention_weights(q, k), attention_weights(q, k, mask)):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 5))
    assert (attention_weights(q, k, mask)[~mask.expand(2, 3, 5, 7)] == 0).all()


def make_mask(kind: str, queries: int = 5, context: int = 7) -> torch.Tensor | None:
    "Masks of every kind that attention meets."
    lengths = torch.arange(context) < torch.tensor([[context], [3]])
    return {"none": None, "padding": lengths[:, None, None, :],
            "causal": torch.ones(queries, context, dtype=torch.bool).tril(),
            "any pair": torch.rand(2, 3, queries, context, generator=torch.Generator().manual_seed(3)) < 0.5,
            "nothing to read": (torch.arange(2) == 0)[:, None, None, None].expand(2, 1, queries, context)}[kind]


MASKS = ["none", "padding", "causal", "any pair", "nothing to read"]


@pytest.mark.parametrize("kind", MASKS)
def test_the_fast_attention_is_the_naive_one_with_its_gradients(kind):
    results = []
    for attention in (naive_attention, F.scaled_dot_product_attention):
        q, k, v = random_qkv()
        out = attention(q, k, v, make_mask(kind))
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)))
        results.append((out, q.grad, k.grad, v.grad))
    for naive, fast in zip(*results):
        assert torch.isfinite(naive).all()
        torch.testing.assert_close(fast, naive, rtol=1e-5, atol=1e-5)


def test_a_query_with_nothing_to_read_reads_zero_and_sends_no_gradient():
    for attention in (naive_attention, F.scaled_dot_product_attention):
        q, k, v = random_qkv()
        out = attention(q, k, v, make_mask("nothing to read"))
        out.sum().backward()
        assert (out[1] == 0).all() and (out[0] != 0).all()
        for x in (q, k, v):
            assert torch.isfinite(x.grad).all() and (x.grad[1] == 0).all()
        assert v.grad[0].abs().sum() > 0


def naive_layer(
    layer: Attention, x: torch.Tensor, context: torch.Tensor | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    "What an `Attention` layer computes, from its weights, head after head."
    k, v = layer.to_kv(x if context is None else context).chunk(2, dim=-1)
    mask = None if mask is None else mask[:, None, None, :]
    heads = [naive_attention(*(y[:, None] for y in head), mask)[:, 0]
             for head in zip(*(y.chunk(layer.num_heads, dim=-1) for y in (layer.to_q(x), k, v)))]
    return layer.to_out(torch.cat(heads, dim=-1))


def random_layer(
    context_dim: int | None = None, num_heads: int = 4, dim: int = 16
) -> tuple[Attention, torch.Tensor, torch.Tensor | None]:
    "A layer with random weights, something to ask and something to read."
    torch.manual_seed(0)
    return (Attention(dim, context_dim, num_heads), torch.randn(2, 5, dim, requires_grad=True),
            None if context_dim is None else torch.randn(2, 7, context_dim, requires_grad=True))


@pytest.mark.parametrize("num_heads", [1, 2, 8])
@pytest.mark.parametrize("context_dim", [None, 16, 11])
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_is_the_naive_one_with_the_gradients_of_all_weights(num_heads, context_dim, masked):
    results = []
    for forward in (Attention.forward, naive_layer):
        layer, x, context = random_layer(context_dim, num_heads)
        mask = torch.arange(5 if context is None else 7) < torch.tensor([[3], [5]]) if masked else None
        out = forward(layer, x, context, mask)
        out.square().sum().backward()
        inputs = [x] if context is None else [x, context]
        results.append([out, *(wanted.grad for wanted in (*inputs, *layer.parameters()))])
    for fast, naive in zip(*results, strict=True):
        torch.testing.assert_close(fast, naive, rtol=1e-4, atol=1e-5)


def test_padding_is_as_if_it_were_not_there():
    layer, x, context = random_layer(context_dim=11)
    mask = (torch.arange(7) < 4).expand(2, 7)
    out = layer(x, context, mask)
    torch.testing.assert_close(out, layer(x, context[:, :4]), rtol=1e-5, atol=1e-5)
    other = torch.where(mask[..., None], context, 1e4 * torch.randn(2, 7, 11))
    torch.testing.assert_close(layer(x, other, mask), out, rtol=0, atol=0)


def test_a_sample_with_an_empty_context_gets_the_bias_and_finite_gradients():
    layer, x, context = random_layer(context_dim=11)
    mask = torch.tensor([[True] * 7, [False] * 7])
    out = layer(x, context, mask)
    torch.testing.assert_close(out[1], layer.to_out.bias.expand(5, 16))
    out.square().sum().backward()
    for gradient in (x.grad, context.grad, *(p.grad for p in layer.parameters())):
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    assert (context.grad[1] == 0).all()


@pytest.mark.parametrize("dim, num_heads", [(30, 4), (4, 8), (8, 0), (8, -2)])
def test_heads_that_do_not_divide_the_width_are_explained(dim, num_heads):
    with pytest.raises(UserError, match=f"dim={dim} with num_heads={num_heads}.*a dim that num_heads divides"):
        Attention(dim, num_heads=num_heads)


@pytest.mark.parametrize("mask", [torch.ones(2, 7), torch.ones(2, 7, dtype=torch.long),
                                  torch.ones(2, 5, dtype=torch.bool), torch.ones(7, dtype=torch.bool)])
def test_a_mask_of_another_kind_or_shape_is_explained(mask):
    layer, x, context = random_layer(context_dim=11)
    with pytest.raises(UserError, match=r"a mask of .*torch.bool of shape \(2, 7\)"):
        layer(x, context, mask)


@pytest.mark.parametrize("dtype, is_fused", [(torch.float32, True), (torch.bfloat16, False)])
def test_in_bfloat16_on_a_cpu_attention_is_computed_without_the_slow_fused_kernel(dtype, is_fused):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            asked.append(str(func))
            return func(*args, **(kwargs or {}))

    attention, asked = Attention(8, 8, 2).to(dtype), []
    with torch.no_grad(), Record():
        attention(torch.randn(2, 5, 8).to(dtype))
    assert any("attention" in name for name in asked) == is_fused and any("addmm" in name for name in asked)


def textbook_attention(layer, x, context, mask):
    "softmax(QKᵀ/√d) V, one query of one head at a time; a query with nothing to read reads 0."
    dim, d = x.shape[-1], x.shape[-1] // layer.num_heads
    q, kv, read = layer.to_q(x), layer.to_kv(context), torch.zeros_like(x)
    for b in range(len(x)):
        may_be_read = [m for m in range(context.shape[1]) if mask is None or mask[b, m]]
        for n in range(x.shape[1] if may_be_read else 0):
            for head in range(layer.num_heads):
                part = slice(head * d, (head + 1) * d)
                scores = torch.stack([q[b, n, part] @ kv[b, m, part] for m in may_be_read]) / math.sqrt(d)
                values = torch.stack([kv[b, m, dim:][part] for m in may_be_read])
                read[b, n, part] = (scores.exp() / scores.exp().sum()) @ values
    return layer.to_out(read)


@settings(derandomize=True, database=None, deadline=None, max_examples=50)
@given(size=st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 6)), length=st.integers(0, 4),
       context_dim=st.sampled_from([None, 1, 3]), num_heads=st.integers(-1, 4),
       share=st.sampled_from([None, 0.0, 0.5]), seed=st.integers(0, 99))
@example(size=(2, 1, 2), length=0, context_dim=3, num_heads=1, share=None, seed=0)
def test_a_layer_of_any_shape_is_the_formula_or_one_sentence(size, length, context_dim, num_heads, share, seed):
    torch.manual_seed(seed)
    dim = size[-1]
    if num_heads < 1 or dim % num_heads:
        with pytest.raises(UserError, match=f"dim={dim} with num_heads={num_heads}"):
            Attention(dim, context_dim, num_heads)
        return
    layer, x = Attention(dim, context_dim, num_heads).double(), torch.randn(size).double()
    context = None if context_dim is None else torch.randn(size[0], length, context_dim).double()
    read = x if context is None else context
    mask = None if share is None else torch.rand(read.shape[:2]) < share
    torch.testing.assert_close(layer(x, context, mask), textbook_attention(layer, x, read, mask))
    with pytest.raises(UserError, match="a mask of torch.bool"):
        layer(x, context, torch.ones(len(x) + 1, read.shape[1], dtype=torch.bool))


def test_cross_attention_does_not_depend_on_the_order_of_the_context():
    layer, x, context = random_layer(context_dim=11)
    mask, order = torch.rand(2, 7) < 0.7, torch.randperm(7)
    torch.testing.assert_close(layer(x, context[:, order], mask[:, order]), layer(x, context, mask),
                               rtol=1e-5, atol=1e-5)


def test_self_attention_shuffles_its_output_as_its_input():
    layer, x, _ = random_layer()
    order = torch.randperm(5)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=1e-5, atol=1e-5)


def test_each_query_is_answered_on_its_own_and_each_sample_too():
    layer, x, context = random_layer(context_dim=11)
    out = layer(x, context)
    torch.testing.assert_close(layer(x[:, 1:3], context), out[:, 1:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x[1:], context[1:]), out[1:], rtol=1e-5, atol=1e-5)


def test_the_feed_forward_layer_treats_each_row_alone_and_has_no_routing():
    torch.manual_seed(0)
    layer, x = Dense(6, mult=1.5), torch.randn(2, 5, 6)
    y, routing = layer(x)
    assert routing is None and layer.mlp[0].out_features == 9
    torch.testing.assert_close(y[1, 3], layer.mlp(x[1, 3]), rtol=1e-5, atol=1e-6)


def random_block(**options) -> tuple[Block, torch.Tensor, torch.Tensor]:
    "A cross-attention block with all parameters random, norms included; queries and a context."
    torch.manual_seed(0)
    block = Block(16, context_dim=11, **options)
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(std=0.5)
    return block, torch.randn(2, 5, 16), torch.randn(2, 7, 11)


@pytest.mark.parametrize("residual", [True, False])
def test_a_block_is_its_equations(residual):
    block, x, context = random_block(residual=residual)
    norm = lambda layer, y: (
        (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * layer.weight
        + layer.bias
    )
    read = naive_layer(block.attention, norm(block.norm_x, x), norm(block.norm_context, context))
    middle = x + read if residual else read
    expected = middle + block.feed_forward.mlp(norm(block.norm_ff, middle))
    torch.testing.assert_close(block(x, context)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_silent_block_passes_its_input_through_unchanged():
    block, x, context = random_block()
    for layer in (block.attention.to_out, block.feed_forward.mlp[-1]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    torch.testing.assert_close(block(x, context)[0], x, rtol=0, atol=0)


def test_without_the_residual_only_the_direction_of_the_input_matters():
    block, x, context = random_block(residual=False)
    torch.testing.assert_close(block(100 * x, context)[0], block(x, context)[0], rtol=1e-3, atol=1e-3)
    block.residual = True
    assert (block(100 * x, context)[0] - block(x, context)[0]).abs().max() > 10


def test_a_block_hands_on_what_its_feed_forward_reports():
    class Reporting(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x), "routing"

    block = Block(16, feed_forward=lambda dim: Reporting())
    assert block(torch.randn(2, 5, 16))[1] == "routing"


def test_blocks_are_invariant_and_equivariant_like_their_attention():
    block, x, context = random_block()
    mask, order, turn = torch.rand(2, 7) < 0.7, torch.randperm(7), torch.randperm(5)
    out = block(x, context, mask)[0]
    torch.testing.assert_close(block(x, context[:, order], mask[:, order])[0], out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block(x[:, turn], context, mask)[0], out[:, turn], rtol=1e-4, atol=1e-4)
    own = Block(16)
    torch.testing.assert_close(own(x[:, turn])[0], own(x)[0][:, turn], rtol=1e-4, atol=1e-4)


def test_a_block_with_heads_that_do_not_divide_is_explained():
    with pytest.raises(UserError, match="dim=16 with num_heads=3"):
        Block(16, num_heads=3)


def peer_layer(context_dim: int | None, residual: bool) -> PerceiverLayer:
    "A Perceiver layer of transformers, 16 channels and 4 heads, all parameters random."
    torch.manual_seed(0)
    layer = PerceiverLayer(PerceiverConfig(hidden_act="gelu"), is_cross_attention=context_dim is not None,
                           qk_channels=16, v_channels=16, num_heads=4, q_dim=16, kv_dim=context_dim or 16,
                           widening_factor=4, use_query_residual=residual).eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
    return layer


def copy_of(peer: PerceiverLayer, context_dim: int | None, residual: bool) -> Block:
    "A `Block` with the weights of the other layer."
    block, theirs = Block(16, num_heads=4, context_dim=context_dim, residual=residual), peer.attention.self
    pairs = [
        (block.norm_x, theirs.layernorm1),
        (block.attention.to_q, theirs.query),
        (block.attention.to_out, peer.attention.output.dense),
        (block.norm_ff, peer.layernorm),
        (block.feed_forward.mlp[0], peer.mlp.dense1),
        (block.feed_forward.mlp[-1], peer.mlp.dense2),
        (block.norm_context, theirs.layernorm2),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    both = {name: torch.cat([getattr(theirs.key, name), getattr(theirs.value, name)]) for name in ("weight", "bias")}
    block.attention.to_kv.load_state_dict(both)
    return block


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("context_dim", [11, 16, None], ids=["cross", "cross, same width", "self"])
def test_a_block_is_the_perceiver_layer_of_transformers(context_dim, masked, residual):
    peer = peer_layer(context_dim, residual)
    block = copy_of(peer, context_dim, residual)
    x, context = torch.randn(2, 5, 16), None if context_dim is None else torch.randn(2, 7, context_dim)
    mask = torch.arange(5 if context is None else 7) < torch.tensor([[3], [5]]) if masked else None
    added = (None if mask is None
             else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None, None, :])
    with torch.no_grad():
        theirs = peer(x, added, inputs=context, inputs_mask=added)[0]
        ours, _ = block(x, context, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
