"""The rotation of rotary embeddings, and a frequency for each pair of features, as it is and as models stretch it.

What is rotated is orthogonal but for its magnitude, so that its adjoint is the rotation the other way, of the same one.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.checks.hyperparameters import (
    is_number,
    plain,
    require_choice,
    require_positive,
    require_positive_or_none,
    require_size,
)
from bpref.dtypes import cast, described, wide_dtype, widen
from bpref.formulas.joined import joined

Way = Literal["linear", "ntk", "llama3", "yarn"]


class Stretch(NamedTuple):
    """How a model's positions are made to reach `factor` times as far as it was trained for, `length` positions.

    Attributes:
      way: "linear" divides all frequencies by the factor (arXiv:2306.15595); "ntk" enlarges the base, so that the
        slowest alone is divided by it; "llama3" (the code of Llama 3.1: no paper has it) divides those that turn less
        than `slow` times within `length`, leaves those that turn more than `fast` times, and goes linearly in the turns
        from one to the other between them; "yarn" (arXiv:2309.00071) does so linearly in the number of the pair, as its
        authors' code has it (the paper is linear in the turns), and multiplies by 1 + 0.1 ln factor.
      factor, length, slow, fast: as said; fast is 32 for "yarn" and 4 for "llama3", as published, if not given.
    """

    way: Way
    factor: float
    length: int = 8192
    slow: float = 1.0
    fast: float | None = None


def require_rotation(who: str, base: float, stretch: Stretch | None) -> tuple[float, Stretch | None]:
    """Both as Python has them; raise unless the base is a number above 1, without which no pair turns more slowly than
    another, and the stretch None, or a `Stretch` of which every field is in its range.
    """
    return _require_base(who, base, "base"), _require_stretch(who, stretch)


def require_rope(who: str, rope: float | None, stretch: Stretch | None) -> tuple[float | None, Stretch | None]:
    """The same of a layer that rotates with the base `rope`, or not at all where it is None."""
    if rope is not None:
        rope = _require_base(who, rope, "rope")
    elif stretch is not None:
        raise ValueError(f"{who}: there is a stretch but rope is None, expected a base: nothing is rotated")
    return rope, _require_stretch(who, stretch)


def _require_base(who: str, base: float, name: str) -> float:
    if not (is_number(base) and 1 < base < math.inf):
        raise ValueError(f"{who}: {name} is {base!r}, expected a number above 1")
    return plain(base)


def _require_stretch(who: str, stretch: Stretch | None) -> Stretch | None:
    if stretch is None:
        return None
    if not isinstance(stretch, Stretch):
        raise TypeError(f"{who}: stretch is {described(stretch)}, expected bpref.Stretch(way, factor) or None")
    require_choice(who, "stretch.way", stretch.way, get_args(Way))
    require_positive(who, "stretch.factor", stretch.factor)
    require_size(who, "stretch.length", stretch.length)
    require_positive(who, "stretch.slow", stretch.slow)
    require_positive_or_none(who, "stretch.fast", stretch.fast)
    if not stretch.slow < fast_of(stretch):
        raise ValueError(f"{who}: stretch.fast is {fast_of(stretch)!r}, expected more than slow, {stretch.slow!r}")
    return Stretch._make(map(plain, stretch))


def fast_of(stretch: Stretch) -> float:
    """`fast` as it is given, or the one of the paper."""
    return stretch.fast or (32.0 if stretch.way == "yarn" else 4.0)


def require_turned(who: str, D: int, fraction: float) -> int:
    """How many of D features are rotated; raises `ValueError` unless it is an even number from 2 to D."""
    rotated = round(fraction * D)
    if rotated % 2 or not 2 <= rotated <= D:
        raise ValueError(
            f"{who}: {rotated} of x's {D} features are rotated, expected an even number from 2 to {D} "
            f"(fraction: {fraction})"
        )
    return rotated


def frequencies(features: int, base: float, stretch: Stretch | None) -> np.ndarray:
    """Radians for each position, of each of features / 2 pairs, in float64."""
    if stretch is not None and stretch.way == "ntk":
        base = base * stretch.factor ** (features / max(features - 2, 1))
    pairs = np.arange(features // 2)
    frequency = base ** (-2.0 * pairs / features)
    if stretch is None or stretch.way == "ntk":
        return frequency
    if stretch.way == "linear":
        return frequency / stretch.factor
    fast = fast_of(stretch)
    turns = stretch.length * frequency / (2 * np.pi)
    if stretch.way == "llama3":
        kept = np.clip((turns - stretch.slow) / (fast - stretch.slow), 0, 1)
    else:
        first, last = (_pair_that_turns(n, features, base, stretch.length) for n in (fast, stretch.slow))
        first, last = max(np.floor(first), 0), min(np.ceil(last), features - 1)
        kept = 1 - np.clip((pairs - first) / max(last - first, 1e-3), 0, 1)
    return frequency * (kept + (1 - kept) / stretch.factor)


def magnitude(stretch: Stretch | None) -> float:
    """What rotated features are multiplied by."""
    return float(1 + 0.1 * np.log(stretch.factor)) if stretch is not None and stretch.way == "yarn" else 1.0


class After(NamedTuple):
    """Where positions begin that follow others: the number of these, and that of all there will be."""

    n: Array
    length: int


def rotate(
    x: Array,
    frequency: np.ndarray,
    way: int,
    size: float = 1.0,
    interleaved: bool = False,
    positions: Array | None = None,
    after: After | None = None,
) -> Array:
    """x of shape (*b, T, N, D), its first features turned by position times frequency, or back where `way` is -1.

    Without positions `(*b, T)` the angles are computed in float64: in float32, that of position 1e4 is off by 1e-3.
    These positions are 0, 1, ..., or those `after` others.
    """
    return turned(x, *_of_angles(x, positions, frequency, size, after), way, interleaved)


def rotate_by_axis(x: Array, frequencies: list[np.ndarray], way: int, interleaved: bool, positions: Array) -> Array:
    """`rotate` where each axis of positions (*b, T, A) turns pairs of its own, with frequencies of its own."""
    dtype, rank = wide_dtype(x.dtype), positions.ndim
    angle = jnp.concatenate(
        [
            cast(lax.slice_in_dim(positions, axis, axis + 1, axis=-1), dtype)[..., None]
            * jnp.asarray(frequency, dtype).reshape((1,) * rank + (-1,))
            for axis, frequency in enumerate(frequencies)
        ],
        -1,
    )
    return turned(x, jnp.cos(angle), jnp.sin(angle), way, interleaved)


def turned(x: Array, cos: Array, sin: Array, way: int, interleaved: bool) -> Array:
    """The first features of x turned by angles of these cosines and sines (*b, T, 1, pairs), or back."""
    rotated = 2 * cos.shape[-1]
    sin = sin * way
    first, second = _pairs(widen(x[..., :rotated]), interleaved)
    pairs = first * cos - second * sin, second * cos + first * sin
    y = cast(_unpaired(*pairs, interleaved), x.dtype)
    return jnp.concatenate([y, x[..., rotated:]], -1) if rotated < x.shape[-1] else y


def _of_angles(
    x: Array, positions: Array | None, frequency: np.ndarray, size: float, after: After | None
) -> tuple[Array, Array]:
    """c cos a and c sin a, (*b, T, 1, pairs), or without the batch axes."""
    dtype = wide_dtype(x.dtype)
    if positions is None:
        T, pairs = x.shape[-3] if after is None else after.length, len(frequency)
        angle = np.arange(T)[:, None] * frequency
        shape = (1,) * (x.ndim - 3) + (T, 1, pairs)
        cos, sin = (jnp.asarray((size * f(angle)).reshape(shape), dtype) for f in (np.cos, np.sin))
        if after is not None:
            cos, sin = (lax.dynamic_slice_in_dim(v, after.n, x.shape[-3], v.ndim - 3) for v in (cos, sin))
        return cos, sin
    frequencies = jnp.asarray(frequency, dtype).reshape((1,) * (positions.ndim + 1) + (-1,))
    angle = cast(positions, dtype)[..., None, None] * frequencies
    return size * jnp.cos(angle), size * jnp.sin(angle)


def _pairs(x: Array, interleaved: bool) -> tuple[Array, Array]:
    half = x.shape[-1] // 2
    return (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])


def _unpaired(first: Array, second: Array, interleaved: bool) -> Array:
    if interleaved:
        return jnp.stack([first, second], -1).reshape(*first.shape[:-1], 2 * first.shape[-1])
    return joined(first, second)


def _pair_that_turns(times: float, features: int, base: float, length: int) -> float:
    return features * np.log(length / (times * 2 * np.pi)) / (2 * np.log(base))
