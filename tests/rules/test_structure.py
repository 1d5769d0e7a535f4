"""The updates of pairs: calls that are refused; what the tensor product of irreps is known by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.structure.tensor_product import coupling, paths_of
from tests.refusing import refusals

KEY = jax.random.key(0)
PAIRS = jnp.ones((2, 5, 5, 6))


def forward(layer, x):
    return layer.forward(layer.init(KEY, PAIRS), x)


BAD_CALLS = {
    "triangle_multiplication: edges is 'both', expected one of outgoing, incoming": (
        lambda: bpref.triangle_multiplication(8, "both")
    ),
    "triangle_multiplication: x has shape (2, 4, 5, 6), expected (*b, N, N, c) with N > 0 and c > 0": (
        lambda: forward(bpref.triangle_multiplication(8), PAIRS[:, 1:])
    ),
    "triangle_attention: node is 'third', expected one of starting, ending": (
        lambda: bpref.triangle_attention(2, "third")
    ),
    "triangle_attention: x has 6 features in its last axis, not a multiple of 4 heads": (
        lambda: bpref.triangle_attention(4).init(KEY, PAIRS)
    ),
    "tensor_product: y has shape (3, 9), expected 4 in its last axis": (
        lambda: bpref.tensor_product(1, 1, 1).forward((), bpref.PairOfIrreps(jnp.ones((3, 4)), jnp.ones((3, 9))))
    ),
    "tensor_product: x has 3 channels and y 2, expected a divisor of x's": (
        lambda: bpref.tensor_product(1, 1, 1).forward((), bpref.PairOfIrreps(jnp.ones((3, 4)), jnp.ones((2, 4))))
    ),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


@pytest.mark.parametrize("degree", [3, 12], ids="degree {}".format)
def test_couplings_are_orthonormal(degree):
    """Those of all paths from two degrees are the rows of an orthogonal matrix, whatever cancels in Racah's sum."""
    l1, l2 = degree, degree - 1
    rows = np.concatenate([coupling(l1, l2, l3) for l3 in range(1, l1 + l2 + 1)]).reshape(
        -1, (2 * l1 + 1) * (2 * l2 + 1)
    )
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-14)


def test_two_vectors_have_a_dot_and_a_cross_product():
    a, b = np.random.default_rng(0).normal(size=(2, 3))
    x, y = (np.array([[0.0, v[1], v[2], v[0]]]) for v in (a, b))  # orders -1, 0, 1 are y, z, x
    with jax.enable_x64(True):
        z = bpref.tensor_product(1, 1, 1).forward((), bpref.PairOfIrreps(x, y))[0][0]
    np.testing.assert_allclose(z[0], a @ b / np.sqrt(3), rtol=1e-14)
    np.testing.assert_allclose(np.roll(z[1:], 1), np.cross(a, b) / np.sqrt(2), rtol=1e-14)


@pytest.mark.parametrize("condon_shortley", [False, True], ids=["plain", "condon_shortley"])
def test_a_product_turns_with_what_it_is_of(condon_shortley):
    """Of each path apart: features of random numbers, turned by what turns their harmonics, of degree 3."""
    rng, L = np.random.default_rng(0), 3
    R = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    R *= np.linalg.det(R)  # a rotation, no mirror
    points = rng.normal(size=(64, 3))
    harmonics = bpref.spherical_harmonics(2 * L, condon_shortley=condon_shortley)
    with jax.enable_x64(True):
        Y, turned = (np.asarray(harmonics.forward((), v)[0]) for v in (points, points @ R.T))
        D = [np.linalg.lstsq(Y[:, s], turned[:, s], rcond=None)[0].T for s in map(of_degree, range(2 * L + 1))]
        D_all = [D[l] for l in range(L + 1)]
        x, y = rng.normal(size=(2, 5, 2, (L + 1) ** 2))
        turn = jax.scipy.linalg.block_diag(*D_all)
        layer = bpref.tensor_product(L, L, 2 * L, apart=True)
        z, z_turned = (
            np.asarray(layer.forward((), bpref.PairOfIrreps(x @ T.T, y @ T.T))[0]) for T in (np.eye(16), turn)
        )
        along = jax.scipy.linalg.block_diag(*(D[l3] for _, _, l3 in paths_of(L, L, 2 * L, False)))
    np.testing.assert_allclose(z_turned, z @ np.asarray(along).T, atol=1e-12)


def of_degree(l):
    return slice(l**2, (l + 1) ** 2)
