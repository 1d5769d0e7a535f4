"""Sums of 16,384 terms in float32: by hand as precise as autodiff of the reference, whose sums are trees."""

import jax
import numpy as np
import pytest

import bpref
from bpref.rules import RULES
from bpref.verify import oracle
from tests.rules.sweeping import backpropagate

T = 16384


def wide(tree):
    return jax.tree.map(lambda v: np.asarray(v, np.float64), tree)


def off(came, expected):
    """The relative error in the norm, of each array."""
    pairs = zip(jax.tree.leaves(wide(came)), jax.tree.leaves(wide(expected)), strict=True)
    return np.array([np.linalg.norm(v - e) / np.linalg.norm(e) for v, e in pairs])


@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize(
    ("name", "hyper", "shapes"),
    [
        ("cumulative_logsumexp", {}, [(3, T)]),
        ("cumulative_logsumexp", {"axis": 0, "reverse": True}, [(T - 5, 3)]),
        ("bilinear", {"features": T}, [(3, 3), (3, 3)]),
        ("bilinear", {"features": 3}, [(3, 3), (3, T)]),
    ],
)
def test_a_long_sum_is_as_precise_as_autodiffs(name, hyper, shapes, is_alike):
    """In sequence the cotangents of both were two to twenty times less precise; `is_alike`: every dy is positive."""
    layer, rng = getattr(bpref, name)(**hyper), np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    x = tuple(arrays) if len(arrays) > 1 else arrays[0]
    params = layer.init(jax.random.key(0), x)
    dy = rng.normal(size=jax.eval_shape(layer.forward, params, x)[0].shape).astype(np.float32)
    dy = abs(dy) if is_alike else dy

    @jax.jit
    def by_autodiff(params, x, dy):
        y, cotangents_of = oracle.with_cotangents(lambda *of: RULES[name].reference(*of, **hyper), params, x)
        return y, *cotangents_of(dy)

    own, autodiff = jax.tree.leaves(backpropagate(layer, params, x, dy)), jax.tree.leaves(by_autodiff(params, x, dy))
    with jax.enable_x64(True):
        truth = jax.tree.leaves(wide(by_autodiff(*wide((params, x, dy)))))
    assert (off(own, truth) <= 2 * off(autodiff, truth) + 2**-24).all()
