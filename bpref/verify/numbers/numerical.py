"""The numerical oracle: derivatives of functions that only take numbers in and give numbers out, with error bars.

Central differences at halving steps, extrapolated to step 0 (`numbers.differences`). Where a function takes
complex numbers too, the complex step instead, `Im f(x + ih) / h`, in which nothing cancels (Squire and Trapp, SIAM
Rev. 40, 1998). The noise of the function is measured from its sixth differences (Moré and Wild, SIAM J. Sci. Comput.
33, 2011).

An error bar is a claim: the true derivative lies within it. Where a function has a kink, jumps, is noisy or not
defined nearby, the bar is large or infinite, and the value says nothing.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bpref.verify.numbers.differences import Found, Setting, extrapolated, setting_of, typical_size
from bpref.verify.numbers.measure import is_inexact, widened

ROUNDS = 8
"""How many steps are tried at once, each half of the one before; two calls of the function for each."""
BATCHES = 4
"""How often that is done at most for one element, going on to smaller steps."""
FIRST_STEP = 0.137
"""The first step, in units of the argument's size; no simple fraction, lest it be a period of the function."""
COMPLEX_STEP = 1e-20


class Projection(NamedTuple):
    """The derivative along one direction through a whole array: `Re(sum(cotangent * direction))`, and its bar."""

    direction: np.ndarray
    value: float
    bar: float


class Numerical(NamedTuple):
    """The cotangents of one `dy`.

    Attributes:
      cotangents: the tree of `args`; float64 or complex128 arrays, `None` for integers.
      bars: likewise, real: no element is further off than that. Infinite for one that was not looked at.
      kinks: likewise, how much of a bar is half of a jump of the slope; 0 where there is no kink, and of complex ones.
      projections: for each leaf of `args` a tuple, empty for integers. They speak also of what was not looked at.
      chosen: for each leaf of `args` the elements that were looked at, by their place in the flat array.
    """

    cotangents: PyTree
    bars: PyTree
    kinks: PyTree
    projections: list[tuple[Projection, ...]]
    chosen: list[np.ndarray | None]


def numerical_cotangents(
    f: Callable[..., PyTree],
    args: tuple,
    dys: Sequence[PyTree],
    *,
    limit: int = 512,
    directions: int = 2,
    rng: np.random.Generator | None = None,
    complex_step: bool = True,
) -> list[Numerical]:
    """The cotangents of `f(*args)` for each of `dys`, by calling `f` alone, with an error bar for every element.

    The convention is that of `jax.vjp`: for complex z = x + iy, the cotangent is `dJ/dx - i dJ/dy` with
    `J = Re(sum(dy * f))`, nothing conjugated.

    Args:
      f: takes NumPy arrays and gives array-likes, or pytrees of them. It gets copies, which it may write into; in
        double precision, if it takes and returns that, else in the dtypes of `args`.
      args: arrays or pytrees of them; integers are passed on and have no cotangent.
      dys: cotangents of the output, each of its tree.
      limit: so many elements of each leaf are looked at, drawn by `rng`.
      directions: so many random directions through each leaf are looked at besides.
      complex_step: whether it is tried if `f` takes complex numbers in place of real ones.

    Raises:
      Whatever `f` raises on `args`, and `ValueError` if an entry of `dys` does not fit the output.
    """
    if not dys:
        return []
    rng = rng or np.random.default_rng(0)
    setting, tree = setting_of(f, args, dys)
    values, bars, kinks, projections, chosen = [], [], [], [], []
    for n, leaf in enumerate(setting.leaves):
        if not is_inexact(leaf):
            values.append(None)
            bars.append(None)
            kinks.append(None)
            projections.append([()] * len(dys))
            chosen.append(None)
            continue
        chosen.append(_chosen(leaf.size, limit, rng))
        value, bar, kink = _of_elements(setting, n, chosen[-1], rng, complex_step)
        values.append(value)
        bars.append(bar)
        kinks.append(kink)
        along = [_projections(setting, n, value, bar, rng) for _ in range(directions if leaf.size else 0)]
        projections.append([tuple(p[j] for p in along) for j in range(len(dys))])

    def of(parts: list, j: int) -> PyTree:
        return jax.tree.unflatten(tree, [None if v is None else v[j] for v in parts])

    return [
        Numerical(of(values, j), of(bars, j), of(kinks, j), [p[j] for p in projections], chosen)
        for j in range(len(dys))
    ]


def _chosen(size: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(size) if size <= limit else np.sort(rng.choice(size, limit, replace=False))


def _of_elements(setting: Setting, n: int, chosen: np.ndarray, rng: np.random.Generator, complex_step: bool) -> Found:
    """Of a leaf, with a leading axis for `dys`."""
    leaf = setting.leaves[n]
    is_complex = np.iscomplexobj(leaf)
    values = np.zeros((len(setting.dys), leaf.size), np.complex128 if is_complex else np.float64)
    bars = np.full((len(setting.dys), leaf.size), np.inf)
    kinks = np.zeros(bars.shape)
    scales = np.maximum(np.abs(leaf).reshape(-1), typical_size(leaf)).tolist()
    may_step = complex_step and leaf.size and not (is_complex or np.iscomplexobj(setting.y))
    by_complex_step = _complex_step(setting, n, rng) if may_step else None
    for i in chosen[np.isfinite(leaf.reshape(-1)[chosen])]:
        unit = np.zeros(leaf.size)
        unit[i] = 1.0
        unit = unit.reshape(leaf.shape)
        if is_complex:
            re, im = (_along(setting, n, unit * part, scales[i]) for part in (1, 1j))
            values[:, i], bars[:, i] = re.value - 1j * im.value, re.bar + im.bar
            continue
        found = by_complex_step(unit, scales[i]) if by_complex_step else None
        values[:, i], bars[:, i], kinks[:, i] = found or _along(setting, n, unit, scales[i])
    shape = (len(setting.dys), *leaf.shape)
    return Found(*(v.reshape(shape) for v in (values, bars, kinks)))


def _projections(
    setting: Setting, n: int, values: np.ndarray, bars: np.ndarray, rng: np.random.Generator
) -> list[Projection]:
    """One for each of `dys`, all along the same direction; `values` and `bars` are those of the elements."""
    leaf = setting.leaves[n]
    direction = rng.normal(size=leaf.shape)
    if np.iscomplexobj(leaf):
        direction = direction + 1j * rng.normal(size=leaf.shape)
    direction = np.where(np.isfinite(leaf), direction, 0)
    looked_at = np.isfinite(bars)
    size = np.abs(np.where(np.isfinite(leaf), leaf, 0))
    effects = np.where(looked_at, np.abs(values) * size, 0).reshape(len(values), -1)
    share = np.maximum(looked_at.reshape(len(values), -1).mean(-1), 1 / leaf.size)
    rounding = 2 * float(np.finfo(setting.steps_dtype).eps) * np.sqrt((effects**2).sum(-1) / share)
    value, bar, _ = _along(setting, n, direction, typical_size(leaf), rounding)
    return [Projection(direction, float(v), float(b)) for v, b in zip(value, bar, strict=True)]


def _along(setting: Setting, n: int, direction: np.ndarray, scale: float, rounding: np.ndarray | float = 0.0) -> Found:
    """The derivative of each `Re(dy . f)` along a direction through one leaf, and its bar.

    `rounding` is what it does to each `Re(dy . f)` that the moved elements are rounded, where there are several.
    Going on to smaller steps ends when the bar is good, or they cannot make it better.
    """
    rows: list[_Row] = []
    changed = np.zeros(setting.y.shape, bool)
    nothing = np.zeros(len(setting.dys))
    value, bar, kink = nothing, np.full(nothing.shape, np.inf), nothing
    natural = np.abs(setting.dys) @ np.abs(setting.y) / scale
    # Along a slanted direction a function turns in many ways at once, and there are few such directions.
    fewest = ROUNDS * (1 if np.count_nonzero(direction) == 1 else 2)

    @cache
    def much_closer() -> _Row | None:
        return _differences(setting, n, direction, setting.eps ** (1 / 3) * scale, rounding)

    def holds_closer(value: np.ndarray, bar: np.ndarray) -> bool:
        """Whether a slope over a much shorter step agrees: steps that halve may all be whole periods of a function."""
        row = much_closer()
        if row is None:
            return True
        allowed = bar + 5 * row.noise(setting, changed) + np.abs(rows[-1].slope - value) + 1e-3 * np.abs(value)
        return bool(np.all(np.abs(row.slope - value) <= allowed))

    for k in range(ROUNDS * BATCHES):
        row = _differences(setting, n, direction, FIRST_STEP * scale * 2.0**-k, rounding)
        # What was seen beyond a point at which the function is not finite says nothing about here.
        rows = [*rows, row] if row else []
        changed |= row.changed if row else False
        if (k + 1) % ROUNDS == 0 and len(rows) > 2 and k + 1 >= fewest:
            noise = np.stack([r.noise(setting, changed) for r in rows])
            slopes, bends = (np.stack(v) for v in ([r.slope for r in rows], [r.bend for r in rows]))
            value, bar, kink = extrapolated(slopes, bends, noise)
            good = bar <= max(1e-10, 1e4 * setting.eps) * np.maximum(np.abs(value), 1e-3 * natural)
            # Noise grows as steps shrink: where it is most of the bar already, smaller ones do not help. Slopes that do
            # not settle say that the function turns within a step, and then entries agree by chance.
            settled = np.abs(slopes[-1] - slopes[-2]) <= np.abs(slopes[-2] - slopes[-3]) / 2 + 4 * noise[-1]
            if np.all(settled & (good | (noise[-1] > bar / 10))) and holds_closer(value, bar):
                break
    if rows and not np.all(changed):
        # What only a giant step changes depends on the argument, by less than it can show.
        depends = ~changed & _changed_by(setting, n, direction, 30 * scale)
        bar = bar + np.abs(setting.dys) @ np.where(depends, setting.noise, 0) / rows[0].width
    return Found(value, bar, kink)


def _changed_by(setting: Setting, n: int, direction: np.ndarray, step: float) -> np.ndarray:
    """Which outputs are others a step ahead, or behind; also where they are not finite."""
    changed = np.zeros(setting.y.shape, bool)
    for t in (step, -step):
        y = _tried(setting, _moved(setting, n, direction, t)[0])
        changed |= False if y is None else y != setting.y
    return changed


def _tried(setting: Setting, leaves: Sequence[np.ndarray]) -> np.ndarray | None:
    """The outputs at arguments that may lie outside of the domain; `None` where the function says so."""
    try:
        with np.errstate(all="ignore"):
            y = setting.call(leaves)
    except (ArithmeticError, ValueError):
        return None
    if y.shape != setting.y.shape:
        raise ValueError("the shapes of the function's outputs change with the values of its arguments")
    return y


class _Row(NamedTuple):
    """Differences at one step; for each dy the slope, and the bend (the slope ahead less the one behind).

    Attributes:
      width: the distance between the two points.
      slope, bend: the first is the derivative, the second vanishes with the step, where there is no kink.
      error: of each output.
      skewed: an error of the slope besides.
      changed: which outputs are not the same at both points.
    """

    width: float
    slope: np.ndarray
    bend: np.ndarray
    error: np.ndarray
    skewed: np.ndarray
    changed: np.ndarray

    def noise(self, setting: Setting, changed: np.ndarray) -> np.ndarray:
        """The error of the slope for each dy, if only the outputs that `changed` depend on the argument.

        Three of its standard deviations, if the outputs' errors are independent; or all of them of the worst sign.
        """
        parts = np.abs(setting.dys) * np.where(changed, self.error, 0)
        return 2 * np.minimum(parts.sum(-1), 3 * np.sqrt((parts**2).sum(-1))) / self.width + self.skewed


def _differences(
    setting: Setting, n: int, direction: np.ndarray, step: float, rounding: np.ndarray | float = 0.0
) -> _Row | None:
    """`None` where the function is not finite, or the step too small to be one."""
    (ahead, forth), (behind, back) = (_moved(setting, n, direction, t) for t in (step, -step))
    if not (forth > 0 and back > 0):
        return None
    up, down = _tried(setting, ahead), _tried(setting, behind)
    if up is None or down is None or not np.all(np.isfinite(up) & np.isfinite(down)):
        return None
    difference = up - down
    width = forth + back
    error = np.maximum(setting.noise, setting.eps / 2 * np.maximum(np.abs(up), np.abs(down)))
    slope = np.real(setting.dys @ difference) / width
    bend = np.real(setting.dys @ ((up - setting.y) / forth + (down - setting.y) / back))
    # Rounding makes the two steps unequal, which lets in a part of the bend; and it bends a slanted direction.
    skewed = np.abs(bend) * abs(forth - back) / width + 2 * rounding / width
    return _Row(width, slope, bend, error, skewed, difference != 0)


def _moved(setting: Setting, n: int, direction: np.ndarray, step: float) -> tuple[list[np.ndarray], float]:
    """The arguments with one leaf moved along a direction, and how far: of a single element, as it is rounded."""
    leaf, taken = setting.leaves[n], abs(step)
    is_complex = np.iscomplexobj(leaf)
    wide = widened(leaf)
    narrow = np.result_type(setting.steps_dtype, np.complex64) if is_complex else setting.steps_dtype
    moved = (wide + step * direction).astype(narrow).astype(leaf.dtype)
    if np.count_nonzero(direction) == 1:
        along = direction != 0  # elsewhere it may be infinite
        taken = np.sum(np.abs(widened(moved)[along] - wide[along])) / np.sum(np.abs(direction))
    return [moved if j == n else v for j, v in enumerate(setting.leaves)], float(taken)


def _complex_step(setting: Setting, n: int, rng: np.random.Generator) -> Callable[[np.ndarray, float], Found | None]:
    """`(direction, scale) -> values and bars`, by the complex step; `None` where that is not to be trusted.

    It is tried along a random direction, and then held against one real difference for each element: a function
    that takes absolute values or drops imaginary parts takes complex numbers, and means something else by them.
    """
    leaf = setting.leaves[n]

    def imaginary(direction: np.ndarray, h: float) -> np.ndarray | None:
        moved = leaf + (1j * h * direction).astype(np.result_type(leaf.dtype, np.complex64))
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("error")
                y = setting.call([moved if j == n else v for j, v in enumerate(setting.leaves)])
        except Exception:  # whatever it is, it says that complex numbers are not for this function
            return None
        if not np.iscomplexobj(y) or y.shape != setting.y.shape or not np.all(np.isfinite(y)):
            return None
        return np.imag(y) / h if np.all(np.abs(np.real(y) - setting.y) <= 8 * setting.noise) else None

    def derivative(direction: np.ndarray, scale: float) -> Found | None:
        slopes = imaginary(direction, COMPLEX_STEP * scale)
        if slopes is None:
            return None
        error = 32 * setting.eps * np.abs(slopes) + np.where(slopes != 0, 4 * setting.noise / scale, 0)
        value, bar = np.real(setting.dys) @ slopes, np.abs(setting.dys) @ error
        return Found(value, bar, np.zeros(bar.shape))

    def checked(direction: np.ndarray, scale: float) -> Found | None:
        found = derivative(direction, scale)
        real = _differences(setting, n, direction, setting.eps ** (1 / 3) * scale) if found else None
        if not (found and real):
            return None
        apart = np.abs(found.value - real.slope) + np.abs(real.bend)
        return found if np.all(apart <= 5 * real.noise(setting, real.changed) + 1e-3 * np.abs(found.value)) else None

    direction, scale = rng.normal(size=leaf.shape), typical_size(leaf)
    found = derivative(direction, scale)
    if found is None:
        return lambda direction, scale: None
    value, bar, _ = _along(setting, n, direction, scale)
    agree = np.abs(found.value - value) <= 2 * (bar + found.bar) + 1e2 * setting.eps * np.abs(value)
    return checked if np.all(agree) else lambda direction, scale: None
