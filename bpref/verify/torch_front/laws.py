"""What a PyTorch function owes besides right values: the same answer twice, in any layout, its inputs left alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

from bpref.verify.examining.subject import Entry, Misfit
from bpref.verify.host.sampling import cotangent
from bpref.verify.naming import in_short
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.measure import widened
from bpref.verify.oracle import Arrays
from bpref.verify.report import Finding
from bpref.verify.torch_front.call import Tensors, TorchCall, pulled
from bpref.verify.torch_front.tensors import Placement, to_numpy, to_tensor

CALLS = 3
"""How often the same call is made, to see whether it gives the same."""

ROUNDING = 64
"""In units of the last place of an array's largest element: what another order of summation may make."""

PADDING = 16
"""So many places beside each row of a slice of wider rows: a whole number of the widest loads, as in a fused qkv."""

FEW = 8
"""Of so many arguments each is once the only one without a gradient."""


class Observed(NamedTuple):
    """What the laws have found.

    Attributes:
      wrong: what makes a value wrong.
      remarks: what is worth knowing and makes nothing wrong.
      notes: for the reader.
      is_random: whether the same call gives other answers than rounding explains.
    """

    wrong: list[Finding]
    remarks: list[Finding]
    notes: list[str]
    is_random: bool = False


class Run(NamedTuple):
    """One call of forward and backward: outputs and cotangents by name, and which inputs were written into."""

    values: dict[str, np.ndarray]
    written: dict[str, str]


def observed(c: TorchCall, leaves: Arrays, others: Arrays, outputs: Callable[[int], list[str]], key: int) -> Observed:
    """All laws, at one point, in the dtypes of the arguments; `others` are the arguments of another call."""
    rng = fresh.generator(key, 20)
    with torch.no_grad():
        y = [to_numpy(v) for v in c.outputs(c.fun, c.tensors(leaves, [False] * len(leaves)))]
    dys = [to_tensor(v, Placement(c.placements[0].device, None)) for v in cotangent(y, rng)]
    names = outputs(len(y))
    runs = [_run(c, c.tensors(leaves), dys, names) for _ in range(CALLS)]
    found = Observed([], [], [])
    apart = {name: max(_ulps(r.values[name], runs[0].values[name]) for r in runs[1:]) for name in runs[0].values}
    changing = {name: ulps for name, ulps in apart.items() if ulps}
    if any(ulps > ROUNDING for ulps in changing.values()):
        return found._replace(is_random=True)
    if changing:
        name = max(changing, key=lambda n: changing[n])
        text = f"not deterministic: runs differ by up to {changing[name]:.2g} ulp in {_grad(name, names)}"
        found.notes.append(text)
        found.remarks.extend(Finding(n, "impure", text, ulps) for n, ulps in changing.items())
    for name, when in runs[0].written.items():
        text = f"its {when} writes into {name}"
        found.notes.append(text)
        (found.wrong if name.startswith("dy") else found.remarks).append(
            Finding(c.names[0] if name.startswith("dy") else name, "impure", text)
        )
    alone, with_graph = Run(dict(zip(names, y, strict=True)), {}), Run({n: runs[0].values[n] for n in names}, {})
    found.wrong.extend(_differing(c, alone, with_graph, names, "differs where no gradient is asked for"))
    _other_layouts(c, leaves, dys, names, runs[0], found)
    _other_cotangents(c, leaves, dys, names, runs[0], found)
    _fewer_gradients(c, leaves, dys, names, runs[0], found)
    _fewer_outputs(c, leaves, dys, names, found)
    _called_between(c, leaves, others, dys, runs[0], found)
    _called_again(c, leaves, dys, names, found)
    return found


def _run(c: TorchCall, tensors: Tensors, dys: Tensors, names: list[str]) -> Run:
    """One call; what the backward raises is raised."""
    before = [t.detach().clone() for t in tensors]
    written: dict[str, str] = {}
    y = c.outputs(c.fun, tensors)
    _note_writing(c, tensors, before, y, "forward", written)
    values = dict(zip(names, map(to_numpy, y), strict=True))
    before, given = [t.detach().clone() for t in tensors], [dy.clone() for dy in dys]
    entries = pulled(c, tensors, y, given)
    _note_writing(c, tensors, before, [], "backward", written)
    for i, (dy, was) in enumerate(zip(given, dys, strict=True)):
        if not _equal(dy, was):
            written["dy" if len(dys) == 1 else f"dy[{i}]"] = "backward"
    values |= {name: v for name, v in zip(c.names, entries, strict=True) if isinstance(v, np.ndarray)}
    misfit = next((v for v in entries if isinstance(v, Misfit)), None)
    if misfit is not None:
        raise RuntimeError(misfit.detail)
    return Run(values, written)


def _note_writing(c: TorchCall, tensors: list, before: list, y: list, when: str, written: dict[str, str]) -> None:
    for name, t, was in zip(c.names, tensors, before, strict=True):
        # What it returns it may have written into: it says so by `mark_dirty`.
        if not any(v is t for v in y) and not _equal(t.detach(), was):
            written.setdefault(name, when)


def _other_layouts(c: TorchCall, leaves: Arrays, dys: list, names: list[str], first: Run, found: Observed) -> None:
    """The same values laid out in other ways give the same."""
    for n, name in enumerate(c.names):
        plain = c.tensors(leaves)[n].detach()
        if not plain.ndim or not plain.numel() or c.parameters[n] is not None:
            continue
        for way, other in _layouts(plain).items():
            _compare(c, leaves, n, other, dys, names, first, found, way.format(name))
        if plain.shape[0] > 1 and plain.is_floating_point():
            row = plain[:1]
            repeated = [to_numpy(row.expand(plain.shape)) if i == n else v for i, v in enumerate(leaves)]
            (moved,) = fresh.nudged([repeated[n]], fresh.generator(n, 21), 2 * torch.finfo(plain.dtype).eps)
            nudged = [moved.astype(v.dtype) if i == n else v for i, v in enumerate(repeated)]
            try:
                usual, near = (_run(c, c.tensors(values), dys, names) for values in (repeated, nudged))
            except Exception:  # it may not take equal rows: then nothing is to be compared
                continue
            what = f"an expanded {name}"
            _compare(c, repeated, n, row.expand(plain.shape), dys, names, usual, found, what, near)


def _compare(
    c: TorchCall,
    leaves: Arrays,
    n: int,
    other: torch.Tensor,
    dys: list,
    names: list[str],
    first: Run,
    found: Observed,
    what: str,
    near: Run | None = None,
) -> None:
    tensors = c.tensors(leaves)
    tensors[n] = other.detach().requires_grad_(c.differentiable[n])
    try:
        run = _run(c, tensors, dys, names)
    except Exception as error:
        found.notes.append(f"it refuses {what} ({in_short(error)})")
        return
    found.wrong.extend(_differing(c, run, first, names, f"differs for {what}", near=near))


def _differing(
    c: TorchCall,
    run: Run,
    first: Run,
    names: list[str],
    text: str,
    like: Run | None = None,
    near: Run | None = None,
) -> list[Finding]:
    # A cotangent that is zero but for rounding is measured by the others.
    others = max((_size(v) for name, v in (like or first).values.items() if name in c.names), default=0.0)
    differs = {
        name: _ulps(run.values.get(name), v, 0.1 * others if name in c.names else 0.0)
        for name, v in first.values.items()
    }
    # What a unit of the last place of an argument moves by more, rounding does: equal rows have no variance.
    moved = {name: _ulps(near.values.get(name), v) if near else 1.0 for name, v in first.values.items()}
    wrong = {name for name, ulps in differs.items() if ulps > ROUNDING * max(moved[name], 1.0)}
    # Where the output is another, every cotangent may be.
    of_output = sorted(wrong & set(names))
    chosen = [n for n in c.names if n in wrong] or [c.names[c.differentiable.index(True)]]
    if of_output:
        return [Finding(chosen[0], "impure", f"{of_output[0]} {text}")]
    return [Finding(name, "impure", text) for name in chosen if wrong]


def _other_cotangents(c: TorchCall, leaves: Arrays, dys: list, names: list[str], first: Run, found: Observed) -> None:
    """A cotangent in another layout, or expanded as sums and means send it, gives what a contiguous one does."""
    floats = [dy.is_floating_point() or dy.is_complex() for dy in dys]
    ways = {"an expanded dy, as y.sum().backward() sends it": lambda dy: dy.new_ones(()).expand(dy.shape)}
    for what in dict.fromkeys(way for dy in dys if dy.ndim and dy.numel() for way in _layouts(dy)):
        ways[what.format("dy")] = lambda dy, what=what: _layouts(dy).get(what, dy) if dy.ndim else dy
    if any(dy.ndim > 1 for dy in dys):
        ways["a dy expanded along its first axis"] = lambda dy: dy[:1].expand(dy.shape) if dy.ndim > 1 else dy
        ways["a dy expanded along its last axis"] = lambda dy: dy[..., :1].expand(dy.shape) if dy.ndim > 1 else dy
    for what, way in ways.items():
        other = [way(dy) if keep else dy for dy, keep in zip(dys, floats, strict=True)]
        try:
            usual = _run(c, c.tensors(leaves), [dy.clone(memory_format=torch.contiguous_format) for dy in other], names)
            tensors = c.tensors(leaves)
            entries = pulled(c, tensors, c.outputs(c.fun, tensors), other)
        except Exception as error:
            found.notes.append(f"with {what} it raises {in_short(error)}")
            continue
        misfits = [v for v in entries if isinstance(v, Misfit)]
        if misfits:
            name = c.names[c.differentiable.index(True)]
            found.wrong.append(Finding(name, "impure", f"with {what} {misfits[0].detail}"))
            continue
        values = {name: v for name, v in zip(c.names, entries, strict=True) if isinstance(v, np.ndarray)}
        cotangents = Run({n: v for n, v in usual.values.items() if n in values}, {})
        found.wrong.extend(_differing(c, Run(values, {}), cotangents, [], f"differs for {what}", first))


def _fewer_gradients(c: TorchCall, leaves: Arrays, dys: list, names: list[str], first: Run, found: Observed) -> None:
    """Where one argument alone asks for a gradient, or one alone asks for none, it is the same."""
    chosen = [i for i, d in enumerate(c.differentiable) if d]
    ways = [(i, {i}, "alone needs a gradient") for i in chosen] * (len(chosen) > 1)
    ways += [(i, {*chosen} - {i}, "needs no gradient") for i in chosen] * (2 < len(chosen) <= FEW)
    for i, asked, how in ways:
        name = c.names[i]
        tensors = c.tensors(leaves, [j in asked for j in range(len(leaves))])
        try:
            run = _run(c, tensors, dys, names)
        except Exception as error:
            detail = f"where {name} {how} it raises {in_short(error)}"
            found.wrong.append(Finding(name, "impure", detail))
            continue
        known = ((c.names[j], first.values.get(c.names[j])) for j in sorted(asked))
        wrong = [n for n, v in known if v is not None and _ulps(run.values.get(n), v) > ROUNDING]
        found.wrong.extend(Finding(n, "impure", f"differs where {name} {how}") for n in wrong)


def _fewer_outputs(c: TorchCall, leaves: Arrays, dys: list, names: list[str], found: Observed) -> None:
    """Where one output alone is used it is the same as beside cotangents of zeros.

    A backward under `set_materialize_grads(False)` has None for the others.
    """
    floats = [j for j, dy in enumerate(dys) if dy.is_floating_point() or dy.is_complex()]
    for j in floats if len(floats) > 1 else []:
        of_ways = []
        for used in ([j], floats):
            tensors = c.tensors(leaves)
            y = c.outputs(c.fun, tensors)
            if not y[j].requires_grad:
                break
            entries = pulled(c, tensors, [y[i] for i in used], [dys[i] if i == j else dys[i] * 0 for i in used])
            of_ways.append(dict(zip(c.names, entries, strict=True)))
        if len(of_ways) < 2:
            continue
        alone, beside = of_ways
        misfit = next((v for v in alone.values() if isinstance(v, Misfit)), None)
        if misfit is not None:
            name = c.names[c.differentiable.index(True)]
            found.wrong.append(Finding(name, "impure", f"where {names[j]} alone is used, {misfit.detail}"))
            continue
        first, run = (
            Run({n: _or_zeros(w.get(n), v) for n, v in beside.items() if isinstance(v, np.ndarray)}, {})
            for w in (beside, alone)
        )
        found.wrong.extend(_differing(c, run, first, [], f"differs where {names[j]} alone is used"))


def _or_zeros(v: Entry, like: np.ndarray) -> np.ndarray:
    """A cotangent, None being zero."""
    return v if isinstance(v, np.ndarray) else np.zeros_like(like)


def _called_between(c: TorchCall, leaves: Arrays, others: Arrays, dys: list, first: Run, found: Observed) -> None:
    """Where it is called with other arguments before its backward, that is of the first call still."""
    tensors = c.tensors(leaves)
    y = c.outputs(c.fun, tensors)
    try:
        c.outputs(c.fun, c.tensors(others))
    except Exception:  # it may not take other values: then nothing is between
        return
    entries = pulled(c, tensors, y, [dy.clone() for dy in dys])
    text = "differs where it is called with other arguments before its backward"
    misfits = [v.detail for v in entries if isinstance(v, Misfit)]
    values = {n: v for n, v in zip(c.names, entries, strict=True) if isinstance(v, np.ndarray)}
    usual = Run({n: v for n, v in first.values.items() if n in c.names}, {})
    found.wrong.extend(
        [Finding(c.names[c.differentiable.index(True)], "impure", f"{text}: {misfits[0]}")]
        if misfits
        else _differing(c, Run(values, {}), usual, [], text)
    )


def _called_again(c: TorchCall, leaves: Arrays, dys: list, names: list[str], found: Observed) -> None:
    """A graph that is kept gives the same the second time."""
    tensors = c.tensors(leaves)
    try:
        y = c.outputs(c.fun, tensors)
        once, again = (pulled(c, tensors, y, [dy.clone() for dy in dys], keep=True) for _ in range(2))
    except Exception:  # it may be called once only, and says so
        return
    for name, v, w in zip(c.names, once, again, strict=True):
        if isinstance(v, np.ndarray) and isinstance(w, np.ndarray) and _ulps(w, v) > ROUNDING:
            text = f"d{name} is another the second time that the backward is called (retain_graph=True)"
            found.notes.append(text)
            found.remarks.append(Finding(name, "impure", text))


def _layouts(t: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values laid out in other ways, by what such a tensor is called with a name in place of {}."""
    n = t.shape[-1]
    twice, wider = t.new_zeros((*t.shape[:-1], 2 * n)), t.new_zeros((*t.shape[:-1], n + 2 * PADDING))
    ways = {"a non-contiguous {}": twice[..., ::2], "{} sliced from wider rows": wider[..., PADDING:-PADDING]}
    for other in ways.values():
        other[...] = t
    if t.ndim > 1:
        ways["a transposed {}"] = t.mT.contiguous().mT
    if t.ndim == 4:
        ways["{} in channels_last"] = t.contiguous(memory_format=torch.channels_last)
    return ways


def _ulps(v: np.ndarray | None, w: np.ndarray, size: float = 0.0) -> float:
    """How far two arrays are apart, in units of the last place of the largest element; 0 where all bits are equal.

    Where that is smaller than `size`, of that.
    """
    if v is None or v.shape != w.shape:
        return np.inf
    if v.tobytes() == w.tobytes() or not v.size:
        return 0.0
    if not jnp.issubdtype(w.dtype, jnp.inexact):
        return np.inf
    eps = float(jnp.finfo(w.dtype).eps)
    value, truth = widened((v, w))
    equal = (value == truth) | (np.isnan(value) & np.isnan(truth))
    with np.errstate(invalid="ignore"):
        apart = np.where(equal, 0.0, np.abs(value - truth))
    size = max(_size(truth), size)
    return float(np.max(np.where(np.isfinite(apart), apart, np.inf)) / max(eps * size, np.finfo(float).tiny))


def _size(v: np.ndarray) -> float:
    v = np.abs(widened(v))
    return float(np.max(np.where(np.isfinite(v), v, 0.0), initial=0.0))


def _equal(v: torch.Tensor, w: torch.Tensor) -> bool:
    return (
        bool(torch.equal(torch.nan_to_num(v), torch.nan_to_num(w))) if v.dtype.is_floating_point else torch.equal(v, w)
    )


def _grad(name: str, outputs: list[str]) -> str:
    return name if name in outputs else f"d{name}"
