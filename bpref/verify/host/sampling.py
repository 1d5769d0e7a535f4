"""Where a called function is tried: points at which it is defined, in the widest dtype that it takes, and what came."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.verify.examining.prepare import x64_for
from bpref.verify.examining.program import COTANGENTS
from bpref.verify.examining.refusals import CannotCheck
from bpref.verify.host.called import Called, copies, widened
from bpref.verify.host.oracles import Oracle
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.differences import measured_noise
from bpref.verify.oracle import Arrays, is_differentiable

POINTS = 2
"""How many points a called function is tried at: each call takes its time."""

DEAF = 1e-12
"""A function noisier than this, relatively, computes in less than double precision, whatever dtype it returns."""


class Sample(NamedTuple):
    """One point and one cotangent.

    Attributes:
      leaves, y, dy: the arguments, the output, its cotangent: zero where the output is not finite.
      hand, oracle, bars: for each argument what came, the oracle's, and how sure that is.
      kinks, projections, chosen: as in `Numerical`.
      reference: the reference's output, or None.
    """

    leaves: Arrays
    y: Arrays
    dy: Arrays
    hand: Arrays
    oracle: Arrays
    bars: Arrays
    kinks: Arrays
    projections: list[tuple]
    chosen: list[np.ndarray | None]
    reference: Arrays | None

    @property
    def is_finite(self) -> bool:
        return all(np.all(np.isfinite(v)) for v in self.y if is_differentiable(v))


def sampled(c: Called, oracle: Oracle, key: int, dtype: str, points: Sequence[int]) -> list[Sample]:
    """Every sample: two cotangents at each point; `dtype`: that of the arguments, empty for their own."""
    samples = [s for i in points for s in _samples(c, oracle, key, i, dtype)]
    shapes = [[v.shape for v in s.y] for s in samples]
    if any(other != shapes[0] for other in shapes):
        raise CannotCheck(f"{c.name}: the shapes of its outputs change with the values of its arguments")
    return samples


def point(c: Called, key: int, i: int, dtype: str = "") -> Arrays:
    """The arguments at point i; the first has the values that were given. Drawn anew until the output is finite."""
    best: tuple[int, Arrays] | None = None
    refusal: Exception | None = None
    for attempt in range(len(fresh.STRENGTHS)):
        rng = fresh.generator(key, i, 8, attempt)
        leaves = fresh.leaves_of_point(c.leaves, rng, i, attempt, moves=c.differentiable)
        leaves = widened(leaves, c.differentiable, dtype) if dtype else leaves
        try:
            with np.errstate(all="ignore"):
                undefined = sum(int(np.sum(~np.isfinite(v))) for v in _plain(c, leaves) if is_differentiable(v))
        except (ArithmeticError, ValueError) as error:  # outside of its domain
            refusal = refusal or error
            continue
        best = (undefined, leaves) if best is None or undefined < best[0] else best
        if not undefined:
            break
    if best is None:
        assert refusal is not None
        raise refusal
    return best[1]


def _plain(c: Called, leaves: Arrays) -> Arrays:
    """The outputs, in the mode in which the function is swept: a kernel may not trace in the other."""
    with x64_for([v.dtype for v in leaves], c.x64):
        return c.plain(leaves)


def cotangent(y: Arrays, rng: np.random.Generator, scale: float = 1.0) -> Arrays:
    """A random one, in the output's dtypes; zero where the output is an integer or not finite."""

    def one(v: Array | np.ndarray) -> np.ndarray:
        if not is_differentiable(v):
            return np.zeros(v.shape, v.dtype)
        dy = rng.normal(size=v.shape)
        dy = np.asarray(dy + 1j * rng.normal(size=v.shape) if np.iscomplexobj(v) else dy)
        return np.where(np.isfinite(v), scale * dy, 0).astype(v.dtype)

    return [one(v) for v in y]


def _samples(c: Called, oracle: Oracle, key: int, i: int, dtype: str) -> Iterator[Sample]:
    rng = fresh.generator(key, i, 9)
    leaves = point(c, key, i, dtype)
    y = _plain(c, copies(leaves))
    reference = oracle.y(copies(leaves)) if oracle.y else None
    _require_same_outputs(c, y, reference)
    dys = [cotangent(y, rng, c.scale) for _ in range(COTANGENTS)]
    found = oracle.cotangents(leaves, dys, rng, eps_of(y))
    for dy, numbers in zip(dys, found, strict=True):
        with x64_for([v.dtype for v in leaves], c.x64):
            hand = c.sweep(copies(leaves))[1](copies(dy))
        yield Sample(
            leaves,
            y,
            dy,
            hand,
            list(numbers.cotangents),
            list(numbers.bars),
            list(numbers.kinks),
            list(numbers.projections),
            list(numbers.chosen),
            reference,
        )


def _require_same_outputs(c: Called, y: Arrays, reference: Arrays | None) -> None:
    mine, other = ([str(list(v.shape)) for v in values] for values in (y, reference or y))
    if mine != other:
        came, expected = (", ".join(shapes) or "nothing" for shapes in (other, mine))
        raise CannotCheck(f"the reference returns {came}, {c.name} returns {expected}; expected the same")


def eps_of(y: Arrays) -> float:
    """The coarsest rounding of the floating-point arrays among these."""
    return max((float(jnp.finfo(v.dtype).eps) for v in y if is_differentiable(v)), default=2.0**-52)


def widest(c: Called, key: int, is_sharp: bool) -> str:
    """The widest dtype that the function takes and returns; empty for its own.

    Where the oracle `is_sharp`, a function that takes double precision and computes in less is no judge in it.
    """
    own = max(_bits(v.dtype) for v, d in zip(c.leaves, c.differentiable, strict=True) if d)
    for dtype in ("float64", "float32"):
        if _bits(jnp.dtype(dtype)) > own and _runs_in(c, key, dtype) and not (is_sharp and _is_deaf(c, key, dtype)):
            return dtype
    return ""


def _runs_in(c: Called, key: int, dtype: str) -> bool:
    bits = _bits(jnp.dtype(dtype))
    try:
        with np.errstate(all="ignore"):
            leaves = widened(point(c, key, 0), c.differentiable, dtype)
            with x64_for([v.dtype for v in leaves], c.x64):
                y, pull = c.sweep(leaves)
                came = [v for v in pull(cotangent(y, fresh.generator(key, 10))) if isinstance(v, np.ndarray)]
    except Exception:  # whatever it is, it says that this dtype is not for this function
        return False
    return all(_bits(v.dtype) >= bits for v in [*y, *came] if is_differentiable(v))


def _is_deaf(c: Called, key: int, dtype: str) -> bool:
    """Whether it rounds to less than double precision inside, as its noise shows."""
    if dtype != "float64":
        return False
    leaves = widened(point(c, key, 0), c.differentiable)

    def call(values: Arrays) -> np.ndarray:
        return np.concatenate([v.reshape(-1) for v in c.plain(list(values)) if is_differentiable(v)])

    y = call(leaves)
    seen = (y != 0) & np.isfinite(y)
    noise = measured_noise(call, leaves, y, 2.0**-52, np.dtype(np.float64))
    return bool(np.any(seen)) and float(np.median(noise[seen] / np.abs(y[seen]))) > DEAF


def _bits(dtype: DTypeLike) -> int:
    return jnp.finfo(dtype).nmant
