"""linear: Z = A W^T + b, examples as rows.

Forward, with A of shape (..., d), W of shape (m, d), b of shape (m,), and the leading axes the examples:

    Z_nk = sum_j A_nj W_kj + b_k                                          Z: (..., m)

Differential (n runs over all examples, k over outputs, j over inputs):

    dJ = sum_nk dZ_nk (sum_j (delta A_nj) W_kj + sum_j A_nj (delta W_kj) + delta b_k)

Collect the factor of each perturbation to read off the adjoint, term by term:

    dW_kj = sum_n dZ_nk A_nj        dW = dZ^T A                           (m, d)
    db_k  = sum_n dZ_nk             db = dZ summed over the examples      (m,)
    dA_nj = sum_k dZ_nk W_kj        dA = dZ W                             (..., d)

No 1/N stands here: the mean over the batch belongs to the loss, and arrives inside dZ.

Cached: A alone, which dW needs. dA needs W, which is a parameter; db needs nothing.

Numerical care: products of half-precision matrices accumulate in float32, and so does the sum of db; b is added
before Z is rounded.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, require_floating, wide_dtype, widen
from bpref.layer import Layer
from bpref.rule import Case, Real, Rule, Size


class LinearParams(NamedTuple):
    W: Float[Array, "m d"]
    b: Float[Array, " m"] | None


class LinearCache(NamedTuple):
    A: Float[Array, "... d"]


def linear(features: int, bias: bool = True, name: str = "") -> Layer:
    """Z = A W^T + b.

    Args:
      features: the number of outputs m.
      bias: whether there is a b.
      name: shown in error messages, as in `linear 'fc2'`.

    Returns:
      A layer with params `LinearParams(W: (m, d), b: (m,) or None)`, x `(..., d)`, y `(..., m)`. W is drawn
      uniformly with variance 1/d (LeCun), b is zero.

    Raises:
      ValueError: `features` is not a positive integer; x does not have d features in its last axis.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = f"linear '{name}'" if name else "linear"
    if not isinstance(features, int) or features < 1:
        raise ValueError(f"{who}: features is {features!r}, expected a positive integer")

    def init(key, x):
        require_floating(who, "x", x)
        if len(x.shape) == 0 or x.shape[-1] == 0:
            raise ValueError(f"{who}: x has shape {x.shape}, expected (..., d) with at least one feature d")
        d = x.shape[-1]
        limit = (3 / d) ** 0.5
        W = jax.random.uniform(key, (features, d), x.dtype, -limit, limit)
        return LinearParams(W, jnp.zeros((features,), x.dtype) if bias else None)

    def forward(params, A):
        W, b = params
        _require_fit(who, W, A)
        Z = _product(A, W, contract=((A.ndim - 1,), (1,)))
        if b is not None:
            Z = lax.add(Z, lax.broadcast_in_dim(cast(b, Z.dtype), Z.shape, (Z.ndim - 1,)))
        return cast(Z, A.dtype), LinearCache(A)

    def backward(params, cache, dZ):
        W, b = params
        A = cache.A
        examples = tuple(range(A.ndim - 1))
        dW = cast(_product(dZ, A, contract=(examples, examples)), W.dtype)
        db = None if b is None else cast(lax.reduce_sum(widen(dZ), examples), b.dtype)
        dA = cast(_product(dZ, W, contract=((dZ.ndim - 1,), (0,))), A.dtype)
        return LinearParams(dW, db), dA

    return Layer(init, forward, backward, who)


def _product(left: Array, right: Array, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """The matrix product over the contracted axes, in at least float32."""
    return lax.dot_general(left, right, (contract, ((), ())), preferred_element_type=wide_dtype(left.dtype))


def _require_fit(who: str, W: Any, A: Any) -> None:
    require_floating(who, "x", A)
    if A.dtype != W.dtype:
        raise TypeError(f"{who}: x has dtype {A.dtype}, W has {W.dtype}; cast one to the other's")
    if A.ndim == 0:
        raise ValueError(f"{who}: x is a scalar, W expects {W.shape[1]} features in its last axis (W: {W.shape})")
    if A.shape[-1] != W.shape[1]:
        raise ValueError(f"{who}: x has {A.shape[-1]} features in its last axis, W expects {W.shape[1]} (W: {W.shape})")


def reference(params: LinearParams, x: Array, features: int, bias: bool = True) -> Array:
    Z = jnp.einsum("...j,kj->...k", x, params.W)
    return Z if params.b is None else Z + jnp.broadcast_to(params.b, Z.shape)


_NOT_EMPTY = ("d", "m")

RULE = Rule(
    "linear",
    linear,
    reference,
    cases=(
        Case("bias", Real("N d"), {"features": Size("m")}, _NOT_EMPTY),
        Case("no bias", Real("N d"), {"features": Size("m"), "bias": False}, _NOT_EMPTY),
        Case("sequence", Real("B T d"), {"features": Size("m")}, _NOT_EMPTY),
        Case("one example", Real("d"), {"features": Size("m")}, _NOT_EMPTY),
    ),
    cite="DataLearner, 'Back-propagation derived by hand' (2019), sections 2 and 3",
)
