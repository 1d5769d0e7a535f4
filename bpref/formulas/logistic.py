"""The logistic function s(x) = 1 / (1 + exp(-x)) on both sides, and its logarithm, all from one exponential.

With q = exp(-|x|), which cannot overflow, each has full relative precision in both tails:

    s(|x|) = 1 / (1 + q)      s(-|x|) = q / (1 + q)      log(1 + exp(x)) = max(x, 0) + log1p(q)

The choice between x and -x is one and the same everywhere. So XLA makes the exponential once in a program that asks for
several of these, which it does not of `jax.nn.sigmoid(x)`, `jax.nn.sigmoid(-x)` and `jax.nn.softplus(x)`; and JAX
differentiates each as often as one likes, also at x = 0, where |x| or max(x, 0) by themselves have a kink.
"""

import jax.numpy as jnp
from jax import Array


def falling(x: Array) -> Array:
    """q = exp(-|x|)."""
    return jnp.exp(jnp.where(x >= 0, -x, x))


def log1p_exp(x: Array) -> Array:
    """log(1 + exp(x)), the softplus: -log s(-x)."""
    return jnp.where(x >= 0, x, 0) + jnp.log1p(falling(x))


def logistic(x: Array) -> Array:
    """s(x)."""
    q = falling(x)
    return jnp.where(x >= 0, 1, q) / (1 + q)


def logistic_pair(x: Array) -> tuple[Array, Array]:
    """s(x) and s(-x)."""
    q = falling(x)
    large = 1 / (1 + q)
    small = q * large
    return jnp.where(x >= 0, large, small), jnp.where(x >= 0, small, large)


def binary_cross_entropy(x: Array, t: Array) -> Array:
    """-t log s(x) - (1 - t) log s(-x), of terms that are positive for t in [0, 1], so that nothing cancels.

    The plain max(x, 0) - x t does where x is large and t near 1.
    """
    return x * jnp.where(x >= 0, 1 - t, -t) + jnp.log1p(falling(x))
