"""bilinear: z_k = x^T W_k y + b_k, a matrix W_k for each output k, for pairs of examples (x, y).

Forward, with x of shape (..., p), y of shape (..., q), W of shape (m, p, q), b of shape (m,), and n running over all
leading axes (the pairs). T is x seen through all matrices:

    T_nkj = sum_i x_ni W_kij                                              (..., m, q)
    z_nk  = sum_j T_nkj y_nj + b_k                                        (..., m)

Differential, with one term for each factor:

    dJ = sum_nk dz_nk (sum_ij (delta x_ni) W_kij y_nj + sum_ij x_ni (delta W_kij) y_nj
                       + sum_j T_nkj (delta y_nj) + delta b_k)

The factor of each perturbation; D is what reaches T:

    D_nkj  = dz_nk y_nj                                                   (..., m, q)
    dW_kij = sum_n x_ni D_nkj                                             (m, p, q)
    dx_ni  = sum_kj D_nkj W_kij                                           (..., p)
    dy_nj  = sum_k dz_nk T_nkj                                            (..., q)
    db_k   = sum_n dz_nk                                                  (m,)

Three products of N m p q multiplications, each one matrix product with two axes as one: T, dW and dx.

Cached: x and y. T, which autodiff keeps, is m q numbers for each pair, often many times x and y; it is made again,
a fourth product. Under one jit XLA merges it with the forward's.

Numerical care: products of half-precision matrices accumulate in float32; T and D stay in float32 on their way. A long
sum over k or j is taken in blocks: in sequence 16,384 terms were two to six times less precise than autodiff's.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, product
from bpref.formulas.long_sums import in_blocks
from bpref.layer import Layer, Reals, each_position
from bpref.rule import Case, Real, Rule, Size

LONG = 4096
"""A longer sum is taken in blocks: its error grows with the number of its terms."""


class BilinearParams(NamedTuple):
    W: Float[Array, "m p q"]
    b: Float[Array, " m"] | None


class Pair(NamedTuple):
    x: Float[Array, "*n p>0"]
    y: Float[Array, "*n q>0"]


def bilinear(features: int, bias: bool = True) -> Layer[BilinearParams, tuple[Array, Array], Reals, Pair]:
    """z_k = x^T W_k y + b_k for each pair (x, y).

    Args:
      features: the number of outputs m.
      bias: whether there is a b.

    Returns:
      A layer with params `BilinearParams(W: (m, p, q), b: (m,) or None)`, x the pair `(x: (..., p), y: (..., q))`
      with the same leading axes, and y `(..., m)`. W is drawn uniformly with variance 1/(p q), b is zero.

    Raises:
      ValueError: `features` is not a positive integer; the leading axes differ; the last axes do not fit W.
      TypeError: x is no pair; one of the two is not floating-point, or not of W's dtype.
    """
    who = "bilinear"
    require_flags(who, bias=bias)
    features = require_size(who, "features", features)

    def init(key, x):
        x, y = x
        p, q = x.shape[-1], y.shape[-1]
        W = lecun_uniform(key, (features, p, q), p * q, x.dtype)
        return BilinearParams(W, jnp.zeros((features,), x.dtype) if bias else None)

    def forward(params, pair: Pair):
        W, b = params
        x, y = pair
        z = _per_pair(_T(x, W), widen(y), contract=(-1, -1))
        return cast(plus(z, b), x.dtype), pair

    def backward(params, cache, dz):
        W, b = params
        x, y = cache
        pairs = tuple(range(x.ndim - 1))
        D = widen(dz)[..., :, None] * widen(y)[..., None, :]
        dW = jnp.moveaxis(product(widen(x), D, contract=(pairs, pairs)), 0, 1)
        dx = _dx(D, widen(W))
        dy = _per_pair(_T(x, W), widen(dz), contract=(-2, -1))
        return BilinearParams(cast(dW, W.dtype), bias_cotangent(dz, b)), (cast(dx, x.dtype), cast(dy, y.dtype))

    return Layer(init, forward, backward, who, decoding=each_position)


def _T(x: Array, W: Array) -> Array:
    return product(x, W, contract=((x.ndim - 1,), (1,)))


def _per_pair(matrices: Array, vectors: Array, contract: tuple[int, int]) -> Array:
    """For each pair, its matrix and its vector contracted over one axis of each, counted from the last."""
    n = vectors.ndim - 1
    axis, pairs = matrices.ndim + contract[0], tuple(range(n))
    if vectors.shape[-1] <= LONG:
        return lax.dot_general(matrices, vectors, (((axis,), (n,)), (pairs, pairs)))
    matrices, vectors = in_blocks(matrices, axis, 0.0), in_blocks(vectors, n, 0.0)
    return jnp.sum(lax.dot_general(matrices, vectors, (((axis + 1,), (n + 1,)), ((*pairs, axis), (*pairs, n)))), n)


def _dx(D: Array, W: Array) -> Array:
    """The sum over k and j of D_nkj W_kij."""
    k, j = D.ndim - 2, D.ndim - 1
    if max(D.shape[k], D.shape[j]) <= LONG:
        return product(D, W, contract=((k, j), (0, 2)))
    if D.shape[k] >= D.shape[j]:
        D, W, axes, blocks = in_blocks(D, k, 0.0), in_blocks(W, 0, 0.0), ((k + 1, j + 1), (1, 3)), ((k,), (0,))
    else:
        D, W, axes, blocks = in_blocks(D, j, 0.0), in_blocks(W, 2, 0.0), ((k, j + 1), (0, 3)), ((j,), (2,))
    return jnp.sum(lax.dot_general(D, W, (axes, blocks)), 0)


def reference(params: BilinearParams, x: tuple[Array, Array], features: int, bias: bool = True) -> Array:
    z = jnp.einsum("...i,kij,...j->...k", x[0], params.W, x[1])
    return z if params.b is None else z + jnp.broadcast_to(params.b, z.shape)


_NOT_EMPTY = ("p", "q", "m")

RULE = Rule(
    "bilinear",
    bilinear,
    reference,
    cases=(
        Case(
            "bias",
            (Real("N p"), Real("N q")),
            {"features": Size("m")},
            _NOT_EMPTY,
            timed={"N": 256, "p": 64, "q": 64, "m": 32},
        ),
        Case("sequence, no bias", (Real("B T p"), Real("B T q")), {"features": Size("m"), "bias": False}, _NOT_EMPTY),
        Case("one pair", (Real("p"), Real("q")), {"features": Size("m")}, _NOT_EMPTY),
    ),
    cite="arXiv:1611.01734, equation 2; Socher et al., 'Reasoning with neural tensor networks' (2013), equation 1",
    covers=("biaffine", "neural tensor layer"),
)
