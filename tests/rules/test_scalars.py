"""Inputs without axes: to what reduces, or runs along an axis, a scalar is one value, as to NumPy and PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.layer import backpropagate
from bpref.rules.activation.gumbel_softmax import GumbelSoftmaxParams
from tests.rules import sweeping

X = 3.0
ALONG = {
    "softmax": (bpref.softmax, 1, 0),
    "log_softmax": (bpref.log_softmax, 0, 0),
    "sparsemax": (bpref.sparsemax, 1, 0),
    "logsumexp": (bpref.logsumexp, X, 1),
    "reduce_max": (bpref.reduce_max, X, 1),
    "reduce_sum": (bpref.reduce_sum, X, 1),
    "mean": (lambda axis: bpref.reduce_sum(axis=axis, mean=True), X, 1),
    "reduce_prod": (bpref.reduce_prod, X, 1),
    "variance": (bpref.variance, 0, 0),
    "p = 2": (lambda axis: bpref.vector_norm(2, axis), X, 1),
    "p = 3": (lambda axis: bpref.vector_norm(3, axis), X, 1),
    "p = inf": (lambda axis: bpref.vector_norm(math.inf, axis), X, 1),
    "l2_normalize": (bpref.l2_normalize, 1, 0),
    "sort": (bpref.sort, X, 1),
    "top_k": (lambda axis: bpref.top_k(1, axis), (X, 0), 1),
    "cumulative_sum": (bpref.cumulative_sum, X, 1),
    "exclusive": (lambda axis: bpref.cumulative_sum(axis, exclusive=True), 0, 0),
    "cumulative_product": (bpref.cumulative_product, X, 1),
    "cumulative_logsumexp": (bpref.cumulative_logsumexp, X, 1),
}


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(("make", "value", "slope"), ALONG.values(), ids=ALONG)
def test_a_scalar_is_one_value(make, value, slope, axis):
    layer, x = make(axis), jnp.float32(X)
    dy = jax.tree.map(lambda v: jnp.float32(1) if isinstance(v, (float, int)) else v, value)
    for sweep in (backpropagate, sweeping.backpropagate):
        y, _, dx = sweep(layer, (), x, dy)
        jax.tree.map(lambda came, wanted: np.testing.assert_allclose(came, wanted, atol=1e-6), y, value)
        assert dx.shape == ()
        assert float(dx) == pytest.approx(slope, abs=1e-6)


def test_a_choice_of_one_class_is_certain():
    y, _, dx = backpropagate(bpref.gumbel_softmax(), GumbelSoftmaxParams(jax.random.key(0)), jnp.float32(X))
    assert (float(y), float(dx)) == (1, 0)


def test_axis_0_and_axis_minus_1_of_a_scalar_are_the_same():
    with pytest.raises(ValueError) as refused:
        bpref.reduce_sum(axis=(0, -1)).forward((), jnp.float32(X))
    assert str(refused.value) == "reduce_sum: axis is (0, -1), which names an axis of x twice (x: ())"
