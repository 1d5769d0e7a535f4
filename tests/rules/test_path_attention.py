"""Softmax attention over reflected keys: its limits, many steps, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Heads, PathHeads
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.formulas.recurrence.unit_triangular import right_divided
from bpref.rules.attention.path_attention import reference
from tests.comparing import assert_same
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, by_oracle

pytestmark = pytest.mark.quick

B, T, N, K, D = 2, 7, 4, 2, 3
DRAWN = np.random.default_rng(0)
X = Heads(*(DRAWN.normal(size=(B, T, n, D)) for n in (N, K, K)))
W = DRAWN.normal(size=(B, T, K, D))
W /= np.linalg.norm(W, axis=-1, keepdims=True)
DY = DRAWN.normal(size=(B, T, N, D))
CAUSAL = bpref.dot_product_attention(causal=True)


def swept(x, layer=None, params=(), dy=DY):
    with jax.enable_x64(True):
        y, _, dx = backpropagate(layer or bpref.path_attention(), params, x, dy)
    return y, dx


def test_nothing_reflected_is_causal_attention():
    y, dx = swept(PathHeads(X, W, np.zeros((B, T, K))))
    assert_same((y, dx.heads), swept(X, CAUSAL, AttentionParams()), 1e-11)


def test_a_reflection_at_every_step_along_one_axis_is_a_sign_by_distance():
    """H = diag(-1, 1, 1) at every step: of H^(t - s) the first feature's sign is that of (-1)^t (-1)^s."""
    w = np.zeros((B, T, K, D))
    w[..., 0] = 1
    sign = np.ones((T, 1, D))
    sign[1::2, :, 0] = -1
    y, dx = swept(PathHeads(X, w, np.full((B, T, K), 2.0)))
    signed, of_signed = swept(X._replace(q=X.q * sign, k=X.k * sign), CAUSAL, AttentionParams())
    expected = of_signed._replace(q=of_signed.q * sign, k=of_signed.k * sign)
    assert_same((y, dx.heads), (signed, expected), 1e-11)


def test_a_projection_forgets_its_direction():
    """beta = 1 at the second step takes w out of the first key: what lies along it gives the later query nothing."""
    q = k = jnp.eye(2)[jnp.array([0, 0, 0])][:, None]
    w = jnp.eye(2)[jnp.array([1, 0, 1])][:, None]
    x = PathHeads(Heads(q, k, jnp.array([1.0, 0, 0])[:, None, None]), w, jnp.array([0.0, 1, 0])[:, None])
    y = bpref.path_attention(scale=1.0).forward((), x)[0]
    np.testing.assert_allclose(y[:, 0, 0], [1, 1 / (1 + np.e), 1 / (1 + 2 * np.e)], rtol=1e-6)


def test_more_steps_than_an_inverse_is_made_of():
    """Halves of 65 and of 66 steps, against the keys that are reflected one step after the other."""
    rng, steps = np.random.default_rng(1), 131
    w = rng.normal(size=(steps, 1, 8))
    w /= np.linalg.norm(w, axis=-1, keepdims=True)
    x = PathHeads(Heads(*(rng.normal(size=(steps, n, 8)) for n in (2, 1, 1))), w, rng.uniform(0, 2, (steps, 1)))
    dy = rng.normal(size=(steps, 2, 8))
    with jax.enable_x64(True):
        y, (dx,) = by_oracle(lambda x: reference((), x), jax.tree.map(jnp.asarray, x), dy=jnp.asarray(dy))
    assert_same(swept(x, dy=dy), (y, dx), 1e-9)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_division_from_the_right(transposed):
    N = np.tril(DRAWN.normal(size=(2, 130, 130)), -1) / 12
    M = np.eye(130) + (np.swapaxes(N, -1, -2) if transposed else N)
    A = DRAWN.normal(size=(2, 5, 130))
    with jax.enable_x64(True):
        came = right_divided(jnp.asarray(A @ M), jnp.asarray(N), transposed)
    np.testing.assert_allclose(came, A, rtol=1e-9, atol=1e-11)


ONES = Heads(*(jnp.ones((2, 5, n, 3)) for n in (4, 2, 2)))
OF_W, OF_BETA = jnp.ones((2, 5, 2, 3)), jnp.ones((2, 5, 2))
BAD = {
    "path_attention: heads.bias is given, expected None: it is made of the reflections": PathHeads(
        ONES._replace(bias=jnp.zeros((1, 1, 5, 5))), OF_W, OF_BETA
    ),
    "path_attention: heads.key is given, expected None: nothing is dropped": PathHeads(
        ONES._replace(key=jax.random.key(0)), OF_W, OF_BETA
    ),
    "path_attention: k has 6 steps, q has 5; expected as many (k: (2, 6, 2, 3))": PathHeads(
        ONES._replace(k=jnp.ones((2, 6, 2, 3)), v=jnp.ones((2, 6, 2, 3))), OF_W, OF_BETA
    ),
}


test_bad_input_is_refused_by_name = refusals(BAD, lambda x: bpref.path_attention().forward((), x))
