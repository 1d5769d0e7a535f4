"""kl_divergence: how many nats a distribution is from a target, a mean over the positions.

Forward, with the log-probabilities z = log q and the target p of shape (..., C), n running over all leading axes (the
positions, N in all), c over the classes:

    J = 1/N sum_n sum_c p_nc (log p_nc - z_nc)                            J: ()

a class with p = 0 has no part in it, whatever its z. A target may be given as l = log p, with `log_target`. Nothing
is assumed to sum to 1. Divided by the positions, J is PyTorch's "batchmean"; its "mean" also divides by C.

Differential:

    delta J = 1/N sum_nc (-p delta z + (log p + 1 - z) delta p)          delta p = p delta l

The sweep starts with dJ, a scalar. The factor of each perturbation:

    dz_nc = -dJ p_nc / N                                                  (..., C)
    dp_nc = dJ (log p_nc + 1 - z_nc) / N                                  (..., C)
    dl_nc = p_nc dp_nc                        with `log_target`           (..., C)

Kink: at p = 0 the slope of p log p is -infinity. Taken is what is left without it, dp = -dJ z / N, as autodiff does of
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
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class Distributions(NamedTuple):
    log_probabilities: Float[Array, "some=*n C>0"]
    target: Float[Array, "*n C"]


class KlDivergenceCache(NamedTuple):
    z: Float[Array, "... C"]
    target: Float[Array, "... C"]


def kl_divergence(log_target: bool = False) -> Layer[tuple[()], tuple[Array, Array], Reals, KlDivergenceCache]:
    """J = mean over the positions of sum_c p_c (log p_c - z_c).

    Args:
      log_target: whether the target is log p, and not p.

    Returns:
      A layer with params `()`, x `(log_probabilities, target)`, both `(..., C)`, and y the scalar J in at least
      float32. Both have a cotangent. Values cannot be seen while tracing: a negative target makes J NaN.

    Raises:
      ValueError: the two differ in shape; there are no positions or no classes.
      TypeError: x is no pair; the log-probabilities are not floating-point; the target has another dtype.
    """
    who = "kl_divergence"
    require_flags(who, log_target=log_target)

    def forward(params, x: Distributions):
        z, target = x
        p, nats = _nats(z, target)
        return jnp.sum(p * nats) / (z.size // z.shape[-1]), KlDivergenceCache(z, target)

    def backward(params, cache, dJ):
        z, target = cache
        g = widen(dJ) / (z.size // z.shape[-1])
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


def reference(params: tuple[()], x: tuple[Array, Array], log_target: bool = False) -> Array:
    from optax import losses

    loss = losses.kl_divergence_with_log_targets if log_target else losses.kl_divergence
    return jnp.mean(loss(*x))


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
        Case("sequence", (Real("B T C", -8.0, 0.0), Real("B T C", 0.125, 2.0)), never_empty=("B", "T", "C")),
        Case(
            "log-probabilities",
            (Real("N C", -8.0, 0.0), Real("N C", -8.0, 0.0)),
            {"log_target": True},
            never_empty=("N", "C"),
        ),
    ),
    cite="Kullback and Leibler, 'On Information and Sufficiency' (1951), equation 2.4",
)
