"""The precision of a called function: its errors in a working dtype, beside autodiff's or the attainable.

The truth is the oracle's in float64, from the very inputs that the working dtype holds. Where the oracle is numerical,
its bars are too wide for that, and the truth is what the function and its backward give in float64, which the oracle
has vouched for.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bpref.verify.examining.prepare import x64_for
from bpref.verify.examining.program import COTANGENTS
from bpref.verify.examining.rows import FACTOR, Row, errors, fault, has_value
from bpref.verify.examining.subject import Entry
from bpref.verify.host.called import Called, copies, in_dtype, widened
from bpref.verify.host.oracles import MARGIN, MOVES, Oracle, jumps, nudged
from bpref.verify.host.sampling import POINTS, cotangent, point
from bpref.verify.numbers import points as fresh
from bpref.verify.oracle import Arrays, is_differentiable

HALF = 4
"""What `FACTOR` is for a dtype of two bytes, which has no five bits to lose."""

AUTODIFF, ATTAINABLE = "autodiff", "attainable"

STEP = 2.0**-18
"""How far inputs are moved, relatively, so that what bends of a smooth function is no more than its rounding."""

LOST = 1e-11
"""More than this of the terms of a cotangent is no rounding in double precision."""


class Compared(NamedTuple):
    """One value in a working dtype, a sample along the first axis: the hand's, the truth, and what is possible.

    Attributes:
      hand, truth, other: `other` is autodiff's, or the truth rounded once.
      effect: what moving the inputs by their rounding did to the truth.
      beside: which of the two `other` is.
      is_defined: whether the function itself has a value in that dtype, at every sample.
    """

    hand: np.ndarray
    truth: np.ndarray
    other: np.ndarray
    effect: np.ndarray
    beside: str
    is_defined: bool

    def row(self, where: str) -> Row:
        """Its errors, and whether they are worse than possible in units that rounding the inputs makes."""
        row = errors(where, self.hand, self.other, self.truth, beside=self.beside)
        dtype = self.hand.dtype
        with np.errstate(over="ignore"):
            known = np.isfinite(self.truth.astype(dtype))
        truth = np.where(known, self.truth, 0)
        moved = truth + np.where(known & np.isfinite(self.effect), self.effect, 0)
        factor = FACTOR if jnp.finfo(dtype).nmant >= 23 else HALF
        unit = float(jnp.finfo(dtype).eps) / 2
        return row._replace(
            fault=fault(row, truth, self.is_defined, unit, lambda: [moved], factor=factor, is_moved=True)
        )


def compared(c: Called, oracle: Oracle, key: int, dtypes: Sequence[np.dtype], vouched: set[str]) -> dict[str, Compared]:
    """Every differentiable argument, and the output where there is a reference, in these dtypes of the leaves.

    Args:
      c, oracle, key: as for `sampled`.
      dtypes: of every leaf.
      vouched: the arguments whose backward is known to be right in float64, where the oracle is not exact.

    Raises:
      Whatever the function raises in these dtypes.
    """
    parts: dict[str, list[tuple]] = {}
    points: list[tuple[Arrays, list[Arrays]]] = []
    is_defined = True
    for i in range(POINTS):
        here, at, has = _at(c, oracle, key, i, dtypes, vouched)
        points.append(at)
        is_defined &= has
        for name, part in here:
            parts.setdefault(name, []).append(part)
    found = {name: _stacked(values, is_defined) for name, values in parts.items()}
    for n, name in enumerate(c.names):
        if oracle.is_exact and name in found and found[name].row(name).is_coarse:
            # In few digits ties are common: there the truth is anything in between. In more, terms may cancel inside.
            torn, (hand, truth) = jumps(c, oracle, points, n), found[name][:2]
            is_between = (torn > 0) & (np.abs(hand - truth) <= torn)
            found[name] = found[name]._replace(hand=np.where(is_between, truth.astype(hand.dtype), hand))
            effect = np.maximum(found[name].effect, torn)
            if jnp.finfo(dtype := found[name].hand.dtype).nmant >= 23:
                effect = np.maximum(effect, _inside(oracle, key, points, n, dtype))
            found[name] = found[name]._replace(effect=effect)
    return found


def _inside(
    oracle: Oracle, key: int, points: list[tuple[Arrays, list[Arrays]]], n: int, dtype: DTypeLike
) -> np.ndarray:
    """How far rounding to a dtype, inside the oracle, moves its cotangent of leaf `n`: as in float64, in proportion."""
    assert oracle.in_float64 is not None
    more = float(jnp.finfo(dtype).eps) / float(np.finfo(np.float64).eps)
    found = []
    for leaves, dys in points:
        y = oracle.in_float64(leaves, [])[0]
        found += [more * of_dy[n] for of_dy in roughness([_of(oracle)], leaves, y, dys, fresh.generator(key, n, 16))]
    return np.stack(found)


def _at(
    c: Called, oracle: Oracle, key: int, i: int, dtypes: Sequence[np.dtype], vouched: set[str]
) -> tuple[list[tuple[str, tuple]], tuple[Arrays, list[Arrays]], bool]:
    """What was compared at one point, by name, that point in float64, and whether the function has a value there."""
    rng = fresh.generator(key, i, 11)
    own = point(c, key, i)
    leaves = [v.astype(d) if keep else v for v, d, keep in zip(own, dtypes, c.differentiable, strict=True)]
    wide = widened(leaves, c.differentiable)
    with x64_for([v.dtype for v in leaves], c.x64):
        y = c.plain(copies(leaves))
        dys = [cotangent(y, rng, c.scale) for _ in range(COTANGENTS)]
        # One whose terms do not cancel, where an accumulator of few digits shows.
        dys[-1] = [np.abs(v).astype(v.dtype) if is_differentiable(v) else v for v in dys[-1]]
        hands = [c.sweep(copies(leaves))[1](copies(dy)) for dy in dys]
    wide_dys = [[in_dtype(v, "float64") if is_differentiable(v) else v for v in dy] for dy in dys]
    eps = max(float(jnp.finfo(v.dtype).eps) for v, keep in zip(leaves, c.differentiable, strict=True) if keep)
    if oracle.is_exact:
        truth, bars = zip(*((f.cotangents, f.bars) for f in oracle.cotangents(wide, wide_dys, rng, eps)), strict=True)
        effects = [[None if b is None else b / MARGIN for b in of_dy] for of_dy in bars]
    else:
        truth, effects = by_hand(c, wide, wide_dys, rng, eps)
    others: list[Arrays] | None = None
    ys = [y]
    found: list[tuple[str, tuple]] = []
    if oracle.run:
        others_y, others = oracle.run(leaves, dys)
        ys.append(others_y)
        if oracle.y:
            y_truth, effect = value_and_effect(oracle, wide, rng, eps)
            for name, *v in zip(c.outputs(len(y)), y, y_truth, others_y, effect, strict=True):
                if is_differentiable(v[0]):
                    found.append((name, (*v, AUTODIFF)))
    for j, hand in enumerate(hands):
        for n, name in enumerate(c.names):
            t = truth[j][n]
            if not isinstance(hand[n], np.ndarray) or t is None or hand[n].shape != np.shape(t):
                continue
            if not oracle.is_exact and name not in vouched:
                continue
            if others:
                found.append((name, (hand[n], t, others[j][n], effects[j][n], AUTODIFF)))
                continue
            # Alone, nothing says to how many digits an element can be had whose terms cancel: the array's size does.
            least = eps * max(terms(y, dys[j], leaves[n]), _root_mean_square(t))
            effect = np.maximum(np.asarray(effects[j][n]), least)
            found.append((name, (hand[n], t, np.asarray(t).astype(hand[n].dtype), effect, ATTAINABLE)))
    is_defined = all(has_value(*of_output) for of_output in zip(*ys, strict=True) if is_differentiable(of_output[0]))
    return found, (wide, wide_dys), is_defined


def natural(y: Arrays, dy: Arrays, leaf: np.ndarray) -> float:
    """How large a cotangent is whose terms do not cancel, of a power of x; a tenth, to be no more than that."""
    norms = [
        np.linalg.norm([_norm(in_dtype(v, "float64")) for v in of if is_differentiable(v)]) for of in (y, dy, [leaf])
    ]
    return float(0.1 * norms[0] * norms[1] / (norms[2] * np.sqrt(leaf.size))) if norms[2] else 0.0


def terms(y: Arrays, dy: Arrays, leaf: np.ndarray) -> float:
    """How large the terms of a cotangent may be, of a function that need be no power of x: of exp they are y dy.

    Next to 0, of whatever adds a number to x, they are dy.
    """
    least = max(map(_root_mean_square, filter(is_differentiable, dy)), default=0.0) if _is_next_to_zero(leaf) else 0.0
    return max(10 * natural(y, dy, leaf) * max(1.0, _root_mean_square(in_dtype(leaf, "float64"))), least)


def _is_next_to_zero(v: np.ndarray) -> bool:
    return float(np.max(np.abs(v), initial=0.0)) < 1e-30


def _root_mean_square(v: np.ndarray) -> float:
    return _norm(v) / np.sqrt(max(v.size, 1))


def _norm(v: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(np.where(np.isfinite(v), v, 0)))


def value_and_effect(oracle: Oracle, leaves: Arrays, rng: np.random.Generator, eps: float) -> tuple[Arrays, Arrays]:
    """The reference's output, and how far rounding the inputs moves it."""
    assert oracle.y is not None
    y = oracle.y(copies(leaves))

    def beside() -> Arrays:
        moved = nudged(leaves, [], rng, eps)[0]
        # What is called in its own dtype may take no other.
        return (
            moved
            if oracle.is_exact
            else [v.astype(w.dtype) if is_differentiable(w) else w for v, w in zip(moved, leaves, strict=True)]
        )

    around = [oracle.y(beside()) for _ in range(MOVES)]
    with np.errstate(invalid="ignore"):
        return y, [np.max([np.abs(a[i] - v) for a in around], axis=0) for i, v in enumerate(y)]


def by_hand(
    c: Called, leaves: Arrays, dys: list[Arrays], rng: np.random.Generator, eps: float
) -> tuple[list[list[Entry]], list[list[Entry]]]:
    """The backward's own values, and how far rounding the inputs moves them."""
    truth = _swept(c, leaves, dys)
    around = [_swept(c, *nudged(leaves, dys, rng, eps)) for _ in range(MOVES)]
    effects = [
        [
            np.max([np.abs(a[j][n] - v) for a in around], axis=0) if isinstance(v, np.ndarray) else None
            for n, v in enumerate(of_dy)
        ]
        for j, of_dy in enumerate(truth)
    ]
    return truth, effects


Sweep = Callable[[Arrays, list[Arrays]], list[list[Entry]]]
"""`(leaves, dys) -> cotangents for each dy`."""


def sweeps(c: Called, oracle: Oracle) -> list[Sweep]:
    """The hand's, and an exact oracle's in float64."""
    return [partial(_swept, c), *([_of(oracle)] if oracle.in_float64 else [])]


def _of(oracle: Oracle) -> Sweep:
    in_float64 = oracle.in_float64
    assert in_float64 is not None
    return lambda leaves, dys: in_float64(leaves, dys)[1]


def roughness(
    of: list[Sweep], leaves: Arrays, y: Arrays, dys: list[Arrays], rng: np.random.Generator
) -> list[list[Entry]]:
    """How far rounding inside moves the cotangents: what bends along a line where they are straight but for it.

    Of several sweeps, that of the one which bends more. It is seen where terms cancel inside, which inputs moved by
    their last place need not show: 1 - y of a softmax that is saturated.
    """
    return [
        [
            None if (most := _most(*of_leaf)) is None else np.minimum(most, LOST * terms(y, dy, leaf))
            for leaf, *of_leaf in zip(leaves, *of_dy, strict=True)
        ]
        for dy, *of_dy in zip(dys, *(_bends(sweep, leaves, dys, rng) for sweep in of), strict=True)
    ]


def _most(*values: np.ndarray | None) -> np.ndarray | None:
    known = [v for v in values if v is not None]
    return np.maximum.reduce(known) if known else None


def _bends(sweep: Sweep, leaves: Arrays, dys: list[Arrays], rng: np.random.Generator) -> list[list[Entry]]:
    here = sweep(leaves, dys)
    found: list[list[list[Entry]]] = []
    for _ in range(MOVES):
        ahead, ahead_dys = nudged(leaves, dys, rng, STEP)
        behind, *behind_dys = (
            [2 * v - w if is_differentiable(v) else v for v, w in zip(*both, strict=True)]
            for both in [(leaves, ahead), *zip(dys, ahead_dys, strict=True)]
        )
        beside = sweep(ahead, ahead_dys), sweep(behind, behind_dys)
        found.append([list(map(_bent, *of_dy)) for of_dy in zip(here, *beside, strict=True)])
    return [[_most(*each) for each in zip(*of_dy, strict=True)] for of_dy in zip(*found, strict=True)]


def _bent(*three: object) -> np.ndarray | None:
    """How far the first of three is from the line through the others; 0 where one has no value."""
    arrays = [v for v in three if isinstance(v, np.ndarray)]
    if len(arrays) < 3 or len({v.shape for v in arrays}) > 1:
        return None
    here, ahead, behind = arrays
    with np.errstate(invalid="ignore", over="ignore"):
        bent = np.abs(ahead + behind - 2 * here) / 2
    return np.where(np.isfinite(bent), bent, 0.0)


def _swept(c: Called, leaves: Arrays, dys: list[Arrays]) -> list[list[Entry]]:
    with x64_for([v.dtype for v in leaves], c.x64):
        return [c.sweep(copies(leaves))[1](copies(dy)) for dy in dys]


def _stacked(parts: list[tuple], is_defined: bool) -> Compared:
    *arrays, beside = zip(*parts, strict=True)
    hand, truth, other, effect = (np.stack(v) for v in arrays)
    return Compared(hand, truth, other, effect, beside[0], is_defined)
