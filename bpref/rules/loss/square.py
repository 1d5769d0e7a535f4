"""square: J = 1/(2N) sum (y_hat - y)^2, the seed's loss, as a mean over the batch.

Forward, with the prediction y_hat and the target y of one shape (N, ...), n the example and k whatever axes
follow the first (a scalar is one example):

    J = 1/N sum_n sum_k 1/2 (y_hat_nk - y_nk)^2                           J: ()

The squares of one example are summed, not averaged: for one example J is the seed's 1/2 (y_hat - y)^2, whatever
the number of outputs. `huber` counts in the same way.

Differential:

    delta J = 1/N sum_nk (y_hat_nk - y_nk) (delta y_hat_nk - delta y_nk)

The sweep starts with dJ, a scalar. The factor of each perturbation:

    dy_hat_nk = dJ (y_hat_nk - y_nk) / N      this is dA[L]               (N, ...)
    dy_nk     = -dJ (y_hat_nk - y_nk) / N                                 (N, ...)

The batch mean's 1/N enters here, once; no layer below divides by it again. The Hessian in y_hat is 1/N times the
identity, whose square root is 1/sqrt(N) times it.

Cached: the error y_hat - y. Both adjoints are multiples of it, and neither y_hat nor y is needed beside it.

Numerical care: half precision is subtracted, squared and summed in float32; the error is kept in the
prediction's dtype. There is no kink.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.pairs import Pair, count_examples, require_batch
from bpref.formulas.root import square_root
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class SquareCache(NamedTuple):
    error: Float[Array, "..."]


def square() -> Layer[tuple[()], tuple[Array, Array], Reals, SquareCache]:
    """J = 1/(2N) sum (y_hat - y)^2.

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, ...)` or both scalar (N = 1), and y the
      scalar J in at least float32.

    Raises:
      ValueError: prediction and target differ in shape; N is 0.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "square"

    def forward(params, x: Pair):
        y_hat, y = x
        N = require_batch(who, count_examples(y_hat))
        error = widen(y_hat) - widen(y)
        J = jnp.sum(error * error) * (0.5 / N)
        return J, SquareCache(cast(error, y_hat.dtype))

    def backward(params, cache, dJ):
        error = cache.error
        N = count_examples(error)
        dy_hat = cast(widen(error) * (widen(dJ) * (1 / N)), error.dtype)
        return (), (dy_hat, -dy_hat)

    root = square_root(lambda cache: (cache.error, 1 / count_examples(cache.error)))
    return Layer(no_params, forward, backward, who, root=root)


def reference(params: tuple[()], x: tuple[Array, Array]) -> Array:
    import optax

    terms = optax.l2_loss(*x)
    return jnp.mean(jnp.sum(terms, axis=tuple(range(1, terms.ndim))))


RULE = Rule(
    "square",
    square,
    reference,
    cases=(
        Case("one output", (Real("N"), Real("N")), never_empty=("N",)),
        Case("several outputs", (Real("N d"), Real("N d")), never_empty=("N",), timed={"N": 4096, "d": 256}),
        Case("sequence", (Real("B T d"), Real("B T d")), never_empty=("B",)),
        Case("one number", (Real(""), Real(""))),
    ),
    cite="DataLearner, 'Back-propagation derived by hand' (2019), section 3",
)
