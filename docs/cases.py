"""The calls that a rule is verified on, as a table."""

import html
from typing import Any

import jax

from bpref.rule import Boolean, Integer, Interval, Key, Real, Rule, Size
from bpref.verify.rules.draw import is_spec
from docs.snippets import written_value

KINDS = {Real: "real", Integer: "integers", Boolean: "booleans", Key: "key"}


def to_page(rule: Rule) -> str:
    """A row for each case: its name, its arrays, what the rule is called with."""
    rows = "".join(
        f"<tr><td>{html.escape(case.name)}</td><td>{_arrays(case.x)}</td><td>{_hyper(case.hyper)}</td></tr>"
        for case in rule.cases
    )
    head = "<tr><th>case</th><th>x</th><th>called with</th></tr>"
    return f'<div class="wide"><table class="cases"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _arrays(x: Any) -> str:
    with_paths, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=is_spec)
    return ", ".join(f"{_name(path)}<code>{KINDS[type(spec)]} ({_axes(spec)})</code>" for path, spec in with_paths)


def _name(path: tuple) -> str:
    name = ".".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", "")))) for k in path)
    return f"{name}: " if name else ""


def _axes(spec: Any) -> str:
    return ", ".join(spec.axes.split())


def _hyper(hyper: Any) -> str:
    return ", ".join(f"<code>{name}={html.escape(_value(value))}</code>" for name, value in hyper.items())


def _value(value: Any) -> str:
    if isinstance(value, Size):
        return value.axis
    return f"{value.low:g} to {value.high:g}" if isinstance(value, Interval) else written_value(value)
