"""gspo: GRPO whose ratio is one of the whole answer, per token, as its reward is of the whole answer.

Forward, with log-probabilities of the sampled tokens of shape (..., G, T), G answers to one prompt, pi of the policy,
pi_old of the policy that sampled, rho of the reference, rewards R of shape (..., G), a mask m, i running over all
answers, M of them, t over the tokens of one, and L_i = sum_t m_it (1 if that is 0):

    A_i  = (R_i - mean_i R) / (std_i R + eps)  or R_i - mean_i R          (..., G)
    r_i  = exp(1/L_i sum_t m_it (pi_it - pi_old_it))                      (..., G)
    s_i  = min(r_i A_i, clip(r_i, 1 - e, 1 + e') A_i)                     e: `clip`, e': `clip_high`
    k_it = exp(rho_it - pi_it) - (rho_it - pi_it) - 1                     at least 0, its mean estimates KL(pi || rho)
    J    = -1/M sum_i (s_i - B/L_i sum_t m_it k_it)                       B: `kl_weight`, J: ()

r_i is the geometric mean of the tokens' ratios. mean and std are those of `grpo`. With B = 0, as the paper has it,
there is no k, and no rho. An answer without a token adds 0.

Differential. Rewards are given, and pi_old and rho belong to policies that are held: only pi is perturbed.

    delta r_i  = r_i / L_i sum_t m_it delta pi_it,     delta k_it = (1 - exp(rho_it - pi_it)) delta pi_it
    delta J    = -1/M sum_it m_it / L_i (r_i A_i [not clipped]_i - B (1 - exp(rho_it - pi_it))) delta pi_it

The sweep starts with dJ, a scalar. The factor of the perturbation, the same for each token of an answer but for k's:

    dpi_it = -dJ m_it / (M L_i) (r_i A_i [not clipped]_i - B (1 - exp(rho_it - pi_it)))     (..., G, T)

pi_old, rho and R have the cotangent None.

Cached: the mask, what -dJ m multiplies for each answer, and, with B > 0, what is added to it for each token.

Numerical care: the mean of differences of logarithms is exponentiated, never a product of ratios. 1 - exp(d) and
exp(d) - 1 - d are of expm1(d). Tokens outside the mask are replaced before anything is summed, so that padding of any
value adds 0 and not NaN. Half precision is computed and summed in float32.

Kinks: where a bound is met exactly, the slope is the one without it; where A = 0 it is 0. (Autodiff of the minimum
gives a half of it at a bound that is met exactly.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_flags, require_non_negative, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.loss.clipped_ratio import require_clips, surrogate
from bpref.formulas.loss.group_advantage import GROUPS, AnswerGroups, beside_held, require_ddof
from bpref.formulas.loss.pairs import of_no_size
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Rule, called_as


class GspoCache(NamedTuple):
    mask: Bool[Array, "... G T"]
    of_answer: Float[Array, "... G"]
    of_token: Float[Array, "... G T"] | None
    like: Float[Array, "0"]


def gspo(
    clip: float = 3e-4,
    clip_high: float | None = 4e-4,
    kl_weight: float = 0.0,
    scaled: bool = True,
    eps: float = 1e-4,
    ddof: int = 0,
) -> Layer[tuple[()], tuple[Array | None, ...], Reals, GspoCache]:
    """J = -mean over the answers of min(r A, clip(r) A) - kl_weight k, r the geometric mean of its tokens' ratios.

    Args:
      clip: e, how far below 1 the ratio r counts, and above it where `clip_high` is None. A mean of logarithms moves
        less than one of them: the paper's bounds are a thousandth of GRPO's.
      clip_high: e', how far above 1 it counts.
      kl_weight: the weight of the estimated divergence from the reference.
      scaled: whether a group's advantages are divided by the deviation of its rewards.
      eps: added to the deviation, in the units of the rewards.
      ddof: what is subtracted from G where the deviation is a mean of squares, see `grpo`.

    Returns:
      A layer with params `()`, x `(policy, old, reference, rewards, mask)` and y the scalar J: log-probabilities and
      the mask, of booleans, are `(..., G, T)`, the rewards `(..., G)`. The reference may be None where `kl_weight` is
      0. Only the policy's log-probabilities have a cotangent, all else None.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; there are no tokens.
      TypeError: x is no tuple of five; dtypes do not fit.
    """
    who = "gspo"
    require_flags(who, scaled=scaled)
    clip, high = require_clips(who, clip, clip if clip_high is None else clip_high, "sequence")
    kl_weight = require_non_negative(who, "kl_weight", kl_weight)
    eps = require_positive(who, "eps", eps)
    ddof = require_ddof(who, ddof)

    def forward(params, x: AnswerGroups):
        log_ratio, behind, A = beside_held(who, x, kl_weight, scaled, eps, ddof)
        L = jnp.maximum(jnp.sum(x.mask, -1, dtype=A.dtype), 1)
        share = 1 / (L * A.size)
        s, slope = surrogate(jnp.sum(log_ratio, -1) / L, A, clip, high)
        is_any = jnp.any(x.mask, -1)
        J, of_token = -jnp.sum(jnp.where(is_any, s, 0)) / A.size, None
        if kl_weight:
            grown = jnp.expm1(behind)
            J += kl_weight * jnp.sum(share * jnp.sum(grown - behind, -1))
            of_token = cast((kl_weight * share)[..., None] * grown, x.policy.dtype)
        return J, GspoCache(x.mask, share * slope, of_token, of_no_size(x.policy))

    def backward(params, cache, dJ):
        mask, of_answer, of_token, like = cache
        slope = of_answer[..., None] if of_token is None else of_answer[..., None] + widen(of_token)
        dpi = jnp.where(mask, -widen(dJ) * slope, 0)
        return (), (cast(dpi, like.dtype), None, None, None, None)

    return Layer(no_params, forward, backward, who)


@called_as(gspo)
def reference(params: tuple[()], x: tuple[Array, ...], clip, clip_high, kl_weight, scaled, eps, ddof) -> Array:
    pi, mask = x[0], x[-1]
    old, rho, R = map(lax.stop_gradient, x[1:4])
    A = R - jnp.mean(R, -1, keepdims=True)
    if scaled:
        A /= jnp.std(R, -1, keepdims=True, ddof=ddof) + eps
    length = jnp.sum(mask.astype(pi.dtype), -1)
    counted = jnp.maximum(length, 1)
    ratio = jnp.exp(jnp.sum(jnp.where(mask, pi - old, 0), -1) / counted)
    s = jnp.minimum(ratio * A, jnp.clip(ratio, 1 - clip, 1 + (clip if clip_high is None else clip_high)) * A)
    s = jnp.where(length > 0, s, 0)
    if kl_weight:
        k = jnp.exp(rho - pi) - (rho - pi) - 1
        s -= kl_weight * jnp.sum(jnp.where(mask, k, 0), -1) / counted
    return -jnp.mean(s)


RULE = Rule(
    "gspo",
    gspo,
    reference,
    cases=(
        Case(
            "gspo",
            (*GROUPS[:2], None, *GROUPS[3:]),
            {"clip": 0.2, "clip_high": 0.3},
            never_empty=("B", "G", "T"),
            timed={"B": 8, "G": 8, "T": 8192},
        ),
        Case(
            "with a reference",
            GROUPS,
            {"clip": 0.2, "clip_high": None, "kl_weight": Interval(0.0, 0.5, 0.04), "ddof": 1},
            ("B", "T"),
            least={"G": 2},
        ),
        Case("not scaled", GROUPS, {"clip": 0.3, "scaled": False}, ("B", "G", "T")),
    ),
    cite="arXiv:2507.18071, section 4 (equation numbers not checked); clips: section 5.1",
    covers=("group sequence policy optimization",),
)
