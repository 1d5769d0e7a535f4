"""How much each labelled position of a loss counts: by its class's weight, and not at all where its label is ignored.

    v_n = w_y where the label y_n is a class,  0 where it is ignored,  NaN where it is neither        the labels' shape
    N   = sum_n v_n, 1 where that is 0

What a mean is divided by is N, as PyTorch does; without weights and ignored labels that is the number of positions.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct

from bpref.checks.hyperparameters import as_numbers, fails, require_integer_or_none
from bpref.dtypes import wide_dtype, widen_integers
from bpref.formulas.loss.labels import is_class, nearest_class


class Counting(NamedTuple):
    """The hyperparameters of a loss that say what counts.

    Attributes:
      who: the loss.
      ignored: a label whose positions do not count.
      w: the weight of each class.
    """

    who: str
    ignored: int | None
    w: Array | np.ndarray | None

    def positions(self, label: Array, scores: Array | ShapeDtypeStruct) -> tuple[Array, Array | None]:
        """v, with an axis of size 1 for the classes, and N; `None` for N where it is the number of positions."""
        y = widen_integers(label)
        dtype = wide_dtype(scores.dtype)
        v = jnp.ones(y.shape, dtype)
        if self.w is not None:
            v = jnp.take(self.w.astype(dtype), nearest_class(y, scores), mode="clip")
        v = self.unless_ignored(y, jnp.where(is_class(y, scores), v, jnp.nan)[..., None])
        if self.ignored is None and self.w is None:
            return v, None
        total = jnp.sum(jnp.where(jnp.isnan(v), 0, v))
        return v, jnp.where(total == 0, 1, total)

    def unless_ignored(self, y: Array, values: Array) -> Array:
        """Values (..., C), or (..., 1), and 0 where the label is ignored."""
        return values if self.ignored is None else jnp.where((y != self.ignored)[..., None], values, 0)

    def weighted(self, values: Array) -> Array:
        """w_c values_nc."""
        return values if self.w is None else values * jnp.broadcast_to(self.w.astype(values.dtype), values.shape)

    def require_classes(self, name: str, scores: Array | ShapeDtypeStruct) -> None:
        """Raise `ValueError` where there is not one weight for each class."""
        if self.w is not None and self.w.size != scores.shape[-1]:
            raise ValueError(f"{self.who}: {name} has {scores.shape[-1]} classes C, class_weights has {self.w.size}")


def require_counting(who: str, ignored: int | None, class_weights: Sequence[float] | None) -> Counting:
    """The hyperparameters `ignored` and `class_weights`; raises `ValueError` where they are none."""
    ignored = require_integer_or_none(who, "ignored", ignored)
    w = None if class_weights is None else as_numbers(class_weights)
    if class_weights is not None and (
        w is None or w.ndim != 1 or fails(w >= 0) or fails((w.sum() > 0) & (w.sum() < math.inf))
    ):
        raise ValueError(f"{who}: class_weights is {class_weights!r}, expected C numbers of at least 0, not all 0")
    return Counting(who, ignored, w)
