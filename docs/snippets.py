"""Programs that a reader can run: a rule called once, and the check that holds a derivation of one's own against it.

`python -m docs.snippets NAME ...` runs those that call a rule, as the build of the site does beside its other work.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

import jax

import bpref
from bpref.layer import Layer
from bpref.rule import Boolean, Case, Integer, Key, Real, Rule
from bpref.verify.rules.draw import all_of_size, hyperparameters, is_spec

SIZE = 4
"""Of every axis whose size the case leaves open."""

WIDTH = 88

BOTH_WAYS = (
    "",
    "y, cache = layer.forward(params, x)",
    "dy = jax.tree.map(jnp.ones_like, y)",
    "dparams, dx = layer.backward(params, cache, dy)",
)


def use(rule: Rule) -> str:
    """The rule's first case, forward and backward: a program."""
    return wrapped([*_made(rule), *BOTH_WAYS])


def failing(names: Iterable[str]) -> Iterator[str]:
    """Runs the program of each rule; a line for each that raises."""
    for name in names:
        try:
            exec(use(bpref.RULES[name]), {})
        except Exception as error:
            yield f"the program of {name} raises {error!r}"


def check(rule: Rule) -> str:
    """The call that holds `yours` against the rule: a program that runs once `yours` is written."""
    has_params = _has_params(rule)
    arguments = "params, x" if has_params else "x"
    hyper = _arguments(rule.cases[0])
    call = f"rule.reference(params, x{', ' if hyper else ''}{hyper})"
    last = [
        "",
        f'rule = bpref.RULES["{rule.name}"]',
        "",
        "",
        f"def naive({arguments}):",
        f"    return {call}",
        "",
        "",
        f"print(bpref.check(yours, {arguments}, reference=naive, key=1729))",
    ]
    return wrapped([*_made(rule), *last])


def stands_in(rule: Rule) -> str:
    """What `yours` may be while one's own is not written: the rule itself, as a function that JAX differentiates."""
    has_params = _has_params(rule)
    return "yours = bpref.as_function(layer)" if has_params else "yours = lambda x: bpref.as_function(layer)(params, x)"


def _has_params(rule: Rule) -> bool:
    """Whether the layer of the snippet has parameters, by the snippet's own lines."""
    names: dict[str, Any] = {}
    exec("\n".join(_made(rule)[:-1]), names)
    return bool(jax.tree.leaves(jax.eval_shape(names["layer"].init, jax.random.key(0), names["x"])))


def _made(rule: Rule) -> list[str]:
    case = rule.cases[0]
    x = _written(case.x, all_of_size(case, SIZE))
    own = [maker for value in _chosen(case).values() if (maker := _maker(value))]
    imports = sorted({*_imports(case.x), *(line for maker in own for line in _names_of(maker))})
    return [
        *("import jax", "import jax.numpy as jnp", "import numpy as np", "", "import bpref"),
        *imports,
        *(line for maker in own for line in ("", "", *inspect.getsource(maker).splitlines(), "")),
        "",
        "rng = np.random.default_rng(0)",
        f"layer = bpref.{rule.make.__name__}({_arguments(case)})",
        f"x = {x}",
        "params = layer.init(jax.random.key(0), x)",
    ]


def _arguments(case: Case) -> str:
    return ", ".join(f"{name}={written_value(value)}" for name, value in _chosen(case).items())


def _chosen(case: Case) -> dict[str, Any]:
    return hyperparameters(case, all_of_size(case, SIZE))


def _maker(value: Any) -> FunctionType | None:
    """The function that makes a layer which is no rule: a program writes it out."""
    if not isinstance(value, Layer) or value.name in bpref.RULES:
        return None
    forward = inspect.unwrap(value.forward)
    return forward.__globals__[forward.__qualname__.partition(".")[0]]


def _names_of(maker: FunctionType) -> Iterator[str]:
    """The imports that a function's text needs beyond those of every program."""
    codes = [maker.__code__]
    for code in codes:
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
    for name in sorted({name for code in codes for name in code.co_names}):
        module = getattr(maker.__globals__.get(name), "__module__", "") or ""
        if module.startswith("bpref."):
            yield f"from {'bpref' if hasattr(bpref, name) else module} import {name}"


def written_value(value: Any) -> str:
    """A hyperparameter as a program has it; a layer as the call that makes one like it."""
    if maker := _maker(value):
        return f"{maker.__name__}()"
    if isinstance(value, Layer):
        known = inspect.signature(bpref.RULES[value.name].make).parameters
        chosen = {name: v for name, v in _closed_over(value).items() if name in known and v != known[name].default}
        return f"bpref.{value.name}({', '.join(f'{name}={v!r}' for name, v in chosen.items())})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"bpref.{value!r}"
    return repr(value)


def _closed_over(layer: Layer) -> dict[str, Any]:
    """Numbers and the like that a layer's functions, or those given to them, have closed over, by their names there."""
    functions, found = [layer.init, layer.forward, layer.backward], {}
    for f in functions:
        for name, v in inspect.getclosurevars(inspect.unwrap(f)).nonlocals.items():
            if isinstance(v, bool | int | float | str):
                found.setdefault(name, v)
            elif isinstance(v, tuple):
                functions += [g for g in v if inspect.isfunction(g) and g not in functions]
    return found


def _imports(x: Any) -> Iterator[str]:
    """Functions that make an array one that the rule is defined for."""
    for spec in jax.tree.leaves(x, is_leaf=is_spec):
        if isinstance(spec, Real) and spec.domain is not None:
            yield f"from {spec.domain.__module__} import {spec.domain.__name__}"


def _written(x: Any, sizes: dict[str, int]) -> str:
    """An expression whose value is such an x."""
    if x is None or is_spec(x):
        return repr(x) if x is None else _array(x, sizes)
    if hasattr(x, "_fields"):
        fields = (f"{name}={_written(v, sizes)}" for name, v in zip(x._fields, x, strict=True) if v is not None)
        return f"bpref.{type(x).__name__}({', '.join(fields)})"
    inside = ", ".join(_written(v, sizes) for v in x)
    return f"({inside},)" if len(x) == 1 else f"({inside})"


def _array(spec: Any, sizes: dict[str, int]) -> str:
    shape = tuple(sizes[name] for name in spec.axes.split())
    if isinstance(spec, Key):
        return f"rng.integers(2**32, size={(*shape, 2)}, dtype=np.uint32)"
    if isinstance(spec, Boolean):
        return f"rng.random({shape}) < 0.5"
    if isinstance(spec, Integer):
        high = sizes[spec.high] if isinstance(spec.high, str) else spec.high
        return f"rng.integers({spec.low}, {high}, {shape}, dtype=np.int32)"
    drawn = f"rng.uniform({spec.low}, {spec.high}, {shape})"
    if spec.is_complex:
        return f"({drawn} + 1j * {drawn}).astype(np.complex64)"
    if spec.domain is not None:
        drawn = f"{spec.domain.__name__}({drawn})"
    return f"np.asarray(jax.nn.softmax({drawn}), np.float32)" if spec.simplex else f"{drawn}.astype(np.float32)"


def wrapped(lines: list[str]) -> str:
    """The program with a line for each argument of a call that is longer than WIDTH."""
    return "\n".join(line if len(line) <= WIDTH else _one_a_line(line) for line in lines)


def _one_a_line(line: str) -> str:
    begin, depth, parts = line.index("(") + 1, 0, [""]
    for mark in line[begin : line.rindex(")")]:
        depth += (mark in "([{") - (mark in ")]}")
        if mark == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += mark
    margin = " " * (len(line) - len(line.lstrip()) + 4)
    arguments = "".join(f"{margin}{part.strip()},\n" for part in parts)
    return f"{line[:begin]}\n{arguments}{margin[4:]}{line[line.rindex(')') :]}"


def main() -> int:
    failed = 0
    for line in failing(sys.argv[1:]):
        print(line, file=sys.stderr)
        failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
