"""matrix_exponential: Y = exp(A) = I + A + A^2 / 2 + A^3 / 6 + ...

Forward, for each square matrix of the batch, by scaling and squaring: with s the smallest number of halvings after
which the 1-norm of A is at most theta, and r = p / q the diagonal Pade approximant of exp,

    X = 2^-s A      r(X) = q(X)^-1 p(X)      Y = r(X)^(2^s)               A, Y: (..., n, n)
    p(X) = sum_j b_j X^j     q(X) = p(-X)     b_j = (d over j) (2d - j)! / (2d)!,  d the degree

Differential: the derivative of A^k is a sum over the places where delta A may stand, and so is

    delta Y = sum_k 1/k! sum_{i<k} A^i (delta A) A^(k-1-i) =: L(A, delta A)

the Frechet derivative. It stands in the upper right of a function of block matrices,

    exp [[A, E], [0, A]] = [[exp(A), L(A, E)], [0, exp(A)]]

The adjoint of E -> A^i E A^j is E -> (A^T)^i E (A^T)^j, and the sum over i + j = k - 1 is symmetric in i and j:

    dA = L(A^T, dY) = L(A, dY^T)^T                                        (..., n, n)

The backward is therefore the forward's own algorithm at [[A, dY^T], [0, A]]. Such matrices are closed under sums,
products and inverses, and are given by their two blocks: (A, E) (B, F) = (A B, A F + E B). Three products instead of
the eight of a matrix of twice the size.

Cached: A, as it came. The powers, factors and squarings made on the way would be a dozen matrices or more; to make
them again is a third of the backward, and since they are those of A and not of A^T, XLA makes most of them once where
forward and backward are compiled together.

Numerical care: s is chosen by A alone and not by the block matrix, so that dA is linear in dY, exactly (2 dY gives
2 dA), and a large dY does not cost digits. theta and the degree (13 in float64, 7 in float32) are those for which the
approximant's own error is below round-off (Higham). Half precision is computed in float32. The squarings of a
non-normal matrix may lose digits, in Y as in dA; no bound but the condition number is known. A norm beyond
2^max_squarings theta, which cannot be seen while tracing, gives NaN; s itself has no derivative.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    factorise,
    identity_like,
    product,
    solve_factorised,
    transpose,
)
from bpref.layer import Layer, Reals, no_params
from bpref.loops import cond, scan
from bpref.rule import Case, Real, Rule

Blocks = tuple[Array, ...]
"""(A,) for A itself, or (A, E) for [[A, E], [0, A]]."""


class MatrixExponentialCache(NamedTuple):
    A: Float[Array, "... n n"]


def matrix_exponential(max_squarings: int = 16) -> Layer[tuple[()], Array, Reals, MatrixExponentialCache]:
    """Y = exp(A), for each matrix of a batch.

    Args:
      max_squarings: how many squarings there are at most; a matrix with a 1-norm beyond 2^max_squarings times 5.4
        (float32: 3.9) has NaN for y and dA.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)` and y of the same shape.

    Raises:
      ValueError: A is not square; max_squarings is not a positive integer.
      TypeError: A is not floating-point.
    """
    who = "matrix_exponential"
    max_squarings = require_size(who, "max_squarings", max_squarings)

    def forward(params, A: Float[Array, "... n n"]):
        (Y,) = _exponential((widen(A),), max_squarings)
        return cast(Y, A.dtype), MatrixExponentialCache(A)

    def backward(params, cache, dY):
        _, dA = _exponential((widen(cache.A), transpose(widen(dY))), max_squarings)
        return (), cast(transpose(dA), dY.dtype)

    return Layer(no_params, forward, backward, who)


def _exponential(X: Blocks, max_squarings: int) -> Blocks:
    degree, theta = (13, 5.371920351148152) if X[0].dtype == jnp.float64 else (7, 3.925724783138660)
    norm = lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(X[0]), -2), -1, initial=0))
    s = jnp.maximum(0, jnp.frexp(norm / theta)[1])[..., None, None]
    scale = jnp.where(s <= max_squarings, jnp.exp2(-s.astype(norm.dtype)), jnp.nan)

    def square_where_due(Y, i):
        return cond(
            i < jnp.max(s, initial=0),
            lambda Y: tuple(jnp.where(i < s, new, old) for new, old in zip(_times(Y, Y), Y, strict=True)),
            lambda Y: Y,
            Y,
        ), None

    r = _pade(tuple(scale * v for v in X), degree)
    return scan(square_where_due, r, jnp.arange(max_squarings, dtype=s.dtype))[0]


def _pade(X: Blocks, degree: int) -> Blocks:
    """q(X)^-1 p(X), from U and V, the odd and the even terms of p: p = V + U and q = V - U."""
    b = [math.comb(degree, j) * math.factorial(2 * degree - j) / math.factorial(2 * degree) for j in range(degree + 1)]
    X2 = _times(X, X)
    X4 = _times(X2, X2)
    X6 = _times(X4, X2)
    identity = (identity_like(X[0]), *(jnp.zeros_like(E) for E in X[1:]))
    powers = (identity, X2, X4, X6)

    def polynomial(c):
        """sum_j c_j X^(2 j): the terms up to X^6, and X^6 times the others."""
        low = _combination(c[:4], powers)
        return _plus(low, _times(X6, _combination(c[4:], powers[1:]))) if len(c) > 4 else low

    U, V = _times(X, polynomial(b[1::2])), polynomial(b[0::2])
    P, Q = _plus(V, U), tuple(v - u for v, u in zip(V, U, strict=True))
    factors, _ = factorise(Q[0])
    r = solve_factorised(factors, P[0])
    return (r, *(solve_factorised(factors, F - product(G, r)) for F, G in zip(P[1:], Q[1:], strict=True)))


def _times(X: Blocks, Y: Blocks) -> Blocks:
    if len(X) == 1:
        return (product(X[0], Y[0]),)
    (A, E), (B, F) = X, Y
    return product(A, B), product(A, F) + product(E, B)


def _plus(X: Blocks, Y: Blocks) -> Blocks:
    return tuple(x + y for x, y in zip(X, Y, strict=True))


def _combination(c: Sequence[float], powers: Sequence[Blocks]) -> Blocks:
    return tuple(
        sum(c_j * v for c_j, v in zip(c[1:], vs[1:], strict=True)) + c[0] * vs[0] for vs in zip(*powers, strict=True)
    )


def reference(params: tuple[()], A: Array, max_squarings: int = 16) -> Array:
    return jax.scipy.linalg.expm(widen(A), max_squarings=max_squarings).astype(A.dtype)


RULE = Rule(
    "matrix_exponential",
    matrix_exponential,
    reference,
    cases=(
        Case("batch", Real("B n n", -1.0, 1.0), fixed=SMALL_BATCH, timed={"B": 16, "n": 48}),
        Case("two batch axes", Real("B T n n"), fixed=SMALL_BATCH | {"T": 3, "n": 5}),
    ),
    cite="Al-Mohy and Higham, 'Computing the Frechet derivative of the matrix exponential' (2009), SIAM J. Matrix "
    "Anal. Appl. 30; approximants: Higham, 'The scaling and squaring method for the matrix exponential revisited' "
    "(2005), SIAM J. Matrix Anal. Appl. 26",
    covers=("expm", "matrix_exp"),
)
