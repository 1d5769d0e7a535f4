"""The plot of a rule's errors at growing inputs, by hand beside autodiff: both axes in decades."""

import html
import math
from collections.abc import Iterable, Iterator

from docs.errors import SIZES, Pair

LEFT, TOP, WIDE, TALL, RIGHT = 70, 14, 400, 170, 200
LOWEST, HIGHEST = -1, 8
"""Decades of units of the last place that are drawn; what is exact lies on the lower edge."""


def to_svg(name: str, pairs: list[Pair | None]) -> str:
    """The plot, with its numbers in words."""
    hand, autodiff = ([None if pair is None else pair[i] for pair in pairs] for i in (0, 1))
    parts = [*_grid(), *_curve(autodiff, "autodiff"), *_curve(hand, "hand"), *_legend()]
    numbers = (
        f"at {size:g} {pair[0]:.3g} by hand and {pair[1]:.3g} by autodiff"
        for size, pair in zip(SIZES, pairs, strict=True)
        if pair is not None
    )
    said = f"errors of {name} in units of the last place, by the size of its input: {'; '.join(numbers)}"
    width, height = LEFT + WIDE + RIGHT, TOP + TALL + 44
    return (
        f'<div class="wide"><svg class="errors" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape(said)}">{"".join(parts)}</svg></div>'
    )


def _x(i: float) -> float:
    return LEFT + WIDE * i / (len(SIZES) - 1)


def _y(error: float) -> float:
    decades = min(max(math.log10(error) if error > 0 else LOWEST, LOWEST), HIGHEST)
    return TOP + TALL * (HIGHEST - decades) / (HIGHEST - LOWEST)


def _grid() -> Iterator[str]:
    for decade in range(0, HIGHEST + 1, 2):
        y = _y(10.0**decade)
        yield f'<line class="grid" x1="{LEFT}" y1="{y:g}" x2="{LEFT + WIDE}" y2="{y:g}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:g}" text-anchor="end">{f"1e{decade}" if decade else "1"} ulp</text>'
    for i, size in enumerate(SIZES):
        yield f'<text x="{_x(i):g}" y="{TOP + TALL + 18}" text-anchor="middle">{size:g}</text>'
    yield f'<text x="{LEFT + WIDE / 2:g}" y="{TOP + TALL + 38}" text-anchor="middle">x times this</text>'


def _curve(errors: list[float | None], who: str) -> Iterator[str]:
    for run in _runs(errors):
        points = " ".join(f"{_x(i):g},{_y(error):.4g}" for i, error in run)
        yield f'<polyline class="{who}" points="{points}"/>'
        yield from (f'<circle class="{who}" cx="{_x(i):g}" cy="{_y(error):.4g}" r="3"/>' for i, error in run)


def _runs(errors: Iterable[float | None]) -> list[list[tuple[int, float]]]:
    """The points that hang together: a curve has a gap where the function has no value."""
    found: list[list[tuple[int, float]]] = [[]]
    for i, error in enumerate(errors):
        if error is None:
            found.append([])
        else:
            found[-1].append((i, error))
    return [run for run in found if run]


def _legend() -> Iterator[str]:
    for row, (who, said) in enumerate((("hand", "by hand"), ("autodiff", "autodiff of the naive form"))):
        x, y = LEFT + WIDE + 16, TOP + 8 + 18 * row
        yield f'<line class="{who}" x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}"/>'
        yield f'<text x="{x + 32}" y="{y + 4}">{said}</text>'
