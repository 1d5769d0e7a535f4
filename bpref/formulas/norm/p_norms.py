"""The p-norm over some axes, for any p, and its slope; for what it is, and what is taken where it has none, see
`vector_norm`.

With m = max |x| (min for p < 0):  y = m (sum_i (|x_i| / m)^p)^(1/p),  s_i = sign(x_i) (|x_i| / y)^(p-1).
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import is_number, plain


def require_p(who: str, p: float) -> float:
    """A number, or an infinity; raises `ValueError`."""
    if not is_number(p) or math.isnan(p):
        raise ValueError(f"{who}: p is {p!r}, expected a number, math.inf or -math.inf")
    return plain(p)


def p_length(x: Array, p: float, axes: tuple[int, ...]) -> Array:
    """y, the axes kept with size 1; x is in at least float32."""
    if p == 1:
        return jnp.sum(jnp.abs(x), axes, keepdims=True)
    if p == 2:
        squares = jnp.sum(jnp.square(x), axes, keepdims=True)
        return jnp.where(squares == 0, 0, jnp.sqrt(or_one(squares)))
    if p == 0:
        return jnp.sum(x != 0, axes, keepdims=True, dtype=x.dtype)
    a = jnp.abs(x)
    m = jnp.max(a, axes, keepdims=True, initial=0) if p > 0 else jnp.min(a, axes, keepdims=True)
    if math.isinf(p):
        return m
    m = lax.stop_gradient(m)
    shares = _power((a if p >= 1 else or_one(a)) / or_one(m), p)
    powers = jnp.sum(shares if p >= 1 else jnp.where(x == 0, 0, shares), axes, keepdims=True)
    return m * _power(or_one(powers), 1 / p)


def p_slope(x: Array, y: Array, p: float, axes: tuple[int, ...]) -> Array:
    """s, of x's shape; below 1 it is right only where y is not 0."""
    if p == 0:
        return jnp.zeros_like(x)
    if p == 1:
        return jnp.sign(x)
    if math.isinf(p):
        attains = jnp.where(jnp.abs(x) == y, jnp.sign(x), 0)
        return attains / or_one(jnp.sum(jnp.abs(attains), axes, keepdims=True))
    sizes = jnp.abs(x) if p >= 1 else or_one(jnp.abs(x))
    return jnp.sign(x) * _power(sizes / or_one(y), p - 1)


def or_one(v: Array) -> Array:
    """1 in place of 0, to divide by."""
    return jnp.where(v == 0, 1, v)


def _power(v: Array, exponent: float) -> Array:
    whole = float(exponent).is_integer()
    return lax.integer_pow(v, int(exponent)) if whole else lax.pow(v, jnp.full_like(v, exponent))
