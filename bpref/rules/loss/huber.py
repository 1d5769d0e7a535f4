"""huber: a square near zero, a line beyond delta, as a mean over the batch.

Forward, with the prediction y_hat and the target y of one shape (N, ...), n the example and k whatever axes
follow the first (a scalar is one example), and D the hyperparameter `delta`:

    e_nk = y_hat_nk - y_nk
    h_nk = 1/2 e_nk^2 where |e_nk| <= D,   D (|e_nk| - D / 2) beyond
    J    = 1/N sum_n sum_k h_nk                                           J: ()

Terms of one example are summed, not averaged, as in `square`, which it becomes for a large D.

Differential: delta h = c delta e, where c is e inside, and D sign(e) outside: the error, clipped to [-D, D]. Hence

    dy_hat_nk = dJ c_nk / N                                               (N, ...)
    dy_nk     = -dJ c_nk / N                                              (N, ...)

The batch mean's 1/N enters here, once: the gradient of `square`, clipped.

Kinks: none in h or its derivative, which is continuous at |e| = D. The second derivative jumps there, from 1 to 0.

Cached: the error e. Both adjoints are multiples of c, which one comparison makes of it.

Numerical care: half precision is computed and summed in float32; e is kept in the prediction's dtype.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import widen
from bpref.formulas.pairs import Pair, count_examples, require_batch
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Real, Rule


class HuberCache(NamedTuple):
    error: Float[Array, "..."]


def huber(delta: float = 1.0) -> Layer[tuple[()], tuple[Array, Array], Reals, HuberCache]:
    """J = 1/N sum h(y_hat - y), with h(e) = e^2 / 2 for |e| <= delta and delta (|e| - delta / 2) beyond.

    Args:
      delta: the error at which the square turns into a line, in the units of the prediction.

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, ...)` or both scalar (N = 1), and y the
      scalar J in at least float32.

    Raises:
      ValueError: delta is not positive; prediction and target differ in shape; N is 0.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "huber"
    delta = require_positive(who, "delta", delta)

    def forward(params, x: Pair):
        y_hat, y = x
        N = require_batch(who, count_examples(y_hat))
        e = widen(y_hat) - widen(y)
        size = jnp.abs(e)
        h = jnp.where(size <= delta, 0.5 * e**2, delta * (size - 0.5 * delta))
        return jnp.sum(h) / N, HuberCache(e.astype(y_hat.dtype))

    def backward(params, cache, dJ):
        e = widen(cache.error)
        g = widen(dJ) / count_examples(e)
        dy_hat = jnp.where(jnp.abs(e) <= delta, g * e, g * delta * jnp.sign(e)).astype(cache.error.dtype)
        return (), (dy_hat, -dy_hat)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], delta: float = 1.0) -> Array:
    import optax

    terms = optax.huber_loss(*x, delta=delta)
    return jnp.mean(jnp.sum(terms, axis=tuple(range(1, terms.ndim))))


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
            never_empty=("N",),
            timed={"N": 4096, "d": 256},
        ),
        Case("sequence", (Real("B T d"), Real("B T d")), never_empty=("B",)),
    ),
    cite="Huber, 'Robust estimation of a location parameter' (1964), Annals of Mathematical Statistics 35",
)
