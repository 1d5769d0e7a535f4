"""The norm of a row and the way back, RMS or layer norm, made again from x and two numbers a row.

Forward, with the means over the d features of the last axis, mu = 0 and beta = 0 for the RMS norm:

    xhat = (x - mu) r,   r = 1 / sqrt(mean((x - mu)^2) + eps)             n = gamma xhat + beta

and, with g = gamma dn, as `rms_norm` and `layer_norm` derive it,

    dx = r (g - mean g - xhat mean(g xhat))                               without mean g for the RMS norm

It stands in front of the products of a block (pre-norm), or behind the sum that they are added to (post-norm): then
there is none in front, its params and statistics are None, and n is x. And it stands alone where a stream is added to
or a condition modulates.
"""

from typing import NamedTuple, overload

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.norm.standardize import mean_over, moments, pull_scale_and_shift, pull_standardized, scale_and_shift

NORMS = ("layer", "rms")


class Statistics(NamedTuple):
    """What is kept of a row beside the row itself; there is no mean for the RMS norm."""

    mean: Float[Array, "... 1"] | None
    rstd: Float[Array, "... 1"]


class NormParams(NamedTuple):
    scale: Float[Array, " d"]
    shift: Float[Array, " d"] | None


def require_norm(who: str, norm: str) -> None:
    """Raise `ValueError` unless there is such a norm."""
    if norm not in NORMS:
        raise ValueError(f"{who}: norm is {norm!r}, expected 'layer' or 'rms'")


def init_norm(norm: str, d: int, dtype: DTypeLike, zero_centred: bool = False) -> NormParams:
    """A scale that changes nothing, and zeros where there is a shift."""
    scale = jnp.zeros(d, dtype) if zero_centred else jnp.ones(d, dtype)
    return NormParams(scale, jnp.zeros(d, dtype) if norm == "layer" else None)


@overload
def statistics(norm: str, x: Array, eps: float) -> Statistics: ...
@overload
def statistics(norm: None, x: Array, eps: float) -> None: ...
def statistics(norm: str | None, x: Array, eps: float) -> Statistics | None:
    """The mean and the reciprocal standard deviation of each row, in at least float32."""
    if norm is None:
        return None
    last = (x.ndim - 1,)
    if norm == "layer":
        mean, var = moments(widen(x), last)
        return Statistics(mean, lax.rsqrt(var + eps))
    return Statistics(None, lax.rsqrt(mean_over(jnp.square(widen(x)), last) + eps))


def standardized(x: Array, of: Statistics) -> Array:
    """xhat, in at least float32."""
    return (widen(x) if of.mean is None else widen(x) - of.mean) * of.rstd


def pull_row(g: Array, xhat: Array, of: Statistics) -> Array:
    """dx, from the cotangent g of xhat."""
    last = (xhat.ndim - 1,)
    if of.mean is None:
        return of.rstd * (g - xhat * mean_over(g * xhat, last))
    return pull_standardized(g, xhat, of.rstd, last)


def normalize(params: NormParams | None, x: Array, of: Statistics | None, zero_centred: bool = False) -> Array:
    """n, in x's dtype; with 1 + gamma for gamma where that is `zero_centred`."""
    if params is None or of is None:
        return x
    return cast(scale_and_shift(standardized(x, of), *params, zero_centred), x.dtype)


@overload
def pull_normalize(
    params: NormParams, x: Array, of: Statistics, dn: Array, zero_centred: bool = False
) -> tuple[NormParams, Array]: ...
@overload
def pull_normalize(
    params: NormParams | None, x: Array, of: Statistics | None, dn: Array, zero_centred: bool = False
) -> tuple[NormParams | None, Array]: ...
def pull_normalize(
    params: NormParams | None, x: Array, of: Statistics | None, dn: Array, zero_centred: bool = False
) -> tuple[NormParams | None, Array]:
    """The cotangents of gamma and beta, and of x, the latter in at least float32."""
    if params is None or of is None:
        return None, dn
    xhat = standardized(x, of)
    g, dscale, dshift = pull_scale_and_shift(widen(dn), xhat, *params, zero_centred)
    assert dscale is not None
    return NormParams(dscale, dshift), pull_row(g, xhat, of)
