"""weight_standardization: a linear layer whose weights are brought to mean 0 and variance 1 for each output.

Forward, with A of shape (..., d), W of shape (m, d), k an output, j an input, n an example; means are over j:

    mu_k = mean_j W_kj      var_k = mean_j (W_kj - mu_k)^2      r_k = 1 / sqrt(var_k + eps)       (m, 1)
    w_kj = (W_kj - mu_k) r_k                                                                      (m, d)
    V_kj = gamma_k w_kj                                                                           (m, d)
    Z_nk = sum_j A_nj V_kj + b_k                                                                  (..., m)

Without gamma, V = w. With gamma_k = 1 / sqrt(d) at first, Z has the variance that A has ('scaled' standardisation).

Differential: that of a linear layer in A, V and b, then that of layer norm, a row of W for an example:

    delta Z_nk = sum_j (delta A_nj V_kj + A_nj delta V_kj) + delta b_k
    delta V_kj = gamma_k delta w_kj + w_kj delta gamma_k
    delta w_kj = r_k (delta W_kj - mean_i delta W_ki - w_kj mean_i w_ki delta W_ki)

The factor of each perturbation, with G = dZ^T A and g = gamma G:

    dA_nj    = sum_k dZ_nk V_kj            dA = dZ V                      (..., d)
    db_k     = sum_n dZ_nk                                                (m,)
    dgamma_k = sum_j G_kj w_kj                                            (m,)
    dW_kj    = r_k (g_kj - mean_i g_ki - w_kj mean_i g_ki w_ki)           (m, d)

Every row of dW sums to 0: the mean of a row of W is never learned.

Cached: A alone. w is made again from W, a parameter: that is no more work for each weight than one example makes.

Numerical care: standardising is done in float32 at least, and V rounded to A's dtype for the products; these accumulate
in float32, and G is not rounded before its mean is subtracted. d = 1 gives w = 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.caches import RowsCache
from bpref.formulas.norm.standardize import moments, on_last_axes, pull_standardized
from bpref.layer import Layer, Reals
from bpref.naive.dense import naive_affine
from bpref.rule import Case, Interval, Real, Rule, Size, called_as

INPUTS = (1,)
"""The axis of W over which a weight is standardised."""


class WeightStandardizationParams(NamedTuple):
    W: Float[Array, "m d"]
    scale: Float[Array, " m"] | None
    b: Float[Array, " m"] | None


def weight_standardization(
    features: int, eps: float = 1e-6, scale: bool = False, bias: bool = True
) -> Layer[WeightStandardizationParams, Array, Reals, RowsCache]:
    """Z = A V^T + b, where each row of V is gamma (W - mean) / sqrt(var + eps), mean and variance over that row of W.

    Args:
      features: the number of outputs m.
      eps: what is added to the variance, in units of W squared.
      scale: whether there is a gamma; without it, it is 1.
      bias: whether there is a b.

    Returns:
      A layer with params `WeightStandardizationParams(W: (m, d), scale: (m,) or None, b: (m,) or None)`, x `(..., d)`
      and y `(..., m)`. W is drawn uniformly with variance 1/d (LeCun), gamma is 1 / sqrt(d), b is zero.

    Raises:
      ValueError: `features` is not a positive integer; eps is not positive; x does not have d features.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "weight_standardization"
    require_flags(who, scale=scale, bias=bias)
    features = require_size(who, "features", features)
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        d = x.shape[-1]
        limit = (3 / d) ** 0.5
        return WeightStandardizationParams(
            jax.random.uniform(key, (features, d), x.dtype, -limit, limit),
            jnp.full(features, d**-0.5, x.dtype) if scale else None,
            jnp.zeros(features, x.dtype) if bias else None,
        )

    def standardized(W):
        """w and r, in at least float32."""
        wide = widen(W)
        mean, var = moments(wide, INPUTS)
        rstd = lax.rsqrt(var + eps)
        return (wide - mean) * rstd, rstd

    def scaled(w, gamma):
        return w if gamma is None else w * lax.expand_dims(widen(gamma), INPUTS)

    def forward(params, A: Float[Array, "... d>0"]):
        W, gamma, b = params
        V = cast(scaled(standardized(W)[0], gamma), A.dtype)
        Z = lax.dot_general(A, V, (((A.ndim - 1,), (1,)), ((), ())), preferred_element_type=wide_dtype(A.dtype))
        if b is not None:
            Z = Z + on_last_axes(b, Z)
        return cast(Z, A.dtype), RowsCache(A)

    def backward(params, cache, dZ):
        W, gamma, b = params
        A = cache.A
        examples = tuple(range(A.ndim - 1))
        wide = wide_dtype(A.dtype)
        w, rstd = standardized(W)
        V = cast(scaled(w, gamma), A.dtype)
        dV = lax.dot_general(dZ, A, ((examples, examples), ((), ())), preferred_element_type=wide)
        dA = lax.dot_general(dZ, V, (((dZ.ndim - 1,), (0,)), ((), ())), preferred_element_type=wide)
        dgamma = None if gamma is None else cast(jnp.sum(dV * w, INPUTS), gamma.dtype)
        dW = pull_standardized(scaled(dV, gamma), w, rstd, INPUTS)
        db = None if b is None else cast(jnp.sum(widen(dZ), examples), b.dtype)
        return WeightStandardizationParams(cast(dW, W.dtype), dgamma, db), cast(dA, A.dtype)

    return Layer(init, forward, backward, who)


@called_as(weight_standardization)
def reference(params: WeightStandardizationParams, x: Array, eps, **_) -> Array:
    W, gamma, b = params
    V = jax.nn.standardize(W, axis=1, epsilon=eps)
    if gamma is not None:
        V = jnp.diag(gamma) @ V
    return naive_affine(V, b, x)


_HYPER = {"features": Size("m"), "eps": Interval(1e-6, 0.1, 1e-6)}
_NOT_EMPTY = ("d", "m")

RULE = Rule(
    "weight_standardization",
    weight_standardization,
    reference,
    cases=(
        Case("bias", Real("N d", -1.0, 1.0), _HYPER, _NOT_EMPTY, timed={"N": 256, "d": 512, "m": 256}),
        Case("sequence, scale", Real("B T d"), _HYPER | {"scale": True, "bias": False}, _NOT_EMPTY),
    ),
    cite="arXiv:1903.10520, equations 5 to 7; with scale: arXiv:2101.08692, equation 1",
    covers=("scaled_weight_standardization",),
)
