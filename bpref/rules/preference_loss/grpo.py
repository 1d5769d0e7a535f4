"""grpo: PPO whose advantage is how much better an answer was than its group, without a value network.

Forward, with log-probabilities of the sampled tokens of shape (..., G, T), G answers to one prompt, pi of the policy,
pi_old of the policy that sampled, rho of the reference, rewards R of shape (..., G), a mask m, and n running over all
tokens, i over the answers of a group:

    A_i = (R_i - mean_i R) / (std_i R + eps)  or R_i - mean_i R           (..., G)
    r_n = exp(pi_n - pi_old_n)
    s_n = min(r_n A_i, clip(r_n, 1 - e, 1 + e') A_i)                      e: `clip`, e': `clip_high`
    k_n = exp(rho_n - pi_n) - (rho_n - pi_n) - 1                          at least 0, its mean estimates KL(pi || rho)
    J   = -sum_n w_n (s_n - B k_n)                                        B: `kl_weight`, J: ()

std is the deviation of the population, the root of 1/G sum_i (R_i - mean R)^2, or of the sample, with G - 1 for G
(`ddof`). w_n, made of the mask by `normalization`, is 0 where the mask is False. With B = 0 there is no k, and no rho.

Differential. Rewards are given, and pi_old and rho belong to policies that are held: only pi is perturbed.

    delta r_n = r_n delta pi_n,     delta k_n = (1 - exp(rho_n - pi_n)) delta pi_n
    delta J   = -sum_n w_n (r_n A_i [not clipped]_n - B (1 - exp(rho_n - pi_n))) delta pi_n

The sweep starts with dJ, a scalar. The factor of the perturbation:

    dpi_n = -dJ w_n (r_n A_i [not clipped]_n - B (1 - exp(rho_n - pi_n))) (..., G, T)

pi_old, rho and R have the cotangent None.

Cached: what dJ multiplies in dpi. Of the ratio, both minima, A and the mask nothing else is needed.

Numerical care: 1 - exp(d) and exp(d) - 1 - d are of expm1(d). The deviation is of R minus its mean, in two passes; a
group whose rewards are equal has A = 0, and its answers are moved by k alone. Tokens outside the mask are replaced
before the exponential, so that padding of any value adds 0 and not NaN. Half precision is computed and summed in
float32.

Kinks: where a bound is met exactly, the slope is the one without it; where A = 0 it is 0. (Autodiff of the minimum
gives a half of it at a bound that is met exactly.)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_non_negative, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.loss.clipped_ratio import require_clips, surrogate, token_weights, weighted_sum
from bpref.formulas.loss.group_advantage import GROUPS, AnswerGroups, beside_held, require_ddof
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_token_mean
from bpref.rule import Case, Interval, Rule, called_as


class GrpoCache(NamedTuple):
    slope: Float[Array, "... G T"]


def grpo(
    clip: float = 0.2,
    clip_high: float | None = None,
    kl_weight: float = 0.04,
    scaled: bool = True,
    normalization: str = "sequence",
    eps: float = 1e-4,
    ddof: int = 0,
) -> Layer[tuple[()], tuple[Array | None, ...], Reals, GrpoCache]:
    """J = -sum over the tokens of w (min(r A, clip(r) A) - kl_weight k), A relative to the group's rewards.

    Args:
      clip: e, how far below 1 the ratio r counts, and above it unless `clip_high` is given.
      clip_high: e', how far above 1 it counts (DAPO: 0.28; `math.inf` for any distance).
      kl_weight: the weight of the estimated divergence from the reference.
      scaled: whether a group's advantages are divided by the deviation of its rewards; Dr. GRPO does not.
      normalization: "sequence", the mean over the answers of their means (GRPO); "token", the mean over all tokens
        (DAPO); "constant", the sum by the size of the mask (Dr. GRPO).
      eps: added to the deviation, in the units of the rewards.
      ddof: what is subtracted from G where the deviation is a mean of squares: 0, the population's, as the paper's
        advantages are; 1, the sample's, as `torch.std` and the trainers built on it have. A group of one has A = 0.

    Returns:
      A layer with params `()`, x `(policy, old, reference, rewards, mask)` and y the scalar J: log-probabilities and
      the mask, of booleans, are `(..., G, T)`, the rewards `(..., G)`. The reference may be None where `kl_weight` is
      0. Only the policy's log-probabilities have a cotangent, all else None. Without a True in the mask, J and the
      gradient are 0.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; there are no tokens.
      TypeError: x is no tuple of five; dtypes do not fit.
    """
    who = "grpo"
    require_flags(who, scaled=scaled)
    high = clip if clip_high is None else clip_high
    clip, high = require_clips(who, clip, high, normalization)
    kl_weight = require_non_negative(who, "kl_weight", kl_weight)
    eps = require_positive(who, "eps", eps)
    ddof = require_ddof(who, ddof)

    def forward(params, x: AnswerGroups):
        log_ratio, behind, A = beside_held(who, x, kl_weight, scaled, eps, ddof)
        w = token_weights(x.mask, normalization, A.dtype)
        s, slope = surrogate(log_ratio, jnp.broadcast_to(A[..., None], log_ratio.shape), clip, high)
        if kl_weight:
            grown = jnp.expm1(behind)
            s -= kl_weight * (grown - behind)
            slope += kl_weight * grown
        return -weighted_sum(w, s, x.mask), GrpoCache(cast(-w * slope, x.policy.dtype))

    def backward(params, cache, dJ):
        dpi = cast(widen(dJ) * widen(cache.slope), cache.slope.dtype)
        return (), (dpi, None, None, None, None)

    return Layer(no_params, forward, backward, who)


@called_as(grpo)
def reference(
    params: tuple[()], x: tuple[Array, ...], clip, clip_high, kl_weight, scaled, normalization, eps, ddof
) -> Array:
    pi, mask = x[0], x[-1]
    old, rho, R = map(lax.stop_gradient, x[1:4])
    A = R - jnp.mean(R, -1, keepdims=True)
    if scaled:
        A /= jnp.std(R, -1, keepdims=True, ddof=ddof) + eps
    A = jnp.broadcast_to(A[..., None], pi.shape)
    ratio = jnp.exp(pi - old)
    s = jnp.minimum(ratio * A, jnp.clip(ratio, 1 - clip, 1 + (clip if clip_high is None else clip_high)) * A)
    if kl_weight:
        s -= kl_weight * (jnp.exp(rho - pi) - (rho - pi) - 1)
    return -naive_token_mean(s, mask, normalization)


RULE = Rule(
    "grpo",
    grpo,
    reference,
    cases=(
        Case("grpo", GROUPS, never_empty=("B", "G", "T"), timed={"B": 8, "G": 8, "T": 8192}),
        Case(
            "dapo",
            GROUPS,
            {"clip_high": 0.28, "kl_weight": Interval(0.0, 0.5, 0.0), "normalization": "token", "ddof": 1},
            ("B", "T"),
            least={"G": 2},
        ),
        Case(
            "dr. grpo",
            (*GROUPS[:2], None, *GROUPS[3:]),
            {"scaled": False, "normalization": "constant", "kl_weight": 0.0},
            ("B", "G", "T"),
        ),
    ),
    cite="arXiv:2402.03300, equations 3 and 4; DAPO: arXiv:2503.14476; Dr. GRPO: arXiv:2503.20783",
    covers=("group relative policy optimization", "dapo", "dr. grpo"),
)
