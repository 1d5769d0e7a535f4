"""Where a prepared subject is tried: fresh points near the given values, with cotangents, and what is seen there."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from bpref.verify.examine import Point, run_in_float64, widened
from bpref.verify.numbers import points as fresh
from bpref.verify.prepare import Prepared
from bpref.verify.program import COTANGENTS, Seen

POINTS = 3
"""How many points a derivation is tried at; the first has the values that were given."""

SCALES = (1.0, 2.0**20, 2.0**-20)
"""What the cotangents are multiplied by at each point, so that a clip is met wherever it is set."""


def scales(linear: bool) -> tuple[float, ...]:
    """What the cotangents are multiplied by at each point; all small for a backward that is not meant to be linear."""
    return SCALES if linear else (SCALES[-1],) * POINTS


def sample(ready: Prepared, key: int, linear: bool) -> tuple[list[Point], list[Point], list[Seen]]:
    """The points of a check: in the working dtypes, in float64 as they were run, and what was seen there."""
    narrow, wide, seen = zip(*(_sample(ready, key, i, scale) for i, scale in enumerate(scales(linear))), strict=True)
    if not linear:
        narrow = [Point(p.leaves, [(v * SCALES[-1]).astype(v.dtype) for v in p.dys]) for p in narrow]
    return list(narrow), list(wide), list(seen)


def _sample(ready: Prepared, key: int, i: int, scale: float) -> tuple[Point, Point, Seen]:
    """Point number i: fresh values ever nearer to the given ones, until the function is defined there."""
    attempts = (_attempt(ready, key, i, n, scale) for n in range(len(fresh.STRENGTHS)))
    tried = next(attempts)
    while not _is_defined(tried[2]) and (again := next(attempts, None)):
        tried = again
    return tried


def _attempt(ready: Prepared, key: int, i: int, attempt: int, scale: float) -> tuple[Point, Point, Seen]:
    rng = fresh.generator(key, i, attempt)
    point = Point(_leaves(ready.subject.leaves, rng, i, attempt), [_cotangents(v, rng) for v in ready.outputs])
    exact = Point([fresh.exactly(v) for v in widened(point.leaves)], [v * scale for v in widened(point.dys)])
    (values,) = run_in_float64(ready.wide.run, [exact])
    return point, exact, values


def _leaves(leaves: list[Any], rng: np.random.Generator, i: int, attempt: int) -> list[Any]:
    smallest = fresh.smallest_axis(leaves)
    return [
        fresh.fill(v, rng, attempt, smallest, skewed=i == 1)
        if fresh.is_specification(v)
        else v
        if i == 0
        else fresh.near(v, rng, fresh.STRENGTHS[attempt])
        for v in leaves
    ]


def _cotangents(output: Any, rng: np.random.Generator) -> np.ndarray:
    v = rng.normal(size=(COTANGENTS, *output.shape))
    if jnp.issubdtype(output.dtype, jnp.complexfloating):
        v = v + 1j * rng.normal(size=v.shape)
    return v.astype(output.dtype)


def _is_defined(seen: Seen) -> bool:
    return all(np.all(np.isfinite(v)) for v in (*seen.y_oracle.values(), *seen.oracle.values()))
