"""linear: what it says to a call that does not fit, and what its parameters are at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref

pytestmark = pytest.mark.quick

KEY = jax.random.key(0)

BAD_CALLS = {
    "features": (
        lambda: bpref.linear(10, name="fc2").forward(bpref.linear(10).init(KEY, jnp.ones((2, 64))), jnp.ones((2, 30))),
        ValueError,
        "linear 'fc2': x has 30 features in its last axis, W expects 64 (W: (10, 64))",
    ),
    "scalar": (
        lambda: bpref.linear(10).forward(bpref.linear(10).init(KEY, jnp.ones((2, 64))), jnp.ones(())),
        ValueError,
        "linear: x is a scalar, W expects 64 features in its last axis (W: (10, 64))",
    ),
    "integers": (
        lambda: bpref.linear(10).forward(bpref.linear(10).init(KEY, jnp.ones((2, 4))), jnp.ones((2, 4), jnp.int32)),
        TypeError,
        "linear: x has dtype int32, expected a floating-point dtype such as float32",
    ),
    "integers at init": (
        lambda: bpref.linear(10).init(KEY, jnp.ones((2, 4), jnp.int32)),
        TypeError,
        "linear: x has dtype int32, expected a floating-point dtype such as float32",
    ),
    "two dtypes": (
        lambda: bpref.linear(10).forward(bpref.linear(10).init(KEY, jnp.ones((2, 4))), jnp.ones((2, 4), jnp.bfloat16)),
        TypeError,
        "linear: x has dtype bfloat16, W has float32; cast one to the other's",
    ),
    "no features": (
        lambda: bpref.linear(10).init(KEY, jnp.ones((2, 0))),
        ValueError,
        "linear: x has shape (2, 0), expected (..., d) with at least one feature d",
    ),
    "no outputs": (lambda: bpref.linear(0), ValueError, "linear: features is 0, expected a positive integer"),
    "half an output": (lambda: bpref.linear(0.5), ValueError, "linear: features is 0.5, expected a positive integer"),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_calls_are_refused(call, kind, message):
    with pytest.raises(kind) as refused:
        call()
    assert str(refused.value) == message


@pytest.mark.parametrize("maker", [bpref.tanh, bpref.relu, bpref.gelu])
def test_an_activation_refuses_integers(maker):
    with pytest.raises(TypeError, match="x has dtype int32, expected a floating-point dtype such as float32"):
        maker().forward((), jnp.ones(3, jnp.int32))


def test_initial_weights_have_variance_one_over_d_and_no_bias():
    W, b = bpref.linear(400).init(KEY, jax.ShapeDtypeStruct((1, 300), jnp.float32))
    assert float(jnp.var(W)) == pytest.approx(1 / 300, rel=0.02)
    assert float(jnp.abs(W).max()) <= (3 / 300) ** 0.5
    np.testing.assert_array_equal(b, 0)


def test_a_bfloat16_product_accumulates_in_float32():
    """512 ones: a bfloat16 running sum would stop at 256."""
    x = jnp.ones((1, 512), jnp.bfloat16)
    layer = bpref.linear(1, bias=False)
    W = layer.init(KEY, x)
    y, _ = layer.forward(W._replace(W=jnp.ones((1, 512), jnp.bfloat16)), x)
    assert float(y[0, 0]) == 512
    dW = layer.backward(W, layer.forward(W, jnp.ones((512, 512), jnp.bfloat16))[1], jnp.ones((512, 1), jnp.bfloat16))[0]
    assert float(dW.W[0, 0]) == 512
