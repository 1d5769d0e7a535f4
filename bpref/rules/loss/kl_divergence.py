"""kl_divergence: how many nats a distribution is from a target.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with the log-probabilities z = log q and the target p of shape (..., C), n running over all leading axes (the
positions, N in all), c over the classes:

    J = 1/N sum_n sum_c p_nc (log p_nc - z_nc)                            J: ()

a class with p = 0 has no part in it, whatever its z. A target may be given as l = log p, with `log_target`. Nothing
is assumed to sum to 1. A position has one term, as in Optax; PyTorch has one for each class, its "mean" divides by C
as well, and what is "mean" here is its "batchmean".

Differential:

    delta J = 1/N sum_nc (-p delta z + (log p + 1 - z) delta p)          delta p = p delta l

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dz_nc = -g_n p_nc                                                     (..., C)
    dp_nc = g_n (log p_nc + 1 - z_nc)                                     (..., C)
    dl_nc = p_nc dp_nc                        with `log_target`           (..., C)

Kink: at p = 0 the slope of p log p is -infinity. Taken is what is left without it, dp = -g z, as autodiff does of
`optax.kl_divergence`: a target that is 0 because somebody says so is not moved to infinity. A log-target of -inf
has a cotangent of 0, which is exact.

Cached: z and the target, both as they came: nothing is computed for the cache. dz needs the target alone, dp both.

Numerical care: where p is 0, what it is multiplied by is kept finite: -z, held below the largest number of the dtype,
so that a masked class, with p = 0 and z = -inf, adds nothing. log p - z is one subtraction of logarithms, never the
logarithm of a quotient. Half precision is computed and summed in float32. J can be below 0, by about the rounding of p
and z: what is rounded does not sum to 1, and the J of that is below 0. `distillation` takes logits instead, and is not.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule, called_as


class Distributions(NamedTuple):
    log_probabilities: Float[Array, "*n C>0"]
    target: Float[Array, "*n C"]


def kl_divergence(
    log_target: bool = False, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, Distributions]:
    """J = mean over the positions of sum_c p_c (log p_c - z_c).

    Args:
      log_target: whether the target is log p, and not p.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(log_probabilities, target)`, both `(..., C)`, and y the scalar J, or the terms
      (...), in at least float32. Both have a cotangent. Values cannot be seen while tracing: a negative target makes J
      NaN.

    Raises:
      ValueError: the reduction is none of these; the two differ in shape; there are no classes; a mean is over no
        positions.
      TypeError: x is no pair; the log-probabilities are not floating-point; the target has another dtype.
    """
    who = "kl_divergence"
    require_flags(who, log_target=log_target)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Distributions):
        z, target = x
        p, nats = _nats(z, target)
        return J_of.of(jnp.sum(p * nats, -1)), x

    def backward(params, cache, dJ):
        z, target = cache
        g = J_of.at_terms(dJ, z.shape[:-1], below=1)
        p, nats = _nats(z, target)
        slope = p * (nats + 1) if log_target else nats + jnp.where(p == 0, 0, 1)
        return (), (cast(-g * p, z.dtype), cast(g * slope, target.dtype))

    def _nats(z, target):
        """p, and log p - z, which is finite where p is 0."""
        z, target = widen(z), widen(target)
        if log_target:
            p = jnp.exp(target)
            return p, jnp.where(p == 0, 0, target - z)
        p = target
        finite = jnp.maximum(z, jnp.finfo(z.dtype).min)
        return p, jnp.where(p == 0, -finite, jnp.log(jnp.where(p == 0, 1, p)) - z)

    return Layer(no_params, forward, backward, who)


@called_as(kl_divergence)
def reference(params: tuple[()], x: tuple[Array, Array], log_target, reduction) -> Array:
    from optax import losses

    loss = losses.kl_divergence_with_log_targets if log_target else losses.kl_divergence
    return naive_reduction(loss(*x), reduction)


RULE = Rule(
    "kl_divergence",
    kl_divergence,
    reference,
    cases=(
        Case(
            "probabilities",
            (Real("N C", -8.0, 0.0), Real("N C", simplex=True, points=(0.0, 1.0))),
            never_empty=("N", "C"),
            timed={"N": 2048, "C": 128},
        ),
        Case(
            "sequence", (Real("B T C", -8.0, 0.0), Real("B T C", 0.125, 2.0)), {"reduction": "none"}, never_empty=("C",)
        ),
        Case(
            "log-probabilities",
            (Real("N C", -8.0, 0.0), Real("N C", -8.0, 0.0)),
            {"log_target": True},
            never_empty=("N", "C"),
        ),
    ),
    cite="Kullback and Leibler, 'On Information and Sufficiency' (1951), equation 2.4",
)
