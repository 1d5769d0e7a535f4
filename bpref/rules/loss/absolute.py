"""absolute: |y_hat - y|, the L1 loss.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with the prediction y_hat and the target y of one shape, i running over all M elements:

    e_i = y_hat_i - y_i
    J   = 1/M sum_i |e_i|                                                 J: ()

Differential, with sign(e) in {-1, 0, 1}:

    delta J = 1/M sum_i sign(e_i) (delta y_hat_i - delta y_i)

The factor of each perturbation, with g_i = dJ / M, or another `reduction`'s (`bpref.formulas.loss.terms`):

    dy_hat_i = g_i sign(e_i)                                              y_hat's shape
    dy_i     = -g_i sign(e_i)                                             y's shape

Kink: at e = 0 every slope from -1 to 1 is a subgradient; the middle, 0, is taken, as max(e, -e) has it and PyTorch
does. `jnp.abs` takes 1.

Cached: the sign, in one byte. How large an error was has no effect on the gradient. M and the dtype are
found again in the cache's shape and in dJ.

Numerical care: half precision is subtracted and summed in float32; the sign of a difference is exact in any dtype.
A NaN makes J NaN, and its own gradient; the byte has a value for it.
"""

import jax.numpy as jnp
from jax import Array

from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import Pair, of_no_size
from bpref.formulas.loss.signs import SignCache, as_byte, from_byte
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule


def absolute(reduction: str = "mean") -> Layer[tuple[()], tuple[Array, Array], Reals, SignCache]:
    """J = mean of |y_hat - y|.

    Args:
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, target)` of one shape, and y the scalar J, or the terms, in at least
      float32.

    Raises:
      ValueError: the reduction is none of these; prediction and target differ in shape; a mean is over no terms.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "absolute"
    J_of = require_reduction(who, reduction)

    def forward(params, x: Pair):
        y_hat, y = x
        e = widen(y_hat) - widen(y)
        return J_of.of(jnp.maximum(e, -e)), SignCache(as_byte(e), of_no_size(y_hat))

    def backward(params, cache, dJ):
        g = J_of.at_terms(dJ, cache.sign.shape)
        dy_hat = cast(from_byte(cache.sign, g, g.dtype), cache.like.dtype)
        return (), (dy_hat, -dy_hat)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], reduction: str = "mean") -> Array:
    terms = jnp.maximum(x[0] - x[1], x[1] - x[0])
    return naive_reduction(terms, reduction)


RULE = Rule(
    "absolute",
    absolute,
    reference,
    cases=(
        Case("several outputs", (Real("N d"), Real("N d")), never_empty=("N", "d"), timed={"N": 4096, "d": 256}),
        Case("each of one output", (Real("N", points=(0.5,)), Real("N", points=(0.5,))), {"reduction": "none"}),
    ),
    cite="Laplace, 'Memoire sur la probabilite des causes par les evenements' (1774)",
    covers=("l1", "mean_absolute_error", "mae"),
)
