"""The fused cross-entropy as kernels: what the laws, which hold them to the naive form on a CPU, do not say of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.kernels import linear_cross_entropy
from tests.conftest import needs_libtpu

S = jax.ShapeDtypeStruct
EVERYTHING = {"bias": True, "ignored": -1, "soft_cap": 5.0, "smoothing": 0.1, "z_loss": 1e-3}


def program(implementation, vocabulary, **hyper):
    """Forward and backward of this form."""
    layer = bpref.fused_linear_cross_entropy(vocabulary, **hyper, implementation=implementation)
    return lambda params, x: bpref.backpropagate(layer, params, x)


@pytest.mark.parametrize("hyper", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_last_block_of_fewer_rows_or_classes_is_as_good_as_any(hyper, monkeypatch):
    monkeypatch.setattr(linear_cross_entropy, "ROWS", 8)
    N, d, V = 19, 5, 13
    W, b, h = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((V, d), (V,), (N, d))))
    y = jnp.arange(N) % V
    params, x = bpref.LinearParams(W, b if hyper else None), (h, y.at[::4].set(-1) if hyper else y)
    came, expected = (jax.jit(program(i, V, block=8, **hyper))(params, x) for i in ("pallas", "xla"))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), came, expected)


@needs_libtpu
def test_no_logits_are_written_on_a_tpu():
    N, d, V = 1024, 128, 4000
    params, x = bpref.LinearParams(*(S(shape, jnp.bfloat16) for shape in ((V, d), (V,)))), S((N, d), jnp.bfloat16)
    seen = bpref.compile_for("tpu-v5e", program("pallas", V, **EVERYTHING), params, (x, S((N,), jnp.int32)))
    assert seen.temp < N * V
    assert seen.accessed < 4 * N * V


WRONG = {
    "rows": ({"rows": 8}, 'rows is 8; implementation "pallas" has none, "xla" has'),
    "another": ({"implementation": "cudnn"}, "implementation is 'cudnn', expected one of auto, xla, pallas"),
}


@pytest.mark.parametrize(("hyper", "message"), WRONG.values(), ids=WRONG)
def test_what_the_kernels_have_not_is_refused_when_the_layer_is_made(hyper, message):
    with pytest.raises(ValueError) as error:
        bpref.fused_linear_cross_entropy(**{"vocabulary": 9, "implementation": "pallas"} | hyper)
    assert str(error.value) == f"fused_linear_cross_entropy: {message}"


def test_on_a_gpu_there_are_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    bpref.fused_linear_cross_entropy(9)
    with pytest.raises(ValueError) as error:
        bpref.fused_linear_cross_entropy(9, implementation="pallas")
    message = 'fused_linear_cross_entropy: implementation "pallas" has no kernels for a GPU, "xla" is for all'
    assert str(error.value) == message


def test_of_themselves_kernels_are_taken_on_one_tpu_alone(monkeypatch):
    def taken(N=256, d=64, dtype=jnp.float32, **hyper):
        layer = bpref.fused_linear_cross_entropy(300, **hyper)
        params, x = bpref.LinearParams(S((300, d), dtype), None), (S((N, d), dtype), S((N,), jnp.int32))
        return "pallas_call" in str(jax.make_jaxpr(layer.forward)(params, x))

    assert not taken()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda: ["a chip"])
    assert taken()
    assert taken(dtype=jnp.bfloat16, soft_cap=9.0)
    assert not taken(rows=128)
    assert not taken(implementation="xla")
    assert not taken(N=64)
    assert not taken(block=100)
    assert not taken(d=4096)
    monkeypatch.setattr(jax, "devices", lambda: ["a chip", "another"])
    assert not taken()
