"""kto: single answers, each good or bad, weighed by how far the policy is from its reference already.

The mean is that of all terms, one for each answer: what `reduction="none"` gives; of another `reduction`
(`bpref.formulas.loss.terms`) dJ / N is that one's g.

Forward, with the log-probabilities of whole answers of shape (N,): pi of the policy, rho of the reference, and k the
log-ratio of both for N answers that belong to other prompts; g_n = 1 for a desirable answer and -1 for another:

    z_0 = max(0, 1/N sum_n k_n)                                           z_0: ()
    u_n = B g_n (pi_n - rho_n - z_0)                                      B: `beta`
    J   = 1/N sum_n w_n sigma(-u_n)                                       J: ()

w_n is the weight of the answer's kind; sigma(-u) is 1 - sigma(u). z_0 estimates the divergence of the policy from its
reference. It is the point that gains and losses are measured from, and by definition no gradient goes through it.

Differential: delta sigma(-u) = -sigma(u) sigma(-u) delta u, with z_0 held:

    delta J = -1/N sum_n w_n B g_n sigma(u_n) sigma(-u_n) (delta pi_n - delta rho_n)

The sweep starts with dJ. The factor of each perturbation:

    dpi_n  = -dJ w_n B g_n sigma(u_n) sigma(-u_n) / N                     (N,)
    drho_n = -dpi_n                                                       (N,)

k has the cotangent None: it is held.

Cached: what dJ / N multiplies in dpi.

Numerical care: sigma(-u) is computed as itself, since 1 - sigma(u) cancels for an answer that is sure. Half precision
is computed and summed in float32. The kink of z_0 is in what is held.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_non_negative, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Boolean, Case, Interval, Real, Rule, called_as


class Answers(NamedTuple):
    policy: Float[Array, "some=*n"]
    reference: Float[Array, "*n"]
    mismatched: Float[Array, "*n"]
    desirable: Bool[Array, "*n"]


class KtoCache(NamedTuple):
    slope: Float[Array, "..."]


def kto(
    beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array, Array, Array], Reals, KtoCache]:
    """J = mean over the answers of w sigma(-B g (pi - rho - z_0)), g = 1 for desirable answers and -1 for others.

    Args:
      beta: how strongly the policy is held to the reference.
      desirable_weight, undesirable_weight: w of either kind.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(policy, reference, mismatched, desirable)` and y the scalar J, or the terms. The
      first three are of one shape and floating-point: log-probabilities of whole answers, and log-ratios (policy -
      reference) of answers to other prompts, which are held and have the cotangent None. `desirable` holds booleans of
      that shape.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes differ; the mean is over no answers.
      TypeError: x is no tuple of four; dtypes do not fit.
    """
    who = "kto"
    beta = require_positive(who, "beta", beta)
    desirable_weight = require_non_negative(who, "desirable_weight", desirable_weight)
    undesirable_weight = require_non_negative(who, "undesirable_weight", undesirable_weight)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Answers):
        pi, rho, k, desirable = x
        N = pi.size
        z = lax.stop_gradient(jnp.maximum(jnp.sum(widen(k)) / N, 0))
        u = beta * (widen(pi) - widen(rho) - z)
        u = jnp.where(desirable, u, -u)
        w = jnp.where(desirable, desirable_weight, jnp.full_like(u, undesirable_weight))
        short = w * jax.nn.sigmoid(-u)
        slope = jnp.where(desirable, -beta, jnp.full_like(u, beta)) * short * jax.nn.sigmoid(u)
        return J_of.of(short), KtoCache(cast(slope, pi.dtype))

    def backward(params, cache, dJ):
        d = J_of.scaled(dJ, cache.slope)
        return (), (d, -d, None, None)

    return Layer(no_params, forward, backward, who, couples="the reference point")


@called_as(kto)
def reference(params: tuple[()], x: tuple[Array, ...], beta, desirable_weight, undesirable_weight, reduction) -> Array:
    pi, rho, k, desirable = x
    z = lax.stop_gradient(jnp.maximum(jnp.mean(k), 0))
    gain = desirable_weight * (1 - jax.nn.sigmoid(beta * (pi - rho - z)))
    loss = undesirable_weight * (1 - jax.nn.sigmoid(beta * (z - (pi - rho))))
    return naive_reduction(jnp.where(desirable, gain, loss), reduction)


RULE = Rule(
    "kto",
    kto,
    reference,
    cases=(
        Case(
            "weighted",
            (Real("N", -8.0, 0.0), Real("N", -8.0, 0.0), Real("N"), Boolean("N")),
            {"beta": Interval(0.05, 1.0, 0.1), "undesirable_weight": 1.5},
            ("N",),
            timed={"N": 1 << 20},
        ),
        Case(
            "each", (Real("N", -8.0, 0.0), Real("N", -8.0, 0.0), Real("N"), Boolean("N")), {"reduction": "none"}, ("N",)
        ),
    ),
    cite="arXiv:2402.01306, equation 8",
    covers=("kahneman-tversky optimization",),
)
