"""What every reduction shares: which axes it removes, and the way back to an array that has them, of size 1."""

import math

import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import is_integer
from bpref.formulas.long_sums import sum_over

Axis = int | tuple[int, ...] | None
"""One axis, several, or all of them."""


def require_axes(who: str, axis: Axis, x: Array) -> tuple[int, ...]:
    """The axes as numbers from 0, in order; raises unless x has each of them once.

    A scalar is one value, along axis 0 too, as in NumPy and PyTorch, but has no axis to remove.
    """
    rank = len(x.shape)
    width = max(rank, 1)
    named = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    for one in named:
        if not is_integer(one) or not -width <= one < width:
            raise ValueError(f"{who}: axis is {axis!r}, x has {rank} axes (x: {x.shape})")
    if len({one % width for one in named}) < len(named):
        raise ValueError(f"{who}: axis is {axis!r}, which names an axis of x twice (x: {x.shape})")
    return numbered(axis, rank)


def numbered(axis: Axis, rank: int) -> tuple[int, ...]:
    """The axes of an array of this rank, counted from 0, in order."""
    if axis is None or rank == 0:
        return tuple(range(rank))
    return tuple(sorted(one % rank for one in (axis if isinstance(axis, tuple) else (axis,))))


def require_values(who: str, x: Array, axes: tuple[int, ...]) -> int:
    """How many values are reduced to one; raises `ValueError` when there are none."""
    n = count(x.shape, axes)
    if n == 0:
        raise ValueError(f"{who}: x has shape {x.shape}, expected at least one value along axes {axes}")
    return n


def count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """How many values of an array of this shape are reduced to one."""
    return math.prod(shape[a] for a in axes)


def mean_of(x: Array, axes: tuple[int, ...]) -> Array:
    """The mean over the reduced axes, of size 1 along them; where all values are equal, exactly what they are.

    The mean of seven times 0.1 rounds, and deviations from it would all be of one sign. What it is off by is their own
    mean; or the first of equal values less it, which an accelerator finds while it sums, and a CPU would choose again
    for each element.
    """
    n = count(x.shape, axes)
    mean = sum_over(x, axes, keepdims=True) / n

    def of_deviations(x, mean):
        return sum_over(x - mean, axes, keepdims=True) / n

    def of_equal_values(x, mean):
        first = lax.slice(x, (0,) * x.ndim, [1 if a in axes else size for a, size in enumerate(x.shape)])
        is_equal = jnp.max(jnp.abs(x - first), axes, keepdims=True) == 0
        return jnp.where(is_equal, first - mean, 0)

    held = lax.stop_gradient((x, mean))
    return mean + lax.platform_dependent(*held, cpu=of_deviations, default=of_equal_values)


def shared_out(is_extreme: Array, dy: Array, c: Array) -> Array:
    """dy / c for each of the c values that are equally large, 0 for others; NaN for all of them where c is 0.

    That is where one is NaN, which is the largest and equals nothing. It is said, not left to 0 times dy / 0: a
    compiler makes a choice of a product with 0 and 1.
    """
    return jnp.where(is_extreme, dy / c, jnp.where(c == 0, jnp.nan, jnp.zeros_like(c)))


def without(v: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """A result that has size 1 along the reduced axes, in the shape that was asked for."""
    return v if keepdims else lax.squeeze(v, axes)


def restored(v: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """A result, or its cotangent, with size 1 along the reduced axes again."""
    return v if keepdims else lax.expand_dims(v, axes)
