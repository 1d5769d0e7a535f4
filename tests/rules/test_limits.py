"""An activation at infinity is its limit there, and its slope the slope's: eagerly and compiled, in every width."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.layer import backpropagate
from bpref.rules import KINDS
from tests.rules import sweeping

INF = math.inf
ALONG_AN_AXIS = {"softmax", "softmin", "log_softmax", "sparsemax", "gumbel_softmax", "maxout", "glu"}
SELU = 1.0507009873554805
LIMITS = {
    # y at -inf and +inf, and dx of a cotangent of 1
    "celu": (bpref.celu, (-1, INF), (0, 1)),
    "elu": (bpref.elu, (-1, INF), (0, 1)),
    "gelu": (bpref.gelu, (0, INF), (0, 1)),
    "gelu, erf form": (functools.partial(bpref.gelu, approximate=False), (0, INF), (0, 1)),
    "hard_shrink": (bpref.hard_shrink, (-INF, INF), (1, 1)),
    "hard_sigmoid": (bpref.hard_sigmoid, (0, 1), (0, 0)),
    "hard_swish": (bpref.hard_swish, (0, INF), (0, 1)),
    "hard_tanh": (bpref.hard_tanh, (-1, 1), (0, 0)),
    "identity": (bpref.identity, (-INF, INF), (1, 1)),
    "leaky_relu": (bpref.leaky_relu, (-INF, INF), (0.01, 1)),
    "log_sigmoid": (bpref.log_sigmoid, (-INF, 0), (1, 0)),
    "mish": (bpref.mish, (0, INF), (0, 1)),
    "prelu": (bpref.prelu, (-INF, INF), (0.25, 1)),
    "relu": (bpref.relu, (0, INF), (0, 1)),
    "relu6": (bpref.relu6, (0, 6), (0, 0)),
    "selu": (bpref.selu, (-1.6732632423543772 * SELU, INF), (0, SELU)),
    "sigmoid": (bpref.sigmoid, (0, 1), (0, 0)),
    "silu": (bpref.silu, (0, INF), (0, 1)),
    "soft_cap": (functools.partial(bpref.soft_cap, 30.0), (-30, 30), (0, 0)),
    "soft_shrink": (bpref.soft_shrink, (-INF, INF), (1, 1)),
    "softplus": (bpref.softplus, (0, INF), (0, 1)),
    "softsign": (bpref.softsign, (-1, 1), (0, 0)),
    "squared_relu": (bpref.squared_relu, (0, INF), (0, INF)),
    "tanh": (bpref.tanh, (-1, 1), (0, 0)),
    "tanh_shrink": (bpref.tanh_shrink, (-INF, INF), (1, 1)),
    "threshold": (bpref.threshold, (0, INF), (0, 1)),
}


def test_every_activation_has_its_limits_listed():
    assert {name.split(",")[0] for name in LIMITS} | ALONG_AN_AXIS == set(KINDS["activation"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("sweep", [backpropagate, sweeping.backpropagate], ids=["eager", "compiled"])
@pytest.mark.parametrize(("make", "y_expected", "dx_expected"), LIMITS.values(), ids=LIMITS)
def test_an_infinity_has_the_limit(make, y_expected, dx_expected, sweep, dtype):
    """Of x s(x) and x / (1 + |x|), in gelu, silu, mish, hard_swish and softsign, y or dx was NaN."""
    layer, x = make(), jnp.asarray([-INF, INF], dtype)
    y, _, dx = sweep(layer, layer.init(jax.random.key(0), x), x, jnp.ones_like(x))
    for came, expected in ((y, y_expected), (dx, dx_expected)):
        np.testing.assert_array_equal(
            np.asarray(came, np.float64), np.asarray(jnp.asarray(expected, dtype), np.float64)
        )


@pytest.mark.parametrize("gate", ["gelu", "silu"])
def test_a_gate_at_minus_infinity_is_shut(gate):
    y, _, dx = sweeping.backpropagate(bpref.glu(gate), (), jnp.asarray([2.0, -INF]), jnp.ones(1))
    assert y == 0
    assert dx.tolist() == [0, 0]
