"""The picture of a rule's data flow: what goes into its forward, what comes out, what is kept for its backward."""

import html
import re
from collections.abc import Iterator, Mapping
from itertools import count, product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpref.layer import Layer
from bpref.rule import Case, Rule
from bpref.verify.rules.draw import axes_of, draw, sized

LINE, TOP, MOST = 18, 24, 8
LEFT, BOX, RIGHT, WIDTH = 250, 110, 410, 660


class Flow(NamedTuple):
    """Names and shapes, each as one line, of everything that goes in or out."""

    given: list[str]
    y: list[str]
    cache: list[str]
    dy: list[str]
    returned: list[str]


def of_rule(rule: Rule) -> Flow:
    """The shapes of the rule's first case, in the symbols of its axes; "..." where no symbol holds at two sizes."""
    first = _at(rule, _primes(11))
    if all(re.fullmatch(PLAIN, line) for lines in first for line in lines):
        return first
    second = _at(rule, _primes(17))
    return Flow(*(list(map(_agreed, *lines)) for lines in zip(first, second, strict=True)))


PLAIN = r"\S+ \((?:(?:[A-Za-z]+|[01])(?:, |,)?)*\)"
"""A line all of whose sizes are axes by themselves."""


def _agreed(first: str, second: str) -> str:
    (name, of_first), (_, of_second) = (line.split(" ", 1) for line in (first, second))
    pairs = zip(*(shape[1:-1].rstrip(",").split(", ") for shape in (of_first, of_second)), strict=True)
    axes = [a if a == b else "..." for a, b in pairs]
    return f"{name} ({', '.join(axes)}{',' if len(axes) == 1 and axes[0] else ''})"


def _at(rule: Rule, primes: Iterator[int]) -> Flow:
    case = rule.cases[0]
    sizes = sized(case, dict(zip(axes_of(case), primes, strict=False)))
    with jax.enable_x64(True):
        example = draw(rule, case, sizes, seed=0)
        made: dict[str, Any] = jax.eval_shape(lambda p, x: _both_ways(example.layer, p, x), example.params, example.x)
    symbols = dict(_symbols(case, sizes))
    params, x = (_lines(root, tree, symbols) for root, tree in (("", example.params), ("x", example.x)))
    dparams, dx = (_lines(root, made[root], symbols) for root in ("dparams", "dx"))
    y = _lines("y", made["y"], symbols)
    return Flow([*params, *x], y, _lines("", made["cache"], symbols), [f"d{line}" for line in y], [*dparams, *dx])


def _both_ways(layer: Layer, params: Any, x: Any) -> dict[str, Any]:
    y, cache = layer.forward(params, x)
    dy = jax.tree.map(lambda v: v if jnp.issubdtype(v.dtype, jnp.inexact) else None, y)
    dparams, dx = layer.backward(params, cache, dy)
    return {"y": y, "cache": cache, "dparams": dparams, "dx": dx}


def _primes(least: int) -> Iterator[int]:
    return (n for n in count(least) if all(n % k for k in range(2, n)))


def _symbols(case: Case, sizes: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """What a size is called: products and sums last, so that an axis by itself wins."""
    free = [(name, n) for name, n in sizes.items() if name not in case.fixed]
    for (a, n), (b, m) in product(free, repeat=2):
        yield n * m, f"{a} {b}" if a != b else f"{a}^2"
        yield n + m - 1, f"{a} + {b} - 1"
    for a, n in free:
        yield from ((k * n, f"{k} {a}") for k in (4, 3, 2))
        yield n + 1, f"{a} + 1"
    yield from ((n // 2, f"{a} / 2") for a, n in sizes.items() if n % 2 == 0)
    yield from ((n, name) for name, n in sizes.items())
    yield from ((n, str(n)) for n in (0, 1, 2))


def _lines(root: str, tree: Any, symbols: Mapping[int, str]) -> list[str]:
    """A line for each array: its path below `root`, and its shape; a cotangent that is None has no line."""
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [f"{_name(root, path)} {_shape(v, symbols)}" for path, v in with_paths]


def _name(root: str, path: tuple) -> str:
    steps = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", "")))) for k in path]
    if root.startswith("d") and steps and not steps[-1].isdigit():
        steps[-1] = f"d{steps[-1]}"
        root = ""
    return ".".join(step for step in [root, *steps] if step) or "array"


def _shape(v: Any, symbols: Mapping[int, str]) -> str:
    axes = [symbols.get(n, str(n)) for n in v.shape]
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def to_svg(flow: Flow) -> str:
    """The picture: forward above, from left to right; backward below, from right to left; the cache between them."""
    shown = Flow(*(_cut(lines) for lines in flow))
    above, below = max(len(shown.given), len(shown.y), 2), max(len(shown.dy), len(shown.returned), 2)
    forward = TOP + above * LINE / 2
    kept = TOP + above * LINE + 30
    backward = kept + max(len(shown.cache), 1) * LINE + 30 + below * LINE / 2
    height = backward + below * LINE / 2 + 10
    middle = LEFT + BOX / 2
    parts = [
        *_column(shown.given, LEFT - 30, forward, "end"), _arrow(LEFT - 24, forward, LEFT - 2, forward),
        *_box("forward", forward), _arrow(LEFT + BOX + 2, forward, RIGHT - 26, forward),
        *_column(shown.y, RIGHT - 18, forward, "start"),
        _arrow(middle, forward + 18, middle, kept - 12),
        *_column(shown.cache or ["nothing"], middle, (kept - 6 + backward - below * LINE / 2 - 30) / 2 + 4, "middle"),
        _arrow(middle, backward - below * LINE / 2 - 28, middle, backward - 18),
        *_column(shown.dy, RIGHT - 18, backward, "start"), _arrow(RIGHT - 26, backward, LEFT + BOX + 2, backward),
        *_box("backward", backward), _arrow(LEFT - 2, backward, LEFT - 24, backward),
        *_column(shown.returned, LEFT - 30, backward, "end"),
    ]  # fmt: skip
    given, y, cache, dy, returned = (", ".join(lines) or "nothing" for lines in flow)
    said = f"forward takes {given} and gives {y}; kept is {cache}; backward takes {dy} and gives {returned}"
    return (
        f'<div class="wide"><svg class="flow" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'role="img" aria-label="{html.escape(said)}">{MARKER}{"".join(parts)}</svg></div>'
    )


MARKER = (
    '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    '<path d="M0 0 L6 3 L0 6z"/></marker></defs>'
)


def _cut(lines: list[str]) -> list[str]:
    return lines if len(lines) <= MOST else [*lines[: MOST - 1], f"and {len(lines) - MOST + 1} more"]


def _column(lines: list[str], x: float, y: float, anchor: str) -> list[str]:
    first = y - (len(lines) - 1) * LINE / 2 + 4
    return [
        f'<text x="{x:g}" y="{first + i * LINE:g}" text-anchor="{anchor}">{html.escape(line)}</text>'
        for i, line in enumerate(lines)
    ]


def _box(name: str, y: float) -> list[str]:
    box = f'<rect x="{LEFT}" y="{y - 16:g}" width="{BOX}" height="32" rx="6"/>'
    return [box, *_column([name], LEFT + BOX / 2, y, "middle")]


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" marker-end="url(#tip)"/>'
