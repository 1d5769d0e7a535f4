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

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.layer import Layer, Reals, each_position
from bpref.naive.dense import naive_affine
from bpref.rule import Case, Real, Rule, Size


class LinearParams(NamedTuple):
    W: Float[Array, "m d"]
    b: Float[Array, " m"] | None


class LinearCache(NamedTuple):
    A: Float[Array, "... d"]


def linear(features: int, bias: bool = True, name: str = "") -> Layer[LinearParams, Array, Reals, LinearCache]:
    """Z = A W^T + b.

    Args:
      features: the number of outputs m.
      bias: whether there is a b.
      name: shown in error messages, as in `linear 'fc2'`.

    Returns:
      A layer with params `LinearParams(W: (m, d), b: (m,) or None)`, x `(..., d)`, y `(..., m)`. W is drawn
      uniformly with variance 1/d (LeCun), b is zero.

    Raises:
      ValueError: `features` is not a positive integer; x does not have d features in its last axis;
        W or b has another shape.
      TypeError: x is not floating-point, or not of W's dtype; b is not of W's dtype.
    """
    who = f"linear '{name}'" if name else "linear"
    require_flags(who, bias=bias)
    features = require_size(who, "features", features)

    def init(key, x):
        d = x.shape[-1]
        W = lecun_uniform(key, (features, d), d, x.dtype)
        return LinearParams(W, jnp.zeros((features,), x.dtype) if bias else None)

    def forward(params, A: Float[Array, "... d>0"]):
        W, b = params
        Z = plus(times_transposed(A, W), b)
        return cast(Z, A.dtype), LinearCache(A)

    def backward(params, cache, dZ):
        W, b = params
        dW = cast(transposed_times(dZ, cache.A), W.dtype)
        db = bias_cotangent(dZ, b)
        dA = cast(times(dZ, W), dZ.dtype)
        return LinearParams(dW, db), dA

    return Layer(init, forward, backward, who, decoding=each_position)


def reference(params: LinearParams, x: Array, features: int, bias: bool = True) -> Array:
    return naive_affine(*params, x)


_NOT_EMPTY = ("d", "m")

RULE = Rule(
    "linear",
    linear,
    reference,
    cases=(
        Case("bias", Real("N d"), {"features": Size("m")}, _NOT_EMPTY),
        Case("no bias", Real("N d"), {"features": Size("m"), "bias": False}, _NOT_EMPTY),
        Case(
            "sequence", Real("B T d"), {"features": Size("m")}, _NOT_EMPTY, timed={"B": 8, "T": 64, "d": 256, "m": 256}
        ),
        Case("one example", Real("d"), {"features": Size("m")}, _NOT_EMPTY),
    ),
    cite="DataLearner, 'Back-propagation derived by hand' (2019), sections 2 and 3",
)
