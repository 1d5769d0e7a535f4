"""Softmax attention beside PyTorch's."""

import pytest

import bpref
from bpref.formulas.attention.softmax_attention import AttentionParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def attention(x, **options):
    q, k, v = (a.transpose(-3, -2) for a in (x.q, x.k, x.v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
    return y.transpose(-3, -2)


def drawn(rng):
    T, S, K = rng.integers(2, 9, 3)
    shapes = (2, T, 2 * K, 4), (2, S, K, 4), (2, S, K, 3)
    return bpref.Heads(*(rng.normal(size=shape) for shape in shapes))


@pytest.mark.parametrize("causal", [False, True])
def test_causal(rng, causal):
    x = drawn(rng)
    layer = bpref.blockwise_attention(causal=causal, query_block=3, key_block=2)
    assert_same(layer, lambda _, x: attention(x, is_causal=causal), AttentionParams(), x)


def test_mask(rng):
    x = drawn(rng)
    mask = rng.random((2, x.q.shape[2], x.q.shape[1], x.k.shape[1])) > 0.4
    mask[..., 0] = True
    x = x._replace(mask=mask)
    assert_same(bpref.dot_product_attention(), lambda _, x: attention(x, attn_mask=x.mask), AttentionParams(), x)


def test_bias(rng):
    x = drawn(rng)
    x = x._replace(bias=rng.normal(size=(1, 1, x.q.shape[1], x.k.shape[1])))
    assert_same(bpref.dot_product_attention(), lambda _, x: attention(x, attn_mask=x.bias), AttentionParams(), x)


def test_axial_rotary_embedding(rng):
    """As `transformers` has Qwen2-VL's of text and pictures: sections of the doubled angles of all three axes."""
    sections = (2, 3, 3)
    B, T, N = (int(n) for n in rng.integers(1, 6, 3))
    x = rng.normal(size=(B, T, N, 16)), rng.integers(0, 40, (B, T, 3))

    def twin(p, x):
        v, positions = x
        angle = positions[..., None] * 100.0 ** -(torch.arange(8, dtype=torch.float64) / 8)
        by_section = [part[:, :, axis] for axis, part in enumerate(angle.split(sections, -1))]
        cos, sin = (torch.cat([f(torch.cat(by_section, -1))] * 2, -1)[:, :, None] for f in (torch.cos, torch.sin))
        return v * cos + torch.cat([-v[..., 8:], v[..., :8]], -1) * sin

    assert_same(bpref.axial_rotary_embedding(sections, base=100.0), twin, (), x)
