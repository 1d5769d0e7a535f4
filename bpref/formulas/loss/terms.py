"""The terms of a loss and what J is of them: their mean, their sum, or each for itself.

A loss states its terms l_n, M of them in an array, each a function of its own part of the input, and each one's slope.
J is one of four things that are made of them, with N the size of the array's first axis, the number of examples (a
scalar is one):

    "mean"          J   = 1/M sum_n l_n                                   ()
    "sum"           J   = sum_n l_n                                       ()
    "batch_mean"    J   = 1/N sum_n l_n                                   ()
    "none"          J_n = l_n                                             the terms' shape

The mean is always that of what "none" returns, over all terms, as in PyTorch and Optax. Where a term may count more
than another, or not at all, it has a weight v_n and is v_n l_n in all four, and M is the sum of the weights, 1 where
that is 0: the mean is the weighted one, as PyTorch's is of classes with weights and ignored labels.

Differential: all four are linear in the terms. What a term's delta l_n is multiplied by on its way to delta J is all
that a loss's own derivation has to know of J, the cotangent of the term:

    g_n = dJ / M,     dJ,     dJ / N,     dJ_n         () where it is the same of all terms, else of the terms' shape

With weights it is multiplied by v_n. Where a loss's derivation says dJ / M, read g_n. Nothing is cached: M and N
are the sizes of what a loss keeps. J and g are in at least float32, also where the prediction is in half precision.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import require_choice
from bpref.dtypes import cast, widen

REDUCTIONS = ("mean", "sum", "none", "batch_mean")


class Reduction(NamedTuple):
    """One of the four, of the loss `who`."""

    who: str
    kind: str

    @property
    def is_scalar(self) -> bool:
        """Whether J is one number."""
        return self.kind != "none"

    def of(self, terms: Array, M: Array | float | None = None) -> Array:
        """J. M is the sum of the weights where the terms have some; raises `ValueError` for a mean of no terms."""
        if not self.is_scalar:
            return terms
        return jnp.sum(terms) / self.divisor(terms.shape, M)

    def divisor(self, shape: tuple[int, ...], M: Array | float | None = None) -> Array | float:
        """What a sum of terms of this shape is divided by; raises `ValueError` for a mean of no terms."""
        if self.kind == "mean":
            count = require_terms(self.who, math.prod(shape))
            return count if M is None else M
        return require_terms(self.who, shape[0] if shape else 1) if self.kind == "batch_mean" else 1

    def at_terms(self, dJ: Array, shape: tuple[int, ...], M: Array | float | None = None, below: int = 0) -> Array:
        """g, in at least float32: (), or the terms' shape with as many axes of size 1 `below` as the input has more."""
        g = widen(dJ)
        if not self.is_scalar:
            return lax.expand_dims(g, range(g.ndim, g.ndim + below))
        return g / self.divisor(shape, M)

    def scaled(self, dJ: Array, slope: Array, M: Array | float | None = None, below: int = 0) -> Array:
        """g times what was kept of each term's derivative, in the derivative's dtype, rounded once."""
        g = self.at_terms(dJ, slope.shape[: slope.ndim - below], M, below)
        return cast(g * widen(slope), slope.dtype)

    def scaled_each(self, dJ: Array, slopes: Iterable[Array | None], below: int = 0) -> tuple[Array | None, ...]:
        """The same for each part of the input; `None` for a label."""
        return tuple(None if slope is None else self.scaled(dJ, slope, below=below) for slope in slopes)


def require_reduction(who: str, reduction: str) -> Reduction:
    """The hyperparameter `reduction` of the loss `who`; raises `ValueError` unless it is one of the four."""
    return Reduction(who, require_choice(who, "reduction", reduction, REDUCTIONS))


def require_terms(who: str, count: int) -> int:
    """How many terms, or examples, a mean is taken over; raises `ValueError` when there are none."""
    if count == 0:
        raise ValueError(f"{who}: the batch is empty, its mean is not defined")
    return count
