"""How the margin D between a chosen and a rejected answer is judged, and its slope: what DPO and its kin share.

    sigmoid   f(D) = -(1 - s) log sigma(B D) - s log sigma(-B D)          B: `beta`, s: `smoothing`
    hinge     f(D) = max(0, 1 - B D)
    ipo       f(D) = (D - 1 / (2 B))^2

    sigmoid   f'(D) = B (s - sigma(-B D))
    hinge     f'(D) = -B [B D < 1]
    ipo       f'(D) = 2 (D - 1 / (2 B))

-log sigma(u) is softplus(-u), which does not overflow, and sigma(-u) is not written 1 - sigma(u): a pair that is well
apart keeps its small slope. With both, f is -log sigma(B D) + s B D: one logarithm, not two.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import is_number, plain, require_positive
from bpref.dtypes import cast
from bpref.formulas.logistic import log1p_exp, logistic
from bpref.formulas.loss.pairs import of_no_size

FORMS = ("sigmoid", "hinge", "ipo")


class ChosenAndRejected(NamedTuple):
    """Log-probabilities of two answers to one prompt."""

    chosen: Float[Array, "some=*n"]
    rejected: Float[Array, "*n"]


class Judge(NamedTuple):
    beta: float
    smoothing: float
    form: str


class JudgedCache(NamedTuple):
    """f'(D), of the hinge whether it is below 0, a byte; and what dtype it is of."""

    slope: Float[Array, "..."] | Bool[Array, "..."]
    like: Float[Array, "0"]


def kept(judge: Judge, slope: Array, like: Array) -> JudgedCache:
    """f'(D), rounded to the dtype of `like`, as it is cached."""
    return JudgedCache(slope < 0 if judge.form == "hinge" else cast(slope, like.dtype), of_no_size(like))


def slope_of(judge: Judge, cache: JudgedCache) -> Array:
    """f'(D)."""
    if judge.form != "hinge":
        return cache.slope
    return jnp.where(cache.slope, jnp.asarray(-judge.beta, cache.like.dtype), 0)


def require_judge(who: str, beta: float, smoothing: float, form: str, forms: tuple[str, ...] = FORMS) -> Judge:
    """Both numbers as Python has them; raises `ValueError` unless each is in its range and goes with the form."""
    beta = require_positive(who, "beta", beta)
    if not (is_number(smoothing) and 0 <= smoothing < 0.5):
        raise ValueError(f"{who}: smoothing is {smoothing!r}, expected a number from 0 to below 0.5")
    smoothing = plain(smoothing)
    if form not in forms:
        named = ", ".join(map(repr, forms[:-1]))
        raise ValueError(f"{who}: form is {form!r}, expected {named} or {forms[-1]!r}")
    if smoothing and form != "sigmoid":
        raise ValueError(f"{who}: smoothing is {smoothing!r}, which form {form!r} does not have")
    return Judge(beta, smoothing, form)


def judged(judge: Judge, D: Array) -> tuple[Array, Array]:
    """f and f'."""
    beta, smoothing, form = judge
    u = beta * D
    if form == "ipo":
        e = D - 1 / (2 * beta)
        return e * e, 2 * e
    if form == "hinge":
        return jnp.maximum(1 - u, 0), jnp.where(u < 1, -beta, jnp.zeros_like(u))
    if smoothing:
        return log1p_exp(-u) + smoothing * u, beta * (smoothing - logistic(-u))
    return log1p_exp(-u), -beta * logistic(-u)
