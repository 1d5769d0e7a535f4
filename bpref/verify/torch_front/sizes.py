"""The same function at other sizes: one more, which is no multiple of a block, and 1.

A kernel works block by block; what it does with a last block that is not full shows at few sizes. A size is changed
wherever it occurs in the arguments. It stays where something holds it: a parameter of a module, a number among the
arguments, the values of integers (offsets, lengths, a permutation).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bpref.verify.host.called import Called
from bpref.verify.host.check import judge_called
from bpref.verify.host.oracles import Oracle
from bpref.verify.naming import in_short
from bpref.verify.numbers.points import alike, is_specification
from bpref.verify.report import WRONG, Finding
from bpref.verify.torch_front.call import TorchCall

MOST = 4
"""How many different sizes are changed at most, the last axes' first: kernels split these into blocks."""


class Sized(NamedTuple):
    """What was seen at other sizes.

    Attributes:
      findings: what is wrong at the first size at which anything is; the detail begins with the shapes.
      note: which sizes were looked at, and which were refused, in one line; empty where there are none.
    """

    findings: list[Finding]
    note: str


def at_other_sizes(c: TorchCall, made: Callable[[TorchCall], tuple[Called, Oracle]], key: int) -> Sized:
    """`made` gives what is checked and what it is held against, of a call of other sizes."""
    seen: list[str] = []
    refused: list[str] = []
    findings: list[Finding] = []
    fixed: set[int] = set()
    for size, shapes, there in _others(c):
        # What cannot grow is tied to another size, and where it is 1 would be broadcast to that.
        if size in fixed:
            continue
        try:
            _, judged = judge_called(*made(there), key, points=(1,))
        except Exception as error:  # whatever it is, it says that this size is not for this function
            refused.append(f"{shapes} ({in_short(error)})")
            fixed.add(size)
            continue
        wrong = [j.finding for j in judged.values() if j.verdict.verdict == WRONG and j.finding]
        if any(f.kind == "structure" for f in wrong):
            refused.append(f"{shapes} ({wrong[0].detail})")
            fixed.add(size)
            continue
        seen.append(shapes)
        findings = [f._replace(detail=f"at {shapes}: {f.detail}") for f in wrong]
        if findings:
            break
    parts = [f"looked at {'; '.join(seen)} too"] * bool(seen) + [f"refused at {'; '.join(refused)}"] * bool(refused)
    return Sized(findings, "; ".join(parts))


def _others(c: TorchCall) -> Iterator[tuple[int, str, TorchCall]]:
    """Calls of other sizes, with the size that is another and the shapes that are, in words."""
    of_arguments = [v for v, p in zip(c.leaves, c.parameters, strict=True) if p is None]
    held = _held(c)
    sizes = dict.fromkeys(n for v in of_arguments for n in reversed(v.shape) if n > 1 and n not in held)
    for size in list(sizes)[:MOST]:
        for new in (size + 1, 1):
            leaves = [_resized(v, size, new) for v in c.leaves]
            other = [v.shape != w.shape for v, w in zip(leaves, c.leaves, strict=True)]
            layouts = [
                layout._replace(strides=None) if changed else layout
                for layout, changed in zip(c.layouts, other, strict=True)
            ]
            shapes = [f"{n} {list(v.shape)}" for n, v, changed in zip(c.names, leaves, other, strict=True) if changed]
            yield size, ", ".join(shapes), c._replace(leaves=leaves, layouts=tuple(layouts))


def _held(c: TorchCall) -> set[Any]:
    """The sizes that something other than the arguments' shapes holds."""
    of_parameters = {n for v, p in zip(c.leaves, c.parameters, strict=True) if p is not None for n in v.shape}
    numbers = {v for v in jax.tree.leaves(c.rebuild([None] * c.parameters.count(None))) if isinstance(v, int | float)}
    held = of_parameters | numbers
    sizes = {n for v in c.leaves if v.dtype.kind not in "iu" for n in v.shape}
    for v in c.leaves:
        if is_specification(v) or v.dtype.kind not in "iu" or not v.size:
            continue
        of_values = {*np.unique(v).tolist(), int(v.sum())}
        if np.array_equal(np.sort(v, axis=None), np.arange(v.size)):
            of_values.add(v.size)
        held |= of_values | (set(v.shape) if of_values & sizes else set())
    return held


def _resized(v: Any, size: int, new: int) -> Any:
    """An array with every axis of this size longer, by repeating its last entries, or shorter, by its first."""
    axes = [axis for axis, n in enumerate(v.shape) if n == size]
    if is_specification(v):
        return jax.ShapeDtypeStruct(tuple(new if n == size else n for n in v.shape), v.dtype)
    other = v
    for axis in axes:
        other = np.take(other, np.minimum(np.arange(new), size - 1), axis=axis)
    if v.dtype.kind in "iu":
        # What may name a place along the axis still does.
        return np.minimum(other, new - 1).astype(v.dtype) if v.size and new < size and v.max() < size else other
    if not axes or v.dtype.kind == "b":
        return other
    wide = np.complex128 if v.dtype.kind == "c" else np.float64
    return alike(other.astype(wide), v.astype(wide)).astype(v.dtype)
