"""spectral_norm_linear: Z = A W'^T + b with W' = W / sigma, sigma = u^T W v the largest singular value of W, nearly.

Forward, with A of shape (..., d), W of shape (m, d), b of shape (m,), the singular vectors u of shape (m,) and v of
shape (d,) as power iteration has them so far, and n running over all leading axes (the examples):

    sigma = sum_kj u_k W_kj v_j                                           ()
    W'_kj = W_kj / sigma                                                  (m, d)
    Z_nk  = sum_j A_nj W'_kj + b_k                                        (..., m)

u and v are parameters that are held constant and not trained: their cotangents are `None`, and to no order does a
derivative reach them, or W through them. For exact singular vectors this is the derivative of the largest singular
value itself (delta sigma = u^T (delta W) v, where it is not a repeated one); it is the gradient of the paper.
`power_iteration` improves them; training calls it on the params once a step.

Differential. The linear layer's is as in `linear`, with dW'_kj = sum_n dZ_nk A_nj; then

    delta W'_kj = (delta W_kj - W'_kj delta sigma) / sigma        delta sigma = sum_kj u_k (delta W_kj) v_j

The factor of each perturbation, with the number c = sum_kj dW'_kj W'_kj:

    dW_kj = (dW'_kj - c u_k v_j) / sigma                                  (m, d)
    db_k  = sum_n dZ_nk                                                   (m,)
    dA_nj = sum_k dZ_nk W'_kj                 dA = dZ W'                  (..., d)

Cached: A alone, as in `linear`. W' and sigma are made again from the parameters.

Numerical care: sigma and c are summed in at least float32, and W' is rounded to W's dtype once, so that the product
with A is one of that dtype. Vectors that are not near the singular ones may make sigma small or negative, and
sigma = 0 (W = 0) makes infinities and NaN: `init` runs the power iteration until they are near.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Inexact

from bpref.checks.hyperparameters import is_traced, require_count, require_flags, require_size
from bpref.dtypes import cast, require_type, wide_dtype, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.formulas.caches import RowsCache
from bpref.layer import Held, Layer, Reals
from bpref.loops import fori_loop
from bpref.naive.dense import naive_affine
from bpref.rule import Case, Real, Rule, Size

STEPS_AT_START = 15


class SpectralNormLinearParams(NamedTuple):
    W: Float[Array, "m d"]
    b: Float[Array, " m"] | None
    u: Inexact[Array, " m"]
    v: Inexact[Array, " d"]


def spectral_norm_linear(features: int, bias: bool = True) -> Layer[SpectralNormLinearParams, Array, Reals, RowsCache]:
    """Z = A (W / sigma)^T + b with sigma = u^T W v, u and v constant.

    Args:
      features: the number of outputs m.
      bias: whether there is a b.

    Returns:
      A layer with params `SpectralNormLinearParams(W: (m, d), b: (m,) or None, u: (m,), v: (d,))`, x `(..., d)` and
      y `(..., m)`. u and v have the cotangent None. W is drawn uniformly with variance 1/d, b is 0, u and v are what
      15 steps of `power_iteration` make of random vectors.

    Raises:
      ValueError: `features` is not a positive integer; u or v does not fit W; x does not have d features in its
        last axis.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "spectral_norm_linear"
    require_flags(who, bias=bias)
    features = require_size(who, "features", features)

    def init(key, x):
        d = x.shape[-1]
        of_W, of_u = jax.random.split(key)
        W = lecun_uniform(of_W, (features, d), d, x.dtype)
        b = jnp.zeros((features,), x.dtype) if bias else None
        u = _unit(jax.random.normal(of_u, (features,), x.dtype))
        return power_iteration(SpectralNormLinearParams(W, b, u, jnp.zeros((d,), x.dtype)), STEPS_AT_START)

    def forward(params, A: Float[Array, "... d>0"]):
        Z = plus(times_transposed(A, _normalised(params)), params.b)
        return cast(Z, A.dtype), RowsCache(A)

    def backward(params, cache, dZ):
        W, b, u, v = params
        dW1 = transposed_times(dZ, cache.A)
        W1 = _normalised(params)
        uv = _constant(u, W)[:, None] * _constant(v, W)[None, :]
        dW = (dW1 - jnp.sum(dW1 * widen(W1)) * uv) / _sigma(params)
        dA = times(dZ, W1)
        dparams = params._replace(W=cast(dW, W.dtype), b=bias_cotangent(dZ, b), u=None, v=None)
        return dparams, cast(dA, dZ.dtype)

    def after(held, params, cache):
        moved = power_iteration(params)
        return {"u": moved.u, "v": moved.v}

    evaluating = Layer(init, forward, backward, who, held=Held(("u", "v")))
    return Layer(init, forward, backward, who, held=Held(("u", "v"), after=after), evaluating=evaluating)


def power_iteration(params: SpectralNormLinearParams, steps: int = 1) -> SpectralNormLinearParams:
    """The params of a `spectral_norm_linear` with u and v nearer to the singular vectors of W's largest value.

    Each step is v = W^T u / ||W^T u||, then u = W v / ||W v||; after one, sigma is positive. It is no part of the
    function that is differentiated: call it once a training step, before the forward.

    Example:
      >>> p = bpref.spectral_norm_linear(3).init(jax.random.key(0), X)
      >>> bpref.power_iteration(p, steps=3).u.shape
      (3,)

    Raises:
      TypeError: params are not those of `spectral_norm_linear`.
      ValueError: `steps` is no integer of at least 0.
    """
    require_type("power_iteration", "params", params, SpectralNormLinearParams)
    if not is_traced(steps):
        steps = require_count("power_iteration", "steps", steps)
    W = lax.stop_gradient(widen(params.W))

    def step(_, vectors):
        v = _unit(vectors[0] @ W)
        return _unit(W @ v), v

    u, v = fori_loop(0, steps, step, (_constant(params.u, params.W), _constant(params.v, params.W)))
    return params._replace(u=cast(u, params.u.dtype), v=cast(v, params.v.dtype))


def _unit(vector: Array) -> Array:
    """The vector over its length; one of no length stays 0."""
    length = jnp.sqrt(jnp.sum(vector * vector))
    return jnp.where(length > 0, vector / length, vector)


def _constant(vector: Array, W: Array) -> Array:
    return lax.stop_gradient(cast(vector, wide_dtype(W.dtype)))


def _sigma(params: SpectralNormLinearParams) -> Array:
    return _constant(params.u, params.W) @ (widen(params.W) @ _constant(params.v, params.W))


def _normalised(params: SpectralNormLinearParams) -> Array:
    """W', rounded to W's dtype once."""
    return cast(widen(params.W) / _sigma(params), params.W.dtype)


def reference(params: SpectralNormLinearParams, x: Array, features: int, bias: bool = True) -> Array:
    u, v = lax.stop_gradient((params.u, params.v))
    W = params.W / jnp.einsum("k,kj,j->", u, params.W, v)
    return naive_affine(W, params.b, x)


_NOT_EMPTY = ("d", "m")
_POSITIVE = Real("m d", 0.125, 4.0)
_PARAMS = SpectralNormLinearParams._make((_POSITIVE, Real("m"), Real("m", 0.125, 1.0), Real("d", 0.125, 1.0)))

RULE = Rule(
    "spectral_norm_linear",
    spectral_norm_linear,
    reference,
    cases=(
        Case("bias", Real("N d"), {"features": Size("m")}, _NOT_EMPTY, _PARAMS),
        Case(
            "sequence, no bias",
            Real("B T d"),
            {"features": Size("m"), "bias": False},
            _NOT_EMPTY,
            _PARAMS._replace(b=None),
            timed={"B": 8, "T": 64, "d": 256, "m": 256},
        ),
    ),
    cite="arXiv:1802.05957, equations 8 to 12",
    covers=("spectral normalization",),
)
