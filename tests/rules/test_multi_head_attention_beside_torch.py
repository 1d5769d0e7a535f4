"""Multi-head attention beside PyTorch's, forward and every gradient."""

import pytest

import bpref
from bpref import Sequences
from bpref.rules.attention.multi_head_attention import MultiHeadAttentionParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def drawn(rng, d: int) -> MultiHeadAttentionParams:
    W = [rng.normal(size=(d, d)) for _ in range(4)]
    b_q, b_v, b_o = (rng.normal(size=d) for _ in range(3))
    return MultiHeadAttentionParams(*W, b_q, None, b_v, b_o)


def theirs(p, x, memory, heads, mask=None):
    """What `torch.nn.MultiheadAttention` computes, of parameters that carry gradients, with a b_k of 0."""
    bias = torch.cat([p.b_q, torch.zeros_like(p.b_q), p.b_v])
    y, _ = torch.nn.functional.multi_head_attention_forward(
        x.transpose(0, 1), memory.transpose(0, 1), memory.transpose(0, 1), x.shape[-1], heads,
        torch.cat([p.W_q, p.W_k, p.W_v]), bias, None, None, False, 0.0, p.W_o, p.b_o, need_weights=False,
        attn_mask=mask,
    )  # fmt: skip
    return y.transpose(0, 1)


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention(rng, causal):
    B, T, D, heads = (int(n) for n in rng.integers(2, 6, 4))
    mask = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None
    layer = bpref.multi_head_attention(heads, causal=causal, query_block=2, key_block=3)
    x = rng.normal(size=(B, T, D * heads))
    assert_same(layer, lambda p, x: theirs(p, x, x, heads, mask), drawn(rng, D * heads), x)


def test_cross_attention(rng):
    B, T, S, D, heads = (int(n) for n in rng.integers(2, 6, 5))
    x = Sequences(rng.normal(size=(B, T, D * heads)), rng.normal(size=(B, S, D * heads)))
    assert_same(bpref.multi_head_attention(heads), lambda p, x: theirs(p, *x[:2], heads), drawn(rng, D * heads), x)


@pytest.mark.parametrize("more", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("weights", [None, "mean", "heads"])
def test_values_of_their_own_a_real_mask_keys_more_and_weights(rng, more, weights):
    """As `torch.nn.MultiheadAttention(kdim=, vdim=)`, whose masks may be of real numbers, with all that it puts out."""
    B, T, S, D, heads, f, g = (int(n) for n in rng.integers(2, 6, 7))
    d = D * heads
    W = [rng.normal(size=(d, n)) for n in (d, f, g, d)]
    b = [rng.normal(size=d) if more or i != 1 else None for i in range(4)]
    learned = {name: rng.normal(size=d) for name in ("bias_k", "bias_v") if "add_bias_kv" in more}
    params = MultiHeadAttentionParams(*W, *b, **learned)
    x = Sequences(
        rng.normal(size=(B, T, d)),
        rng.normal(size=(B, S, f)),
        values=rng.normal(size=(B, S, g)),
        bias=rng.normal(size=(B, heads, T, S)),
    )

    def twin(p, x):
        b_k = torch.zeros_like(p.b_q) if p.b_k is None else p.b_k
        first = (None, None) if p.bias_k is None else (p.bias_k[None, None], p.bias_v[None, None])
        y, w = torch.nn.functional.multi_head_attention_forward(
            x.x.transpose(0, 1), x.memory.transpose(0, 1), x.values.transpose(0, 1), d, heads, None,
            torch.cat([p.b_q, b_k, p.b_v]), *first, "add_zero_attn" in more, 0.0, p.W_o, p.b_o,
            need_weights=weights is not None, attn_mask=x.bias.flatten(0, 1), use_separate_proj_weight=True,
            q_proj_weight=p.W_q, k_proj_weight=p.W_k, v_proj_weight=p.W_v, average_attn_weights=weights == "mean",
        )  # fmt: skip
        return y.transpose(0, 1) if weights is None else (y.transpose(0, 1), w)

    layer = bpref.multi_head_attention(heads, weights=weights, query_block=2, key_block=3, **more)
    assert_same(layer, twin, params, x)
