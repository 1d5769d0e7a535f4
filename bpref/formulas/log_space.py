"""Sums of probabilities over paths, in log space and without infinities, so that they can be differentiated."""

import jax.numpy as jnp
from jax import Array, lax

LOG_ZERO = -1e30
"""The logarithm of 0: finite, so that no difference of two is NaN; what is added to it is lost in rounding."""


def log_add(a: Array, b: Array) -> Array:
    """log(exp(a) + exp(b)); with values kept near 0, `log1p` would be no more precise than `log`, and is slower."""
    return jnp.maximum(a, b) + jnp.log(1 + jnp.exp(-jnp.abs(a - b)))


def log_sum(v: Array, axis: int) -> Array:
    """log(sum(exp(v))) along an axis."""
    m = jnp.max(v, axis, keepdims=True, initial=LOG_ZERO)
    return jnp.squeeze(m, axis) + jnp.log(jnp.sum(jnp.exp(v - m), axis))


def log_normaliser(z: Array) -> tuple[Array, Array]:
    """m and log S, with 1 in the last axis: of a softmax, log p is (z - m) - log S.

    z - (m + log S) has the rounding of m, which may be an offset that all classes share.
    """
    m = lax.stop_gradient(jnp.max(z, -1, keepdims=True))
    return m, jnp.log(jnp.sum(jnp.exp(z - m), -1, keepdims=True))


def nats(log_P: Array) -> Array:
    """-log P, at least 0, which rounding alone would take it below."""
    return jnp.where(log_P > 0, 0, -log_P)


def is_possible(log_probability: Array) -> Array:
    """Whether a sum over paths has a term that is not 0; True of a NaN, which must not pass for what has no path."""
    return ~(log_probability <= LOG_ZERO / 2)


def known(log_probability: Array) -> Array:
    """Logarithms of which none is -inf or below `LOG_ZERO`; a NaN stays."""
    return jnp.where(log_probability < LOG_ZERO, LOG_ZERO, log_probability)


def balanced(slope: Array, is_likely: Array, axis: int = -1) -> Array:
    """`slope`, which sums to 0 over the classes along an axis, with that of a class beyond 1/2 from all others'.

    Of a class that is all but certain it is the difference of two numbers near 1, of which rounding leaves nothing.
    """
    return jnp.where(is_likely, -jnp.sum(jnp.where(is_likely, 0, slope), axis, keepdims=True), slope)


def centred(p: Array, L: Array) -> Array:
    """p_c (L_c - sum_k p_k L_k): the adjoint of softmax."""
    return balanced(p * (L - jnp.sum(p * L, -1, keepdims=True)), p > 0.5)
