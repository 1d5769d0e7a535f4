"""clipped_value: the critic's part of PPO: the squared error of values that may not leave the old ones far behind.

Forward, with values V of shape (..., T), V_old of the critic that the advantages were made with, returns R, a mask m,
and n running over all tokens:

    c_n = V_old_n + clip(V_n - V_old_n, -e, e)                            e: `clip`, (..., T)
    l_n = 1/2 max((V_n - R_n)^2, (c_n - R_n)^2)                           (..., T)
    J   = sum_n w_n l_n                                                   J: ()

w_n, made of the mask by `normalization`, is 0 where the mask is False. Without a clip, l_n is 1/2 (V_n - R_n)^2.

Of PPO's objective this is the second of three terms, c_1 times it; `ppo` is the first, and the third, the entropy
bonus, is -c_2 times the mean of `token_entropy`.

Differential. V_old and R are given: only V is perturbed. c_n moves with V_n while the clip does not hold, and then it
is V_n; where it holds, c_n is a constant:

    delta l_n = (V_n - R_n) [|V_n - R_n| >= |c_n - R_n|] delta V_n

so that a value beyond the clip that is nearer to its return than the clip would have it is left where it is.

The sweep starts with dJ, a scalar. The factor of the perturbation:

    dV_n = dJ w_n (V_n - R_n) [|V_n - R_n| >= |c_n - R_n|]                (..., T)

V_old and R have the cotangent None.

Cached: what dJ multiplies in dV. Of values, returns and mask nothing else is needed.

Numerical care: the two errors are compared by their sizes, not by their squares, which overflow first. Tokens outside
the mask are replaced before anything is computed, so that padding of any value adds 0 and not NaN. Of a token
that counts, a NaN makes J NaN. Half precision is computed and summed in float32.

Kinks: where the clip is met exactly, or both errors are of one size, the slope is the one without the clip. (Autodiff
of the maximum gives a half of it where a clip that holds makes no difference.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_positive_or_none
from bpref.dtypes import cast, widen
from bpref.formulas.loss.clipped_ratio import require_normalization, token_weights, weighted_sum
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_token_mean
from bpref.rule import Boolean, Case, Interval, Real, Rule


class Values(NamedTuple):
    values: Float[Array, "some=*n T>0"]
    old: Float[Array, "*n T"]
    returns: Float[Array, "*n T"]
    mask: Bool[Array, "*n T"]


class ClippedValueCache(NamedTuple):
    slope: Float[Array, "... T"]


def clipped_value(
    clip: float | None = 0.2, normalization: str = "token"
) -> Layer[tuple[()], tuple[Array, Array, Array, Array], Reals, ClippedValueCache]:
    """J = sum over the tokens of w 1/2 max((V - R)^2, (V_old + clip(V - V_old) - R)^2).

    Args:
      clip: e, how far from the old value a value counts, in units of V; `None` for any distance.
      normalization: "token", the mean over all tokens; "sequence", the mean over the sequences of their means;
        "constant", the sum by the size of the mask.

    Returns:
      A layer with params `()`, x `(values, old, returns, mask)`, all `(..., T)`, the mask of booleans, and y the scalar
      J. Only the values have a cotangent, all else None. Without a True in the mask, J and the gradient are 0.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes differ; there are no tokens.
      TypeError: x is no tuple of four; dtypes do not fit.
    """
    who = "clipped_value"
    clip = require_positive_or_none(who, "clip", clip)
    require_normalization(who, normalization)

    def forward(params, x: Values):
        *arrays, mask = x
        V, old, R = (jnp.where(mask, widen(v), 0) for v in arrays)
        old, R = map(lax.stop_gradient, (old, R))
        w = token_weights(mask, normalization, V.dtype)
        error = slope = V - R
        if clip is not None:
            moved = V - old
            clipped = jnp.where(jnp.abs(moved) <= clip, error, old + jnp.clip(moved, -clip, clip) - R)
            is_free = jnp.abs(error) >= jnp.abs(clipped)
            error, slope = jnp.where(is_free, error, clipped), jnp.where(is_free, error, 0)
        J = 0.5 * weighted_sum(w, error**2, mask)
        return J, ClippedValueCache(cast(w * slope, x.values.dtype))

    def backward(params, cache, dJ):
        return (), (cast(widen(dJ) * widen(cache.slope), cache.slope.dtype), None, None, None)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, ...], clip: float | None = 0.2, normalization: str = "token") -> Array:
    V, old, R, mask = x
    old, R = map(lax.stop_gradient, (old, R))
    terms = 0.5 * (V - R) ** 2
    if clip is not None:
        terms = jnp.maximum(terms, 0.5 * (old + jnp.clip(V - old, -clip, clip) - R) ** 2)
    return naive_token_mean(terms, mask, normalization)


_TOKENS = (Real("N T", -2.0, 2.0), Real("N T", -2.0, 2.0), Real("N T", -2.0, 2.0), Boolean("N T"))

RULE = Rule(
    "clipped_value",
    clipped_value,
    reference,
    cases=(
        Case("tokens", _TOKENS, {"clip": Interval(0.1, 2.0, 0.5)}, ("N", "T"), timed={"N": 64, "T": 8192}),
        Case("no clip, by sequence", _TOKENS, {"clip": None, "normalization": "sequence"}, ("N", "T")),
    ),
    cite="arXiv:1707.06347, equation 9; the clip: arXiv:2005.12729, section 3",
    covers=("value loss", "critic loss"),
)
