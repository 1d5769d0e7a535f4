"""huber: a square near zero, a line beyond delta.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with the prediction y_hat and the target y of one shape, i running over all M elements, and D the
hyperparameter `delta`:

    e_i = y_hat_i - y_i
    h_i = 1/2 e_i^2 where |e_i| <= D,   D (|e_i| - D / 2) beyond
    J   = 1/M sum_i h_i,      or with `per_delta`   1/M sum_i h_i / D     J: ()

It becomes `square` for a large D. Divided by D it is the smooth L1 loss, whose line has the slope 1; for a small D
that becomes `absolute`.

Differential: delta h = c delta e, where c is e inside, and D sign(e) outside: the error, clipped to [-D, D]. Hence,
with g_i = dJ / M, or another `reduction`'s (`bpref.formulas.loss.terms`), and c / D in the place of c with `per_delta`,

    dy_hat_i = g_i c_i                                                    y_hat's shape
    dy_i     = -g_i c_i                                                   y's shape

which is the gradient of `square`, clipped.

Kinks: none in h or its derivative, which is continuous at |e| = D. The second derivative jumps there, from 1 to 0.

Cached: the error e. Both adjoints are multiples of c, which one comparison makes of it.

Numerical care: half precision is computed and summed in float32; e is kept in the prediction's dtype. Divided by D, the
line is |e| - D / 2 and the square e / D times e / 2, so that no D times what is then divided by it overflows.
"""

import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.dtypes import widen
from bpref.formulas.loss.pairs import ErrorCache, Pair
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule


def huber(
    delta: float = 1.0, per_delta: bool = False, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, ErrorCache]:
    """J = mean of h(y_hat - y), with h(e) = e^2 / 2 for |e| <= delta and delta (|e| - delta / 2) beyond.

    Args:
      delta: the error at which the square turns into a line, in the units of the prediction.
      per_delta: whether h is divided by delta: the smooth L1 loss, whose beta delta is.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, target)` of one shape, and y the scalar J, or the terms, in at least
      float32.

    Raises:
      ValueError: delta is not positive; the reduction is none of these; prediction and target differ in shape; a mean
        is over no terms.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "huber"
    delta = require_positive(who, "delta", delta)
    require_flags(who, per_delta=per_delta)
    J_of = require_reduction(who, reduction)
    slope = 1.0 if per_delta else delta

    def forward(params, x: Pair):
        y_hat, y = x
        e = widen(y_hat) - widen(y)
        size = jnp.abs(e)
        h = jnp.where(size <= delta, 0.5 * e * inside(e), slope * (size - 0.5 * delta))
        return J_of.of(h), ErrorCache(e.astype(y_hat.dtype))

    def inside(e):
        return e / delta if per_delta else e

    def backward(params, cache, dJ):
        e = widen(cache.error)
        g = J_of.at_terms(dJ, e.shape)
        dy_hat = jnp.where(jnp.abs(e) <= delta, g * inside(e), g * slope * jnp.sign(e)).astype(cache.error.dtype)
        return (), (dy_hat, -dy_hat)

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()], x: tuple[Array, Array], delta: float = 1.0, per_delta: bool = False, reduction: str = "mean"
) -> Array:
    import optax

    terms = optax.huber_loss(*x, delta=delta) / (delta if per_delta else 1)
    return naive_reduction(terms, reduction)


_FAR = (100.0, -100.0)

RULE = Rule(
    "huber",
    huber,
    reference,
    cases=(
        Case("one output", (Real("N"), Real("N")), {"delta": Interval(0.1, 10.0, 1.0)}, never_empty=("N",)),
        Case(
            "several outputs",
            (Real("N d", points=_FAR), Real("N d")),
            {"delta": Interval(0.1, 10.0, 2.5)},
            never_empty=("N", "d"),
            timed={"N": 4096, "d": 256},
        ),
        Case(
            "sequence, smooth L1",
            (Real("B T d"), Real("B T d")),
            {"delta": Interval(0.1, 10.0, 0.5), "per_delta": True, "reduction": "none"},
        ),
    ),
    cite="Huber, 'Robust estimation of a location parameter' (1964), Annals of Mathematical Statistics 35; smooth L1: "
    "arXiv:1504.08083, equation 3",
    covers=("smooth_l1",),
)
