"""A state space in steps of time: how long each step is, and what an input that is held through it adds."""

import jax.numpy as jnp
from jax import Array

from bpref.dtypes import widen
from bpref.formulas.logistic import log1p_exp


def hold_of(s: Array, A: Array) -> Array:
    """(exp(s A) - 1) / A, and its limit s where A is 0."""
    is_zero = A == 0
    return jnp.where(is_zero, s, jnp.expm1(s * A) / jnp.where(is_zero, -1, A))


def shifted_by(delta: Array, bias: Array | None) -> Array:
    return widen(delta) if bias is None else widen(delta) + widen(bias)[None, None]


def step_sizes(delta: Array, bias: Array | None, softplus: bool) -> Array:
    v = shifted_by(delta, bias)
    return log1p_exp(v) if softplus else v
