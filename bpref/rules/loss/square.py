"""square: 1/2 (y_hat - y)^2, the seed's loss.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with the prediction y_hat and the target y of one shape, i running over all M elements:

    J = 1/M sum_i 1/2 (y_hat_i - y_i)^2                                   J: ()

Of one output this is the seed's 1/N sum_n 1/2 (y_hat_n - y_n)^2, a mean over the N examples. Of several outputs k the
seed's 1/2 (y_hat - y)^2 of an example is a sum, 1/N sum_n sum_k 1/2 (y_hat_nk - y_nk)^2, which is "batch_mean".

Differential:

    delta J = 1/M sum_i (y_hat_i - y_i) (delta y_hat_i - delta y_i)

The sweep starts with dJ. The factor of each perturbation, with g_i = dJ / M:

    dy_hat_i = g_i (y_hat_i - y_i)      this is dA[L]                     y_hat's shape
    dy_i     = -g_i (y_hat_i - y_i)                                       y's shape

The mean's 1/M enters here, once; no layer below divides by it again. The Hessian in y_hat is 1/M times the identity,
whose square root is 1/sqrt(M) times it. Another `reduction` has another g (`bpref.formulas.loss.terms`).

Cached: the error y_hat - y. Both adjoints are multiples of it, and neither y_hat nor y is needed beside it.

Numerical care: half precision is subtracted, squared and summed in float32; the error is kept in the
prediction's dtype. There is no kink.
"""

from jax import Array

from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import ErrorCache, Pair
from bpref.formulas.loss.root import square_root
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule


def square(reduction: str = "mean") -> Layer[tuple[()], tuple[Array, Array], Reals, ErrorCache]:
    """J = mean of 1/2 (y_hat - y)^2.

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
    who = "square"
    J_of = require_reduction(who, reduction)

    def forward(params, x: Pair):
        y_hat, y = x
        error = widen(y_hat) - widen(y)
        return J_of.of(0.5 * error * error), ErrorCache(cast(error, y_hat.dtype))

    def backward(params, cache, dJ):
        dy_hat = J_of.scaled(dJ, cache.error)
        return (), (dy_hat, -dy_hat)

    root = square_root(lambda cache: (cache.error, 1 / J_of.divisor(cache.error.shape))) if J_of.is_scalar else None
    return Layer(no_params, forward, backward, who, root=root)


def reference(params: tuple[()], x: tuple[Array, Array], reduction: str = "mean") -> Array:
    import optax

    return naive_reduction(optax.l2_loss(*x), reduction)


RULE = Rule(
    "square",
    square,
    reference,
    cases=(
        Case("one output", (Real("N"), Real("N")), never_empty=("N",)),
        Case("several outputs", (Real("N d"), Real("N d")), never_empty=("N", "d"), timed={"N": 4096, "d": 256}),
        Case("each of a sequence", (Real("B T d"), Real("B T d")), {"reduction": "none"}),
        Case("batch mean", (Real("B T d"), Real("B T d")), {"reduction": "batch_mean"}, never_empty=("B",)),
        Case("one number", (Real(""), Real(""))),
    ),
    cite="DataLearner, 'Back-propagation derived by hand' (2019), section 3",
)
