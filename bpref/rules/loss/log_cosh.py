"""log_cosh: a square near zero, an absolute value far away, and smooth between, as a mean over the batch.

Forward, with the prediction y_hat and the target y of one shape (N, ...), n the example and k whatever axes
follow the first (a scalar is one example):

    e_nk = y_hat_nk - y_nk
    J    = 1/N sum_n sum_k log cosh(e_nk)                                 J: ()

log cosh e is e^2 / 2 for a small e and |e| - log 2 for a large one: `huber` without a corner in its slope, and
without a delta. Terms of one example are summed, not averaged, as there.

Differential: delta log cosh(e) = sinh(e) / cosh(e) delta e = t delta e with t = tanh(e), hence

    dy_hat_nk = dJ t_nk / N                                               (N, ...)
    dy_nk     = -dJ t_nk / N                                              (N, ...)

Cached: t. Both adjoints are multiples of it; e is not needed.

Numerical care: cosh overflows. With 1 / cosh^2 = 1 - t^2 = (1 - |t|) (1 + |t|) and (1 - |t|) / (1 + |t|) = exp(-2|e|),

    log cosh e = -1/2 log(1 - t^2) = |e| - log(1 + |t|)

of which the former cancels in 1 - t^2 where e is large, and the latter where it is small: the former is taken for
|e| < 1, the latter beyond, and one log1p serves both. There is no kink: the branches agree, in value and in slope.
Half precision is computed and summed in float32; t is kept in the prediction's dtype.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.pairs import Pair, count_examples, require_batch, scaled
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class LogCoshCache(NamedTuple):
    t: Float[Array, "..."]


def log_cosh() -> Layer[tuple[()], tuple[Array, Array], Reals, LogCoshCache]:
    """J = 1/N sum log cosh(y_hat - y).

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, ...)` or both scalar (N = 1), and y the
      scalar J in at least float32.

    Raises:
      ValueError: prediction and target differ in shape; N is 0.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "log_cosh"

    def forward(params, x: Pair):
        y_hat, y = x
        N = require_batch(who, count_examples(y_hat))
        e = widen(y_hat) - widen(y)
        t, a = jnp.tanh(e), jnp.abs(e)
        is_small = a < 1
        L = jnp.log1p(jnp.where(is_small, -t * t, jnp.abs(t)))
        J = jnp.sum(jnp.where(is_small, -0.5 * L, a - L)) / N
        return J, LogCoshCache(cast(t, y_hat.dtype))

    def backward(params, cache, dJ):
        t = cache.t
        dy_hat = scaled(dJ, count_examples(t), t)
        return (), (dy_hat, -dy_hat)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array]) -> Array:
    import optax

    terms = optax.log_cosh(*x)
    return jnp.mean(jnp.sum(terms, axis=tuple(range(1, terms.ndim))))


_FAR = (0.0, 100.0, -100.0, 1e4)

RULE = Rule(
    "log_cosh",
    log_cosh,
    reference,
    cases=(
        Case("one output", (Real("N", -2.0, 2.0), Real("N", -2.0, 2.0)), never_empty=("N",)),
        Case(
            "several outputs",
            (Real("N d", points=_FAR), Real("N d", points=(0.0,))),
            never_empty=("N",),
            timed={"N": 4096, "d": 64},
        ),
    ),
    cite="Chen et al., 'Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder' (2019)",
)
