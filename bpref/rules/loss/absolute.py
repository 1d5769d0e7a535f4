"""absolute: J = 1/N sum |y_hat - y|, the L1 loss, as a mean over the batch.

Forward, with the prediction y_hat and the target y of one shape (N, ...), n the example and k whatever axes
follow the first (a scalar is one example):

    e_nk = y_hat_nk - y_nk
    J    = 1/N sum_n sum_k |e_nk|                                         J: ()

Terms of one example are summed, not averaged, as in `square` and `huber`.

Differential, with sign(e) in {-1, 0, 1}:

    delta J = 1/N sum_nk sign(e_nk) (delta y_hat_nk - delta y_nk)

The factor of each perturbation:

    dy_hat_nk = dJ sign(e_nk) / N                                         (N, ...)
    dy_nk     = -dJ sign(e_nk) / N                                        (N, ...)

Kink: at e = 0 every slope from -1 to 1 is a subgradient; the middle, 0, is taken, as max(e, -e) has it and PyTorch
does. `jnp.abs` takes 1.

Cached: the sign, in one byte. How large an error was has no effect on the gradient. The 1/N and the dtype are
found again in the cache's shape and in dJ.

Numerical care: half precision is subtracted and summed in float32; the sign of a difference is exact in any dtype.
A NaN makes J NaN, and its own gradient; the byte has a value for it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int8

from bpref.dtypes import cast, widen
from bpref.formulas.pairs import Pair, count_examples, of_no_size, require_batch
from bpref.formulas.signs import as_byte, from_byte
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class AbsoluteCache(NamedTuple):
    sign: Int8[Array, "..."]
    like: Float[Array, "0"]


def absolute() -> Layer[tuple[()], tuple[Array, Array], Reals, AbsoluteCache]:
    """J = 1/N sum |y_hat - y|.

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, ...)` or both scalar (N = 1), and y the
      scalar J in at least float32.

    Raises:
      ValueError: prediction and target differ in shape; N is 0.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "absolute"

    def forward(params, x: Pair):
        y_hat, y = x
        N = require_batch(who, count_examples(y_hat))
        e = widen(y_hat) - widen(y)
        J = jnp.sum(jnp.maximum(e, -e)) / N
        return J, AbsoluteCache(as_byte(e), of_no_size(y_hat))

    def backward(params, cache, dJ):
        g = widen(dJ) / count_examples(cache.sign)
        dy_hat = cast(from_byte(cache.sign, g, g.dtype), cache.like.dtype)
        return (), (dy_hat, -dy_hat)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array]) -> Array:
    terms = jnp.maximum(x[0] - x[1], x[1] - x[0])
    return jnp.mean(jnp.sum(terms, axis=tuple(range(1, terms.ndim))))


RULE = Rule(
    "absolute",
    absolute,
    reference,
    cases=(
        Case("one output", (Real("N", points=(0.5,)), Real("N", points=(0.5,))), never_empty=("N",)),
        Case("several outputs", (Real("N d"), Real("N d")), never_empty=("N",), timed={"N": 4096, "d": 256}),
    ),
    cite="Laplace, 'Memoire sur la probabilite des causes par les evenements' (1774)",
    covers=("l1", "mean_absolute_error", "mae"),
)
