"""Hypothesis draws a rule's case: its axes' sizes, hyperparameters and values. A failure prints how to repeat it."""

from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bpref.rule import Boolean, Case, Integer, Interval, Key, Rule
from bpref.verify.rules.draw import Example, axes_of, example_with, is_spec, sized

EIGHTHS = 8
"""Values are multiples of 1/8: exact in every dtype, so that sums which cancel do so exactly, for both sides."""


class Drawn(NamedTuple):
    """One example and the words that make it again."""

    example: Example
    snippet: str


def sizes(case: Case) -> st.SearchStrategy[dict[str, int]]:
    drawn = st.fixed_dictionaries({axis: st.sampled_from([1, 2, 3]) for axis in axes_of(case)})
    return drawn.map(lambda sizes: sized(case, sizes))


def hyper(case: Case) -> st.SearchStrategy[dict[str, float]]:
    """A value for each real hyperparameter, with few significant digits, so that a failure reads well."""

    def steps(v: Interval):
        return st.integers(0, 64).map(lambda i: v.low + i * (v.high - v.low) / 64)

    return st.fixed_dictionaries({name: steps(v) for name, v in case.hyper.items() if isinstance(v, Interval)})


def array(spec: Any, sizes: dict[str, int]) -> st.SearchStrategy[np.ndarray]:
    shape = tuple(sizes[name] for name in spec.axes.split())
    if isinstance(spec, Key):
        return hnp.arrays(np.uint32, (*shape, 2))
    if isinstance(spec, Boolean):
        return hnp.arrays(np.bool_, shape)
    if isinstance(spec, Integer):
        high = sizes[spec.high] if isinstance(spec.high, str) else spec.high
        elements = st.sampled_from([*range(spec.low, high), *spec.points])
        return hnp.arrays(np.int32, shape, elements=elements)
    if spec.simplex:
        parts = hnp.arrays(np.float64, shape, elements=st.integers(1, 8).map(float))
        return parts.map(lambda v: v / v.sum(-1, keepdims=True))
    eighths = st.integers(int(spec.low * EIGHTHS), int(spec.high * EIGHTHS)).map(lambda i: i / EIGHTHS)
    elements = st.one_of(eighths, st.sampled_from(spec.points)) if spec.points else eighths
    real = hnp.arrays(np.float64, shape, elements=elements)
    drawn = st.tuples(real, real).map(lambda parts: parts[0] + 1j * parts[1]) if spec.is_complex else real
    return drawn.map(spec.domain) if spec.domain else drawn


@st.composite
def drawn(draw: st.DrawFn, rule: Rule) -> Drawn:
    index = draw(st.integers(0, len(rule.cases) - 1))
    case = rule.cases[index]
    chosen_sizes, chosen_hyper = draw(sizes(case)), draw(hyper(case))
    x = jax.tree.map(lambda spec: draw(array(spec, chosen_sizes)), case.x, is_leaf=is_spec)
    seed = draw(st.integers(0, 99))
    example = example_with(rule, case, chosen_sizes, x, np.random.default_rng(seed), chosen_hyper)
    plain = jax.tree.map(lambda v: f"np.array({v.tolist()}, np.{v.dtype})", x)
    snippet = (
        "import numpy as np\n"
        "from bpref.rules import RULES\n"
        "from bpref.verify.rules.draw import example_with\n"
        "from bpref.verify.rules.catalogue import check_laws\n"
        f"{_imports(plain)}"
        f"rule = RULES[{rule.name!r}]\n"
        f"x = {_written(plain)}\n"
        f"rng = np.random.default_rng({seed})\n"
        f"example = example_with(rule, rule.cases[{index}], {chosen_sizes}, x, rng, {chosen_hyper})\n"
        "print(check_laws(example))"
    )
    return Drawn(example, snippet)


def _written(plain: Any) -> str:
    """A tree of expressions as one expression."""
    if not isinstance(plain, tuple):
        return str(plain)
    if hasattr(plain, "_fields"):
        return f"{type(plain).__name__}({', '.join(f'{k}={_written(v)}' for k, v in plain._asdict().items())})"
    return f"({', '.join(map(_written, plain))})"


def _imports(plain: Any) -> str:
    """What a tree of expressions needs imported: the named tuples that it is made of."""
    if not isinstance(plain, tuple):
        return ""
    own = f"from {type(plain).__module__} import {type(plain).__name__}\n" if hasattr(plain, "_fields") else ""
    return own + "".join(map(_imports, plain))
