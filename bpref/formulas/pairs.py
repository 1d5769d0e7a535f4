"""What every loss asks of its input, the pair (prediction, target), before anything is computed."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.dtypes import as_array, came, cast, require_floating, widen
from bpref.formulas.tuples import require_dtype_of


def as_pair(who: str, x: Any) -> tuple[Array, Array]:
    """`x` as two arrays; raises `TypeError` unless it is a pair."""
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise TypeError(f"{who}: x is {came(x)}, expected a pair (prediction, target)")
    return as_array(who, "prediction", x[0]), as_array(who, "target", x[1])


def as_matching_pair(who: str, argument: str, x: Any) -> tuple[Array, Array]:
    """`x` as two floating-point arrays of one shape and one dtype; raises `TypeError` or `ValueError` otherwise."""
    prediction, target = as_pair(who, x)
    require_floating(who, argument, prediction)
    require_one_shape(who, argument, prediction, target)
    require_one_dtype(who, argument, prediction, target)
    return prediction, target


def require_one_shape(who: str, argument: str, prediction: Array, target: Array) -> None:
    """Raise `ValueError` unless both have the same shape; nothing is broadcast."""
    if prediction.shape != target.shape:
        raise ValueError(f"{who}: {argument} has shape {prediction.shape}, target {target.shape}; expected one shape")


def require_one_dtype(who: str, argument: str, prediction: Array, target: Array) -> None:
    """Raise `TypeError` unless both have the same dtype."""
    require_dtype_of(who, argument, prediction, "target", target)


def require_batch(who: str, count: int) -> int:
    """The number of terms that the mean is taken over; raises `ValueError` when there are none."""
    if count == 0:
        raise ValueError(f"{who}: the batch is empty, its mean is not defined")
    return count


def count_examples(prediction: Array) -> int:
    """N, the size of the first axis; a scalar is one example."""
    return prediction.shape[0] if prediction.ndim else 1


def of_no_size(x: Array) -> Float[Array, "0"]:
    """What a cache keeps, in no bytes, so that dx is of x's dtype where nothing else in it is: J is wider."""
    return jnp.zeros((0,), x.dtype)


def scaled(dJ: Array, N: int, slope: Array) -> Array:
    """dJ / N times what was kept of a term's derivative, in the derivative's dtype, rounded once."""
    return cast(widen(dJ) / N * widen(slope), slope.dtype)
