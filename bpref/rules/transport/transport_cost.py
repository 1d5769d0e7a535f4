"""transport_cost: the least cost of moving weights a to weights b, with a price on unevenness.

Forward, with a = softmax(alpha) of the n rows and b = softmax(beta) of the m columns, over all plans P with row sums a
and column sums b,

    J = min over P of sum_ij P_ij C_ij + epsilon P_ij log(P_ij / (a_i b_j))                   C: (..., n, m)    J: (...)

The price, epsilon times a Kullback-Leibler divergence, is 0 for the plan that moves everything everywhere. At the least
(see `sinkhorn`),

    P_ij = a_i b_j exp(K_ij + f_i + g_j)        K_ij = -C_ij / epsilon

and the cost and the price of that add up to what its rows and columns say:

    J = epsilon (sum_i a_i f_i + sum_j b_j g_j)

Differential. P is where nothing that it may do changes J: delta P drops out, and with it f, g and how they were found
(the envelope theorem). What is left is C where P is, and the sums a and b, whose prices are f and g:

    delta J = sum_ij P_ij delta C_ij + epsilon sum_i f_i delta a_i + epsilon sum_j g_j delta b_j

The adjoint, the factor of each perturbation, the last two through softmax's:

    dC_ij = dJ P_ij                                                       (..., n, m)
    dalpha_i = dJ epsilon a_i (f_i - sum_k a_k f_k)                       (..., n)
    dbeta_j = dJ epsilon b_j (g_j - sum_k b_k g_k)                        (..., m)

A constant that f and g may exchange, one adding what the other loses, is left out by the means that are subtracted.
No system is solved, and no step taken back.

Cached: the three factors of dJ, P among them, of the size of the input.

Numerical care: as in `sinkhorn`. The error of J is of second order in what is left of f and g, that of the gradient of
first. J is a divergence between the weights only less what each costs by itself: J(a, b) - J(a, a) / 2 - J(b, b) / 2 is
Sinkhorn's divergence, three of these.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_positive, require_positive_or_none, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.sinkhorn import end_of_steps, scaled, weighed, weights
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Real, Rule, called_as
from bpref.rules.transport import sinkhorn
from bpref.rules.transport.sinkhorn import Transport


def transport_cost(
    epsilon: float = 0.1, steps: int = 100, tolerance: float | None = None
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, Transport]:
    """J = the least cost of a plan, and epsilon times its Kullback-Leibler divergence from an even one.

    Args:
      epsilon: how much evenness is worth, in units of C.
      steps: how many of Sinkhorn's steps there are at most.
      tolerance: they end when no g changes by more than this times the largest; `None` for four units of round-off.

    Returns:
      A layer with params `()`, x `Transport(C, alpha, beta)`: `(*b, n, m)`, `(*b, n)` and `(*b, m)`, where
      softmax(alpha) and softmax(beta) are the weights, and y is J `(*b)`, in at least float32.

    Raises:
      ValueError: shapes do not fit; n or m is 0; epsilon or tolerance is not positive, or steps no positive integer.
      TypeError: x is no such tuple; C is not floating-point, or alpha or beta not of C's dtype.
    """
    who = "transport_cost"
    epsilon, steps = require_positive(who, "epsilon", epsilon), require_size(who, "steps", steps)
    tolerance = require_positive_or_none(who, "tolerance", tolerance)

    def forward(params, x: Transport):
        K, a, b = widen(x.C) / -epsilon, weights(x.alpha), weights(x.beta)
        f, g = end_of_steps(K, a, b, steps, tolerance)
        P = weighed(a, b) * scaled(K, f, g)
        of_rows, of_columns = (jnp.sum(w * v, -1, keepdims=True) for w, v in ((a, f), (b, g)))
        J = epsilon * jnp.squeeze(of_rows + of_columns, -1)
        slopes = P, epsilon * a * (f - of_rows), epsilon * b * (g - of_columns)
        return J, Transport(*(cast(slope, x.C.dtype) for slope in slopes))

    def backward(params, cache, dJ):
        return (), tuple(
            cast(widen(slope) * jnp.expand_dims(dJ, range(dJ.ndim, slope.ndim)), slope.dtype) for slope in cache
        )

    return Layer(no_params, forward, backward, who)


@called_as(transport_cost)
def reference(params: tuple[()], x: tuple[Array, Array, Array], epsilon, steps, **how) -> Array:
    """What the plan costs, and how far it is from an even one, of the plan that many steps of scaling find."""
    C, alpha, beta = x
    P = sinkhorn.reference(params, x, epsilon, steps)
    unevenness = jnp.log(P) - jax.nn.log_softmax(alpha, -1)[..., :, None] - jax.nn.log_softmax(beta, -1)[..., None, :]
    return jnp.sum(P * C + epsilon * P * unevenness, (-2, -1))


RULE = Rule(
    "transport_cost",
    transport_cost,
    reference,
    cases=(
        Case(
            "",
            (Real("B n m", 0.0, 1.0), Real("B n", -1.0, 1.0), Real("B m", -1.0, 1.0)),
            {"epsilon": Interval(0.3, 2.0, 0.5), "steps": 60},
            least={"n": 2, "m": 2},
            timed={"B": 16, "n": 64, "m": 64},
        ),
        Case(
            "no batch",
            (Real("n m", -1.0, 1.0), Real("n"), Real("m")),
            {"epsilon": 1.0, "steps": 60},
            least={"n": 2, "m": 2},
        ),
    ),
    cite="Feydy et al., 'Interpolating between optimal transport and MMD using Sinkhorn divergences' (2019), "
    "arXiv:1810.08278, propositions 1 and 2; Cuturi (2013), arXiv:1306.0895",
    covers=("entropic optimal transport cost", "sinkhorn distance", "regularised wasserstein"),
)
