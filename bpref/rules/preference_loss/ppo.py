"""ppo: the clipped surrogate objective per token, with a penalty for leaving the reference.

Forward, with log-probabilities of the sampled tokens of shape (..., T), pi of the policy, pi_old of the policy that
sampled, rho of the reference, advantages A, a mask m, and n running over all tokens:

    r_n = exp(pi_n - pi_old_n)
    s_n = min(r_n A_n, clip(r_n, 1 - e, 1 + e') A_n)                      e: `clip`, e': `clip_high`
          and, where A_n < 0 and there is a `dual_clip` c, at least c A_n
    k_n = exp(rho_n - pi_n) - (rho_n - pi_n) - 1                          at least 0, its mean estimates KL(pi || rho)
    J   = -sum_n w_n (s_n - B k_n)                                        B: `kl_weight`, J: ()

w_n, made of the mask by `normalization`, is 0 where the mask is False. PPO's objective has two terms more, c_1 times
the critic's `clipped_value` and -c_2 times the mean of `token_entropy`.

Differential. A is given, and pi_old and rho belong to policies that are held: only pi is perturbed.

    delta r_n = r_n delta pi_n,     delta k_n = (1 - exp(rho_n - pi_n)) delta pi_n
    delta J   = -sum_n w_n (r_n A_n [not clipped]_n - B (1 - exp(rho_n - pi_n))) delta pi_n

The sweep starts with dJ, a scalar. The factor of the perturbation:

    dpi_n = -dJ w_n (r_n A_n [not clipped]_n - B (1 - exp(rho_n - pi_n))) (..., T)

pi_old, rho and A have the cotangent None.

Cached: what dJ multiplies in dpi. Of the ratio, both minima, A and the mask nothing else is needed.

Numerical care: 1 - exp(d) and exp(d) - 1 - d are of expm1(d). Tokens outside the mask are replaced before the
exponential, so that padding of any value, an infinite one too, adds 0 and not NaN. Half precision is computed and
summed in float32.

Kinks: where a bound is met exactly, the slope is the one without it; where A = 0 it is 0. (Autodiff of the minimum
gives a half of it at a bound that is met exactly.)
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import is_number, plain, require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.clipped_ratio import require_clips, require_reference, surrogate, token_weights, weighted_sum
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_token_mean
from bpref.rule import Boolean, Case, Interval, Real, Rule, called_as


class Tokens(NamedTuple):
    policy: Float[Array, "some=*n T>0"]
    old: Float[Array, "*n T"]
    reference: Float[Array, "*n T"] | None
    advantages: Float[Array, "*n T"]
    mask: Bool[Array, "*n T"]


class PpoCache(NamedTuple):
    slope: Float[Array, "... T"]


def ppo(
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    kl_weight: float = 0.0,
    normalization: str = "token",
) -> Layer[tuple[()], tuple[Array | None, ...], Reals, PpoCache]:
    """J = -sum over the tokens of w (min(r A, clip(r) A) - kl_weight k).

    Args:
      clip: e, how far below 1 the ratio r counts, and above it unless `clip_high` is given.
      clip_high: e', how far above 1 it counts; `math.inf` for any distance.
      dual_clip: c > 1, the ratio beyond which a negative advantage counts no more.
      kl_weight: the weight of the estimated divergence from the reference.
      normalization: "token", the mean over all tokens; "sequence", the mean over the sequences of their means;
        "constant", the sum by the size of the mask.

    Returns:
      A layer with params `()`, x `(policy, old, reference, advantages, mask)`, all `(..., T)`, the mask of booleans,
      and y the scalar J. The reference may be None where `kl_weight` is 0. Only the policy's log-probabilities have a
      cotangent, all else None. Without a True in the mask, J and the gradient are 0.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes differ; there are no tokens.
      TypeError: x is no tuple of five; dtypes do not fit.
    """
    who = "ppo"
    high = clip if clip_high is None else clip_high
    clip, high = require_clips(who, clip, high, normalization)
    if dual_clip is not None and not (is_number(dual_clip) and 1 < dual_clip < math.inf):
        raise ValueError(f"{who}: dual_clip is {dual_clip!r}, expected a number above 1 or None")
    dual_clip = plain(dual_clip)
    kl_weight = require_non_negative(who, "kl_weight", kl_weight)

    def forward(params, x: Tokens):
        policy, old, rho, A, mask = x
        rho = require_reference(who, rho, kl_weight, policy)
        pi, old, rho, A = (jnp.where(mask, widen(v), 0) for v in (policy, old, rho, A))
        old, rho, A = map(lax.stop_gradient, (old, rho, A))
        w = token_weights(mask, normalization, pi.dtype)
        s, slope = surrogate(pi - old, A, clip, high, dual_clip)
        if kl_weight:
            grown = jnp.expm1(rho - pi)
            s -= kl_weight * (grown - (rho - pi))
            slope += kl_weight * grown
        return -weighted_sum(w, s, mask), PpoCache(cast(-w * slope, policy.dtype))

    def backward(params, cache, dJ):
        dpi = cast(widen(dJ) * widen(cache.slope), cache.slope.dtype)
        return (), (dpi, None, None, None, None)

    return Layer(no_params, forward, backward, who)


@called_as(ppo)
def reference(params: tuple[()], x: tuple[Array, ...], clip, clip_high, dual_clip, kl_weight, normalization) -> Array:
    pi, mask = x[0], x[-1]
    old, rho, A = map(lax.stop_gradient, x[1:4])
    ratio = jnp.exp(pi - old)
    s = jnp.minimum(ratio * A, jnp.clip(ratio, 1 - clip, 1 + (clip if clip_high is None else clip_high)) * A)
    if dual_clip is not None:
        s = jnp.where(A < 0, jnp.maximum(s, dual_clip * A), s)
    if kl_weight:
        s -= kl_weight * (jnp.exp(rho - pi) - (rho - pi) - 1)
    return -naive_token_mean(s, mask, normalization)


_TOKENS = (Real("N T", -2.0, 0.0), Real("N T", -2.0, 0.0), Real("N T", -2.0, 0.0), Real("N T"), Boolean("N T"))

RULE = Rule(
    "ppo",
    ppo,
    reference,
    cases=(
        Case("tokens", (*_TOKENS[:2], None, *_TOKENS[3:]), {"clip": 0.2}, ("N", "T"), timed={"N": 64, "T": 8192}),
        Case(
            "everything, by sequence",
            _TOKENS,
            {"clip_high": 0.3, "dual_clip": 3.0, "kl_weight": Interval(0.0, 0.5, 0.04), "normalization": "sequence"},
            ("N", "T"),
        ),
    ),
    cite="arXiv:1707.06347, equation 7; dual clip: arXiv:1912.09729; k: Schulman, 'Approximating KL divergence' (2020)",
    covers=("proximal policy optimization", "clipped surrogate"),
)
