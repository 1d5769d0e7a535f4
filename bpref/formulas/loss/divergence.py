"""How far one distribution is from another: each term at least 0, and what is left where both are nearly certain."""

import jax.numpy as jnp
from jax import Array, lax

from bpref.formulas.log_space import balanced


def softmax_and_logarithm(a: Array, temperature: float = 1.0) -> tuple[Array, Array]:
    """The softmax and its logarithm."""
    d = (a - lax.stop_gradient(jnp.max(a, -1, keepdims=True))) / temperature
    e = jnp.exp(d)
    S = jnp.sum(e, -1, keepdims=True)
    return e / S, d - jnp.log(S)


def where_any(p: Array, L: Array) -> Array:
    """L where it weighs anything, else 0."""
    return jnp.where(p == 0, 0, L)


def relative_entropy(p: Array, q: Array, x: Array) -> Array:
    """The sum of p x - p + q, x = log p - log q."""
    size = jnp.abs(x)
    u = jnp.expm1(-size)
    terms = jnp.where(x < 0, -q * (size * (1 + u) + u), p * (size + u))
    return jnp.maximum(jnp.sum(jnp.where(p == 0, q, terms), -1), 0)


def difference(p: Array, q: Array) -> Array:
    """p - q of two distributions, also of a class that both are all but certain of."""
    return balanced(p - q, (p > 0.5) & (q > 0.5))
