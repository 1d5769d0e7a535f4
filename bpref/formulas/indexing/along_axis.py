"""One axis of an array: which one is meant, and a recurrence that runs along it.

On a CPU a recurrence takes one step after the other, which reads memory once. Elsewhere that would leave all units but
a few idle, T times: there the same outputs come from stretches that are joined two by two, in 2 log2 T steps.
"""

from collections.abc import Callable
from functools import wraps

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.checks.hyperparameters import is_integer
from bpref.layer import Layer, each_position
from bpref.loops import scan


def axis_of(who: str, argument: str, x: Array, axis: int) -> int:
    """`axis` counted from the first; raises `ValueError` when x has no such axis."""
    ndim = len(x.shape)
    if not is_integer(axis) or not -ndim <= axis < ndim:
        raise ValueError(f"{who}: {argument} has shape {x.shape}, which has no axis {axis!r}")
    return axis % ndim


def require_axis(who: str, x: Array, axis: int, symbol: str = "C") -> int:
    """Which axis of x is meant, counted from the last: -1 is the last.

    Args:
      who: the layer, for messages.
      x: anything with a shape and a dtype.
      axis: counted from the first, or if negative from the last.
      symbol: what the derivation calls the size of that axis.

    Raises:
      ValueError: x has no such axis, or nothing along it.
    """
    place = axis_of(who, "x", x, axis)
    if x.shape[place] == 0:
        raise ValueError(f"{who}: x has shape {x.shape}, expected at least one element {symbol} in axis {axis}")
    return place - len(x.shape)


def scalar_as_line(layer: Layer, axis: int) -> Layer:
    """The layer along an axis, and of a scalar what it makes of a line of one element, as PyTorch has it.

    Its one element is along axis 0, or -1; y and dx are scalars again.
    """

    @wraps(layer.forward)
    def forward(params, x):
        if axis not in (0, -1) or getattr(x, "shape", None) != ():
            return layer.forward(params, x)
        y, cache = layer.forward(params, x[None])
        return jax.tree.map(lambda v: v[0], y), cache

    def backward(params, cache, dy):
        if all(v.ndim for v in jax.tree.leaves(dy)):
            return layer.backward(params, cache, dy)
        dparams, dx = layer.backward(params, cache, jax.tree.map(lambda v: v[None], dy))
        return dparams, None if dx is None else dx[0]

    decoding = each_position if axis == -1 and layer.held is None else None
    return layer._replace(forward=forward, backward=backward, decoding=decoding)


def run_along(
    step: Callable[..., tuple[PyTree, Array]],
    start: Callable[[Array], PyTree],
    elements: tuple[Array, ...],
    axis: int,
    reverse: bool,
    joined: Callable[..., Array],
) -> Array:
    """The outputs of a recurrence along one axis, all other axes at once; the platform chooses how.

    Args:
      step: `(state, *elements at i) -> (state, output at i)`.
      start: an element's slice, for its shape and dtype -> the state before the first step.
      elements: arrays of one shape.
      axis: the axis that i counts.
      reverse: whether the last i comes first.
      joined: `(*elements, axis, reverse) -> outputs`, the same outputs for machines with many units; the axis is
        counted from the first.
    """
    if elements[0].size == 0:
        return elements[0]
    axis %= elements[0].ndim

    def in_order(*elements):
        moved = tuple(jnp.moveaxis(v, axis, 0) for v in elements)
        state = start(moved[0][0])
        out = scan(lambda state, at: step(state, *at), state, moved, reverse=reverse)[1]
        return jnp.moveaxis(out, 0, axis)

    return lax.platform_dependent(*elements, cpu=in_order, default=lambda *elements: joined(*elements, axis, reverse))


def join_affine(a: Array, b: Array, axis: int, reverse: bool) -> tuple[Array, Array]:
    """The product of all a so far, and h of h_t = a_t h_{t-1} + b_t from h_0 = 0, in 2 log2 T steps.

    Two stretches are one, since (a, b) then (a', b') is (a a', a' b + b'); nothing is divided.
    """

    def then(first, second):
        a, b = first
        a_later, b_later = second
        return a * a_later, a_later * b + b_later

    return lax.associative_scan(then, (a, b), reverse=reverse, axis=axis)


def shifted(x: Array, axis: int, reverse: bool, first: float) -> Array:
    """Each element's predecessor along an axis, `first` for the one that has none; the successor if `reverse`."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-1, 1, 0) if reverse else (1, -1, 0)
    return lax.pad(x, jnp.asarray(first, x.dtype), config)
