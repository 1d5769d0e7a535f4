"""The recurrence h_t = a_t h_{t-1} + b_t, element by element, and the one that runs back through it.

With G_t the cotangent of all that h_t reaches, G_t = dh_t + a_{t+1} G_{t+1}: the same recurrence from the other end,
with a moved by one place. Time is the axis before the last.
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jax import Array, lax

from bpref.formulas.indexing.along_axis import join_affine, shifted
from bpref.loops import scan

Method = Literal["sequential", "associative"]

TIME = -2


def require_method(who: str, method: str) -> None:
    """Raise `ValueError` unless there is such a way of running a recurrence."""
    if method not in ("sequential", "associative"):
        raise ValueError(f"{who}: method is {method!r}, expected 'sequential' or 'associative'")


def run_recurrence(a: Array, b: Array, start: Array | None, method: Method, reverse: bool = False) -> Array:
    """h of h_t = a_t h_{t-1} + b_t; (..., T, d), and the start (..., d), zeros where it is `None`."""
    if b.size == 0:
        return b
    if method == "associative":
        scale, h = join_affine(a, b, b.ndim + TIME, reverse)
        return h if start is None else h + scale * jnp.expand_dims(start, TIME)

    return _scan(advance, a, b, start, reverse)


def advance(h: Array, at: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
    """h_t twice, of h_{t-1}, a_t, b_t, and where the step begins anew, if any does: there h_t is b_t."""
    a, b, new = at
    h = unless(new, a * h) + b
    return h, h


def run_back(a: Array, dh: Array, method: Method, reverse: bool = False) -> Array:
    """G of G_t = dh_t + a_{t+1} G_{t+1}, where the recurrence itself was run with `reverse`."""
    if dh.size == 0:
        return dh
    if method == "associative":
        a_next = shifted(a, a.ndim + TIME, not reverse, 0.0)
        return run_recurrence(a_next, dh, None, method, not reverse)

    return _scan(retreat, a, dh, None, not reverse)


def retreat(from_later: Array, at: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
    """a_t G_t, 0 where the step begins anew, and G_t, of a_{t+1} G_{t+1}, a_t, dh_t and where that is, if anywhere."""
    a, dh, new = at
    G = dh + from_later
    return unless(new, a * G), G


def unless(new: Array | None, z: Array) -> Array:
    """z, and 0 where a step begins anew: a product with a gate of 0 would be NaN of what is not finite."""
    return z if new is None else jnp.where(new, 0, z)


def before(h: Array, start: Array | None, reverse: bool = False) -> Array:
    """h_{t-1} for every t, the start for the first."""
    if start is None or h.shape[TIME] == 0:
        return shifted(h, h.ndim + TIME, reverse, 0.0)
    first = jnp.expand_dims(start, TIME)
    inner = lax.slice_in_dim(h, 1, None, axis=TIME) if reverse else lax.slice_in_dim(h, 0, -1, axis=TIME)
    return jnp.concatenate((inner, first) if reverse else (first, inner), TIME)


def last(h: Array, start: Array) -> Array:
    """h after all steps: the start where there is none."""
    return h[..., -1, :] if h.shape[TIME] else start


def start_cotangent(a: Array, G: Array, reverse: bool = False) -> Array:
    """dh_0 = a_1 G_1, of the step that comes first; 0 where there is none."""
    if G.shape[TIME] == 0:
        return jnp.zeros((*G.shape[:TIME], G.shape[-1]), G.dtype)
    first = -1 if reverse else 0
    return a[..., first, :] * G[..., first, :]


def _scan(step: Callable[..., tuple[Array, Array]], a: Array, b: Array, start: Array | None, reverse: bool) -> Array:
    along = jnp.moveaxis(a, TIME, 0), jnp.moveaxis(b, TIME, 0), None
    start = jnp.zeros_like(along[1][0]) if start is None else start
    return jnp.moveaxis(scan(step, start, along, reverse=reverse)[1], 0, TIME)
