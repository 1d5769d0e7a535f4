"""batch_norm: each feature brought to mean 0 and variance 1 over the batch, then scaled and shifted.

Forward, with n over all axes but the last (examples, and positions in an image), N of them, and k a feature:

    mu_k = mean_n x_nk      var_k = mean_n (x_nk - mu_k)^2      r_k = 1 / sqrt(var_k + eps)       (d,)
    xhat_nk = (x_nk - mu_k) r_k                                                                   (..., d)
    y_nk = gamma_k xhat_nk + beta_k                                                               (..., d)

In inference mu and var are not the batch's but the running ones, constants that training has gathered.

Differential: delta y = gamma delta xhat + xhat delta gamma + delta beta; and, since the deviations sum to 0,

    training:     delta xhat = r (delta x - mean(delta x) - xhat mean(xhat delta x))      means over n
    inference:    delta xhat = r delta x

The factor of each perturbation, with dbeta and dgamma put in where the sums over n stand (gamma is the same for all
n, so mean_n gamma dy = gamma dbeta / N):

    dgamma_k = sum_n dy_nk xhat_nk                                        (d,)
    dbeta_k  = sum_n dy_nk                                                (d,)
    dx_nk    = gamma_k r_k (dy_nk - dbeta_k / N - xhat_nk dgamma_k / N)   (..., d)        training
    dx_nk    = gamma_k r_k dy_nk                                          (..., d)        inference

The running statistics are read, not trained: their cotangent is None.

Cached: x, and in training mu and var, two numbers for each feature, which `update_running_statistics` needs too.
xhat is one subtraction and one product away.

Numerical care: the variance in two passes; dx does not suppose that mean(xhat^2) = 1, and holds for features that are
nearly constant in the batch, where eps is all that r is made of. Half precision is widened to float32. A batch of
one has xhat = 0 and passes no gradient to x.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Inexact

from bpref.checks.hyperparameters import require_flags, require_positive, require_share
from bpref.dtypes import cast, require_type, wide_dtype, widen
from bpref.formulas.norm.standardize import moments, on_last_axes, scale_and_shift
from bpref.layer import Held, Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


class BatchNormParams(NamedTuple):
    scale: Float[Array, " d"]
    shift: Float[Array, " d"]
    mean: Inexact[Array, " d"]
    var: Inexact[Array, " d"]


class BatchNormCache(NamedTuple):
    x: Float[Array, "... d"]
    mean: Float[Array, " d"] | None
    var: Float[Array, " d"] | None


def batch_norm(
    training: bool = True, eps: float = 1e-5, momentum: float = 0.9
) -> Layer[BatchNormParams, Array, Reals, BatchNormCache]:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and variance over all axes but the last.

    Args:
      training: whether mean and variance are the batch's; otherwise they are the running ones of the parameters.
      eps: what is added to the variance, in units of x squared.
      momentum: of a stateful batch_norm, the share of the running statistics that remains, from 0 to 1.

    Returns:
      A layer with params `BatchNormParams(scale: (d,), shift: (d,), mean: (d,), var: (d,))`, x `(..., d)` and y
      `(..., d)`. Mean and var, 0 and 1 at first, are the running statistics, in float32 at least; their cotangent is
      None, and `update_running_statistics` gives their next values. Both modes have the same parameters.

    Raises:
      ValueError: eps is not positive; x has no features, or another number of them than the parameters; in training
        the batch is empty, or x has no axis but the features'.
      TypeError: x is not floating-point, or not of the dtype of scale and shift.
    """
    who = "batch_norm"
    require_flags(who, training=training)
    eps = require_positive(who, "eps", eps)
    momentum = require_share(who, "momentum", momentum)

    def init(key, x):
        d, wide = x.shape[-1], wide_dtype(x.dtype)
        return BatchNormParams(jnp.ones(d, x.dtype), jnp.zeros(d, x.dtype), jnp.zeros(d, wide), jnp.ones(d, wide))

    def statistics(params, x):
        """Mean and variance by which to normalise, as x's rank."""
        if training:
            return moments(widen(x), tuple(range(x.ndim - 1)))
        wide = widen(x)
        return tuple(on_last_axes(lax.stop_gradient(v), wide) for v in (params.mean, params.var))

    def forward(params, x: Float[Array, "... d>0"]):
        if training and (x.ndim == 1 or x.size == 0):
            raise ValueError(f"{who}: x has shape {x.shape}, expected (..., d) with at least one example in training")
        mean, var = statistics(params, x)
        xhat = (widen(x) - mean) * lax.rsqrt(var + eps)
        y = cast(scale_and_shift(xhat, params.scale, params.shift), x.dtype)
        kept = (mean.reshape(-1), var.reshape(-1)) if training else (None, None)
        return y, BatchNormCache(x, *kept)

    def backward(params, cache, dy):
        x, batch = cache.x, tuple(range(dy.ndim - 1))
        dy = widen(dy)
        if training:
            mean, var = (on_last_axes(v, dy) for v in (cache.mean, cache.var))
        else:
            mean, var = statistics(params, x)
        rstd = lax.rsqrt(var + eps)
        xhat = (widen(x) - mean) * rstd
        dgamma = jnp.sum(dy * xhat, batch, keepdims=True)
        dbeta = jnp.sum(dy, batch, keepdims=True)
        if training:
            N = x.size // x.shape[-1]
            dy = dy - dbeta / N - xhat * (dgamma / N)
        dx = cast(on_last_axes(params.scale, dy) * rstd * dy, x.dtype)
        dscale, dshift = (cast(v.reshape(-1), p.dtype) for v, p in ((dgamma, params.scale), (dbeta, params.shift)))
        return BatchNormParams(dscale, dshift, None, None), dx  # type: ignore[arg-type]

    def after(held, params, cache):
        moved = update_running_statistics(params, cache, momentum)
        return {"mean": moved.mean, "var": moved.var}

    if not training:
        return Layer(init, forward, backward, who, held=Held(("mean", "var")))
    evaluating = batch_norm(False, eps)
    held = Held(("mean", "var"), after=after)
    return Layer(init, forward, backward, who, held=held, evaluating=evaluating, couples="the mean and variance")


def update_running_statistics(params: BatchNormParams, cache: BatchNormCache, momentum: float = 0.9) -> BatchNormParams:
    """The parameters of `batch_norm` with the batch in `cache` taken into the running mean and variance.

    Each becomes `momentum * running + (1 - momentum) * batch`, with the batch's unbiased variance, N / (N - 1) times
    the one it was normalised by (arXiv:1502.03167, algorithm 2); of a batch of one, whose variance is 0, as it is.

    Args:
      params: the layer's parameters; scale and shift are returned as they are.
      cache: what its forward in training has kept.
      momentum: the share of the running statistics that remains, from 0 to 1.

    Example:
      >>> layer = bpref.batch_norm()
      >>> p = layer.init(jax.random.key(0), X)
      >>> bpref.update_running_statistics(p, layer.forward(p, X)[1]).mean.shape
      (2,)

    Raises:
      TypeError: params or the cache are not those of `batch_norm`.
      ValueError: momentum is out of its range; the cache is that of a forward in inference.
    """
    require_type("update_running_statistics", "params", params, BatchNormParams)
    require_type("update_running_statistics", "cache", cache, BatchNormCache)
    momentum = require_share("update_running_statistics", "momentum", momentum)
    if cache.mean is None or cache.var is None:
        raise ValueError("update_running_statistics: the cache holds no statistics, expected that of training=True")
    N = cache.x.size // cache.x.shape[-1]
    unbiased = cache.var * (N / max(N - 1, 1))
    mean, var = (
        momentum * running + (1 - momentum) * cast(new, running.dtype)
        for running, new in ((params.mean, cache.mean), (params.var, unbiased))
    )
    return params._replace(mean=mean, var=var)


def reference(
    params: BatchNormParams, x: Array, training: bool = True, eps: float = 1e-5, momentum: float = 0.9
) -> Array:
    def over_the_batch(f):
        return f(x, tuple(range(x.ndim - 1)), keepdims=True)

    def running(v):
        return jnp.broadcast_to(lax.stop_gradient(v), x.shape)

    mean, var = (
        (over_the_batch(jnp.mean), over_the_batch(jnp.var)) if training else map(running, (params.mean, params.var))
    )
    xhat = (x - mean) / jnp.sqrt(var + eps)
    return xhat * jnp.broadcast_to(params.scale, x.shape) + jnp.broadcast_to(params.shift, x.shape)


_EPS = Interval(1e-6, 0.1, 1e-5)
_PARAMS = BatchNormParams(*[Real("d")] * 3, Real("d", 0.0, 4.0))  # type: ignore[arg-type]

RULE = Rule(
    "batch_norm",
    batch_norm,
    reference,
    cases=(
        Case("training", Real("N d"), {"eps": _EPS}, ("N", "d"), _PARAMS),
        Case(
            "training, images",
            Real("N H W d", 0.0, 4.0),
            {"eps": _EPS},
            ("N", "H", "W", "d"),
            _PARAMS,
            timed={"N": 8, "H": 32, "W": 32, "d": 96},
        ),
        Case("inference", Real("N d"), {"training": False, "eps": _EPS}, ("d",), _PARAMS),
    ),
    cite="arXiv:1502.03167, algorithms 1 and 2",
)
