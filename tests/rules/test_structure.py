"""The updates of pairs: calls that are refused."""

import jax
import jax.numpy as jnp
import pytest

import bpref

KEY = jax.random.key(0)
PAIRS = jnp.ones((2, 5, 5, 6))


def forward(layer, x):
    return layer.forward(layer.init(KEY, PAIRS), x)


BAD_CALLS = {
    "triangle_multiplication of no such edges": (
        lambda: bpref.triangle_multiplication(8, "both"),
        ValueError,
        "triangle_multiplication: edges is 'both', expected one of outgoing, incoming",
    ),
    "triangle_multiplication of pairs of two kinds": (
        lambda: forward(bpref.triangle_multiplication(8), PAIRS[:, 1:]),
        ValueError,
        "triangle_multiplication: x has shape (2, 4, 5, 6), expected (*b, N, N, c) with N > 0 and c > 0",
    ),
    "triangle_attention around no such node": (
        lambda: bpref.triangle_attention(2, "third"),
        ValueError,
        "triangle_attention: node is 'third', expected one of starting, ending",
    ),
    "triangle_attention of heads that do not divide": (
        lambda: bpref.triangle_attention(4).init(KEY, PAIRS),
        ValueError,
        "triangle_attention: x has 6 features in its last axis, not a multiple of 4 heads",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_calls_are_refused(call, kind, message):
    with pytest.raises(kind) as refused:
        call()
    assert str(refused.value) == message
