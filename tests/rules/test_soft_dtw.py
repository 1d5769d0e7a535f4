"""soft_dtw: beside the sum over all paths, written out, and dynamic time warping."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate


def paths_to(n, m):
    """All of them, each a list of cells."""
    if (n, m) == (0, 0):
        return [[(0, 0)]]
    before = [(n - i, m - j) for i, j in product((0, 1), repeat=2) if (i or j) and n >= i and m >= j]
    return [[*path, (n, m)] for cell in before for path in paths_to(*cell)]


@pytest.mark.parametrize(("n", "m", "gamma"), [(4, 4, 1.0), (2, 6, 0.3), (5, 3, 7.0), (1, 4, 1.0)])
def test_it_is_the_sum_over_all_paths(n, m, gamma):
    """(4, 4): the 63 paths of Delannoy's number. The gradient is how likely a path is to go through each cell."""
    D = np.random.default_rng(n).normal(size=(n, m))
    paths = paths_to(n - 1, m - 1)
    assert len(paths) == {(4, 4): 63, (2, 6): 11, (5, 3): 41, (1, 4): 1}[n, m]
    weights = np.array([np.exp(-sum(D[cell] for cell in path) / gamma) for path in paths])
    through = np.zeros_like(D)
    for path, weight in zip(paths, weights, strict=True):
        for cell in path:
            through[cell] += weight / weights.sum()
    with jax.enable_x64(True):
        J, _, dD = backpropagate(bpref.soft_dtw(gamma), (), D[None])
        np.testing.assert_allclose(J[0], -gamma * np.log(weights.sum()), rtol=1e-12)
        np.testing.assert_allclose(dD[0], through, rtol=1e-11)


def test_a_small_gamma_is_dynamic_time_warping():
    """1 2 3 against 1 1 2 3 costs nothing, against 2 2.5 3 a whole and a half squared, by three ways."""
    x = np.array([1.0, 2.0, 3.0])
    for y, cost, way in (
        ([1.0, 1.0, 2.0, 3.0], 0.0, [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ([2.0, 2.5, 3.0], 1.25, [[1, 0, 0], [2 / 3, 2 / 3, 0], [0, 1 / 3, 1]]),
    ):
        D = jnp.asarray((x[:, None] - np.asarray(y)[None]) ** 2, jnp.float32)
        J, _, dD = backpropagate(bpref.soft_dtw(1e-3), (), D[None])
        np.testing.assert_allclose(J[0], cost, atol=1e-2)
        np.testing.assert_allclose(dD[0], way, atol=1e-5)


def test_the_gradient_does_not_drift_where_costs_are_far_beyond_gamma():
    """R - D would have no digit of what it was made of left: R is 1e8. One path has all the weight."""
    D = 1e7 * np.random.default_rng(0).uniform(0.5, 1, (1, 9, 7))
    _, _, dD = backpropagate(bpref.soft_dtw(), (), jnp.asarray(D, jnp.float32))
    assert (dD[0, 0, 0], dD[0, -1, -1]) == (1, 1)
    assert np.all((dD == 0) | (dD == 1))
    assert 9 <= np.sum(dD) <= 15


def test_lengths_are_those_of_each_pair_and_what_is_behind_is_not_looked_at():
    """As of the pair cut to its lengths; NaN behind them is in nothing. A pair of which one is empty has no path."""
    D = np.random.default_rng(0).normal(size=(5, 6, 4))
    n, m = np.array([6, 3, 1, 6, 2]), np.array([4, 2, 4, 1, 0])
    behind = (np.arange(6)[:, None] >= n[:, None, None]) | (np.arange(4) >= m[:, None, None])
    with jax.enable_x64(True):
        layer = bpref.soft_dtw(0.7)
        J, _, (dD, *of_lengths) = backpropagate(layer, (), (jnp.asarray(np.where(behind, np.nan, D)), n, m))
        assert of_lengths == [None, None]
        assert np.all(dD[behind] == 0)
        assert (J[-1], np.abs(dD[-1]).max()) == (np.inf, 0)
        for b in range(4):
            of_cut, _, d_cut = backpropagate(layer, (), jnp.asarray(D[b : b + 1, : n[b], : m[b]]))
            np.testing.assert_allclose(J[b], of_cut[0], rtol=1e-14)
            np.testing.assert_allclose(dD[b, : n[b], : m[b]], d_cut[0], rtol=1e-13)


test_wrong_calls_are_refused = refusals(
    {
        "soft_dtw: gamma is 0.0, expected a positive number": lambda: bpref.soft_dtw(0.0),
        "soft_dtw: x has shape (2, 0, 3), expected (B, n, m) with n > 0 and m > 0": (
            lambda: bpref.soft_dtw().forward((), jnp.ones((2, 0, 3)))
        ),
        "soft_dtw: x has shape (2, 3), expected (B, n, m) with n > 0 and m > 0": (
            lambda: bpref.soft_dtw().forward((), jnp.ones((2, 3)))
        ),
    },
)
