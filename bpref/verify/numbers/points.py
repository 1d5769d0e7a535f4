"""Random points at which a derivation is tried: like the values that were given, but in general position.

What a given array evidently is, a fresh one is too: symmetric, triangular, positive, rows that sum to one or have
unit length, zeros and ones. A derivation may rest on such a property, and is not accused for it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bpref.programs import Typed
from bpref.verify.oracle import Arrays, Leaf

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Generator = np.random.Generator

STRENGTHS = (0.3, 0.03, 1e-3)
"""How far fresh values lie from given ones, relatively; a smaller one is tried where the function is not defined."""


def generator(key: int, *stream: int) -> Generator:
    """Random numbers for a check. No stream of them equals what `default_rng(key)` gives: inputs are often made so."""
    return np.random.default_rng([0x62707265, key, *stream])


def is_specification(v: object) -> "TypeIs[jax.ShapeDtypeStruct]":
    return isinstance(v, jax.ShapeDtypeStruct)


def is_key(v: Typed) -> bool:
    """Whether it holds (or specifies) JAX's typed random keys."""
    return jnp.issubdtype(v.dtype, jax.dtypes.prng_key)


FILLS: tuple[Callable[[Generator, tuple[int, ...]], np.ndarray], ...] = (
    lambda rng, shape: rng.normal(size=shape),
    lambda rng, shape: rng.uniform(0.2, 0.8, shape),
    lambda rng, shape: _positive_definite(rng, shape),
)
"""What a specification is filled with: normal values; or, where the function is not defined there, values between
0 and 1; or positive definite matrices."""


def by_zipfs_law(rng: Generator, shape: tuple[int, ...], below: int) -> np.ndarray:
    """Integers from 0 to `below`, few of them often and many seldom, as words of a text are."""
    weights = 1 / np.arange(1, below + 1)
    return rng.permutation(below)[rng.choice(below, shape, p=weights / weights.sum())]


def normal(rng: Generator, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Normal random numbers, complex ones for a complex dtype."""
    v = rng.normal(size=shape)
    return (v + 1j * rng.normal(size=shape) if jnp.issubdtype(dtype, jnp.complexfloating) else v).astype(dtype)


ONE_SIGNED = {(0, 1): "negative", (2, 0): "positive"}
"""Which cotangents of which points are so everywhere: what is wrong for such alone is right for all that are drawn."""


def cotangents(rng: Generator, count: int, shape: tuple[int, ...], dtype: DTypeLike, i: int) -> np.ndarray:
    """A stack of so many at point number i: normal ones but for those `ONE_SIGNED`.

    At the third point the first two are u and v = 2/3 u, but at one place: 2u - 3v, which the law of linearity asks
    for, is then 0 everywhere else, as the cotangent of a row of a Jacobian is.
    """
    dys = normal(rng, (count, *shape), dtype)
    if np.iscomplexobj(dys) or not dys[0].size:
        return dys
    if i == 2:
        quarters = np.ceil(4 * np.abs(dys[0].astype(float))) / 4  # few digits, of which no dtype rounds any
        signs = np.where(np.arange(quarters.size) == rng.integers(quarters.size), -1, 1).reshape(shape)
        dys[0], dys[1] = 3 * quarters, 2 * quarters * signs
    if i == 0:
        dys[1] = -np.abs(dys[1])
    return dys


def fill(spec: Typed, rng: Generator, fill_with: int, smallest: int, skewed: bool = False) -> np.ndarray:
    """An array for a specification; integers are below `smallest`, so that they may index any axis in sight.

    `skewed` ones are drawn by Zipf's law.
    """
    if is_key(spec):
        key = jax.random.key(int(rng.integers(2**31)))
        return jax.random.split(key, spec.shape)  # type: ignore[return-value]  # the one array that NumPy has not
    if jnp.issubdtype(spec.dtype, jnp.bool_):
        return rng.random(spec.shape) < 0.5
    if jnp.issubdtype(spec.dtype, jnp.integer):
        draw = by_zipfs_law(rng, spec.shape, smallest) if skewed else rng.integers(0, smallest, spec.shape)
        return draw.astype(spec.dtype)
    v = FILLS[fill_with](rng, spec.shape)
    if jnp.issubdtype(spec.dtype, jnp.complexfloating):
        v = v + 1j * rng.normal(size=spec.shape)
    return v.astype(spec.dtype)


def fill_specifications(leaves: Sequence[Leaf], rng: Generator) -> Arrays:
    """The leaves, with random values where there is a specification only."""
    smallest = smallest_axis(leaves)
    return [fill(v, rng, 0, smallest) if is_specification(v) else v for v in leaves]


def smallest_axis(leaves: Sequence[Typed]) -> int:
    """The size of the smallest axis above 1 of the floating-point arrays, or 2."""
    sizes = [n for v in leaves if jnp.issubdtype(v.dtype, jnp.inexact) for n in v.shape if n > 1]
    return min(sizes, default=2)


def near(v: np.ndarray, rng: Generator, strength: float) -> np.ndarray:
    """An array like `v`, in its dtype; integers, keys, and what holds only zeros and ones or signs, as they are."""
    if not jnp.issubdtype(v.dtype, jnp.inexact) or v.size == 0 or not np.all(np.isfinite(v)) or _is_discrete(v):
        return v
    wide = np.asarray(v, np.complex128 if jnp.issubdtype(v.dtype, jnp.complexfloating) else np.float64)
    return alike(_moved(wide, rng, strength), wide).astype(v.dtype)


def leaves_of_point(
    leaves: Sequence[Leaf], rng: Generator, i: int, attempt: int, skewed: bool = False, moves: Sequence[bool] = ()
) -> Arrays:
    """The leaves at point number i, where that was attempted so often: those given at the first, and fresh ones near.

    Specifications are filled; `skewed` as `fill` has it. With `moves`, only the leaves where it is True are moved.
    """
    smallest = smallest_axis(leaves)

    def one(v: Leaf, is_moved: bool) -> np.ndarray:
        if is_specification(v):
            return fill(v, rng, attempt, smallest, skewed)
        return near(v, rng, STRENGTHS[attempt]) if i and is_moved else v

    return [one(v, is_moved) for v, is_moved in zip(leaves, moves or [True] * len(leaves), strict=True)]


def nudged(values: Arrays, rng: Generator, eps: float | Sequence[float]) -> Arrays:
    """Every floating-point element moved by up to `eps` of itself, one number for all or one for each array."""
    each = eps if isinstance(eps, Sequence) else [eps] * len(values)
    return [
        v * (1 + e * rng.uniform(-1, 1, v.shape)) if jnp.issubdtype(v.dtype, jnp.inexact) else v
        for v, e in zip(values, each, strict=True)
    ]


def _moved(v: np.ndarray, rng: Generator, strength: float) -> np.ndarray:
    """Every element changed, also the zeros: by a part of itself, and where signs are mixed by one of the whole."""
    size = float(np.sqrt(np.mean(np.abs(v) ** 2))) or 1.0
    moved = v * np.exp(strength * rng.normal(size=v.shape))
    noise = strength * size * rng.normal(size=v.shape)
    if np.iscomplexobj(v):
        return moved + noise + 1j * strength * size * rng.normal(size=v.shape)
    if np.all(v == 0) or (np.any(v < 0) and np.any(v > 0)):
        return moved + noise
    sign = 1.0 if np.all(v >= 0) else -1.0
    return np.where(v == 0, sign * np.abs(noise), moved)


def alike(fresh: np.ndarray, given: np.ndarray) -> np.ndarray:
    """`fresh` with what is special about `given`: symmetric, triangular, rows on the simplex or on the sphere.

    It may be of other sizes. A matrix of one number throughout, as `jnp.ones((3, 3))`, stands for any matrix.
    """
    if given.ndim > 1 and given.shape[-1] == given.shape[-2] > 1 and np.any(given != given.flat[:1]):
        if _near(given, np.conj(np.swapaxes(given, -1, -2)), 1e-6):
            return (fresh + np.conj(np.swapaxes(fresh, -1, -2))) / 2
        for triangle in (np.tril, np.triu):
            if not np.any(given - triangle(given)):
                return triangle(fresh)
    if given.size and given.ndim and given.shape[-1] > 1 and not np.iscomplexobj(given):
        if given.min() >= 0 and _near(given.sum(-1), 1.0, 1e-2):
            return _divided(fresh, fresh.sum(-1, keepdims=True))
        if _near((given**2).sum(-1), 1.0, 1e-2):
            return _divided(fresh, np.sqrt((fresh**2).sum(-1, keepdims=True)))
    return fresh


def _divided(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Rows of size 1; one of nothing but zeros, as a one-hot row that was cut off, has a 1 at its first place."""
    first = np.arange(rows.shape[-1]) == 0
    return np.where(sizes == 0, first, rows / np.where(sizes == 0, 1, sizes))


def _near(v: np.ndarray, w: np.ndarray | float, tolerance: float) -> bool:
    return bool((np.abs(v - w) <= tolerance * np.abs(w)).all())


def _is_discrete(v: np.ndarray) -> bool:
    """Whether it is a mask, one-hot or signs, and not just zeros or just ones."""
    some = np.abs(np.asarray(v).reshape(-1)[:10_000])
    return bool(((some == 0) | (some == 1)).all()) and np.unique(v).size == 2


def _positive_definite(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) < 2 or shape[-1] != shape[-2]:
        return rng.uniform(0.2, 0.8, shape)
    root = rng.normal(size=shape)
    return root @ np.swapaxes(root, -1, -2) / shape[-1] + np.eye(shape[-1])


def exactly(v: np.ndarray) -> np.ndarray:
    """A float64 array whose values were rounded to another dtype, with what was special about them made exact."""
    if not jnp.issubdtype(v.dtype, jnp.inexact) or v.size == 0 or not np.all(np.isfinite(v)) or _is_discrete(v):
        return v
    return alike(v, v)
