"""`check` of PyTorch code: what torch.autograd gives through it, held against float64 autograd of a reference."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import torch
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.verify import torch_oracle
from bpref.verify.examining.program import SCALES, output_name
from bpref.verify.examining.refusals import CannotCheck, refuse_eager
from bpref.verify.host.called import Called, in_dtype
from bpref.verify.host.check import check_called, disagreements, judge_called, of_two_answers
from bpref.verify.host.oracles import Oracle, exact, numerical
from bpref.verify.host.sampling import point
from bpref.verify.naming import first_line, in_short
from bpref.verify.numbers.points import alike, is_specification
from bpref.verify.oracle import Arrays, Leaf, is_differentiable
from bpref.verify.report import WRONG, Finding, Report, Verdict
from bpref.verify.torch_front.call import TorchCall, plain, swept, torch_call
from bpref.verify.torch_front.laws import Observed, observed
from bpref.verify.torch_front.tensors import dtype_name

OF_REFERENCE = "float64 oracle: the reference, differentiated by torch.autograd"
OF_ITSELF = "float64 oracle: its own primal, differentiated by torch.autograd"

CASTS = "it casts down inside; the derivation was judged without those casts"

ON_PURPOSE = ": a detach(), or a mistake in the reference"

LIMIT, FEW = 16, 128
"""So many elements of each argument are looked at one by one where there are calls alone, which take their time; all of
a wrong one that has few."""

SMALL = 2**18
"""So many elements are computed by one thread: to wake another takes longer."""

GIVE_ONE = "it does not run in float64, where differences would decide: give reference=, a plain version of it"

MOST_SIZES = 4
"""How many different sizes are changed at most, the last axes' first: kernels split these into blocks."""


class Sized(NamedTuple):
    """What was seen at other sizes.

    Attributes:
      findings: what is wrong at the first size at which anything is; the detail begins with the shapes.
      note: which sizes were looked at, and which were refused, in one line; empty where there are none.
    """

    findings: list[Finding]
    note: str


def check_torch(
    fun: Callable,
    args: tuple,
    reference: Callable[..., PyTree] | None,
    backward: Callable[[tuple, PyTree], tuple] | None,
    key: int,
    dtypes: Sequence[DTypeLike] | None,
    linear: bool,
    eager: bool,
    cross_check: bool,
) -> Report:
    """The report of a function, an `autograd.Function`'s `apply` or a module, called with tensors; as in `check`.

    The hand is what torch.autograd gives through `fun`, or `backward`. Without a reference the oracle is finite
    differences in float64; for a `backward` beside a function of PyTorch's own operations, autograd of that.

    Which arguments have a gradient: those that ask for one (`requires_grad`), or where none does all floating-point
    ones; of a module's parameters those that are not frozen.
    """
    c = torch_call(fun, args)
    refuse_eager(eager, c.name, "PyTorch's, which is called as it is")
    with _threads_for(c):
        return _report(c, reference, backward, key, dtypes, linear, cross_check)


def _report(
    c: TorchCall,
    reference: Callable | None,
    backward: Callable | None,
    key: int,
    dtypes: Sequence[DTypeLike] | None,
    linear: bool,
    cross_check: bool,
) -> Report:
    fun = c.fun
    if backward is not None and any(p is not None for p in c.parameters):
        raise CannotCheck(f"{c.name}: backward= goes with a function; a module's own backward is what is checked")
    _require_running(c, key)
    front = _front(c, backward)
    if reference is not None:
        _require_reference(c, reference, point(front, key, 0))
    oracle, notes = _oracle(c, front, reference, backward, key)
    found = disagreements(front, oracle, key)
    if not cross_check or oracle.differs():
        notes += [f"{f.where}: {f.detail}{ON_PURPOSE}" for f in found]
        found = []
    seen = _observed(c, front, key) if backward is None else Observed([], [], [])
    if seen.is_random:
        return of_two_answers(front, oracle, key, tuple(notes))
    names = None if dtypes is None else [dtype_name(d) for d in dtypes]
    known = (*notes, *seen.notes), (*found, *seen.wrong)
    report = check_called(front, oracle, key, names, linear, *known)
    if report.verdict == WRONG and not oracle.is_exact and LIMIT < max(_sizes(c)) <= FEW:
        # To say what is wrong takes every element.
        oracle = numerical(front.plain, c.differentiable, "its own primal", False)
        report = check_called(front, oracle, key, names, linear, *known)
    if report.verdict != WRONG:

        def made(there: TorchCall) -> tuple[Called, Oracle]:
            front = _front(there, backward)._replace(scale=1.0 if linear else SCALES[-1])
            return front, _oracle(there, front, reference, backward, key)[0]

        report = _with_sizes(report, at_other_sizes(c, made, key))
    casts = (CASTS,) if fun in c.watch.casts else ()
    return report._replace(findings=(*report.findings, *seen.remarks), notes=(*report.notes, *casts))


def _front(c: TorchCall, backward: Callable | None) -> Called:
    return Called(
        c.name,
        c.names,
        c.leaves,
        c.differentiable,
        lambda leaves: swept(c, c.fun, leaves, backward),
        lambda leaves: plain(c, c.fun, leaves),
        False,
        output_name(c.names),
    )


def _with_sizes(report: Report, sized: Sized) -> Report:
    """A report in which what is wrong at another size is wrong."""
    found = {f.where: f for f in sized.findings}
    verdicts = tuple(
        Verdict(v.where, WRONG, f.detail, f.error) if (f := found.get(v.where)) else v for v in report.verdicts
    )
    kept = tuple(f for f in report.findings if f.where not in found)
    notes = (*report.notes, sized.note) if sized.note else report.notes
    return report._replace(verdicts=verdicts, findings=(*sized.findings, *kept), notes=notes)


def _oracle(
    c: TorchCall, front: Called, reference: Callable | None, backward: Callable | None, key: int
) -> tuple[Oracle, list[str]]:
    leaves = point(front, key, 0)
    if reference is not None:
        return _differentiated(c, reference, OF_REFERENCE, leaves), []
    if backward is not None and not _has_own_backward(c, c.fun, leaves):
        return _differentiated(c, c.fun, OF_ITSELF, leaves)._replace(y=None), []
    runs = _runs_in_float64(front, key)
    return numerical(front.plain, c.differentiable, "its own primal", False, LIMIT), [] if runs else [GIVE_ONE]


def _differentiated(c: TorchCall, fun: Callable, text: str, leaves: Arrays) -> Oracle:
    def run(leaves: Arrays, dys: list[Arrays]) -> tuple[Arrays, list[Arrays]]:
        if not dys:
            return plain(c, fun, leaves), []
        found = []
        y: Arrays = []
        for dy in dys:
            y, pull = swept(c, fun, leaves)
            cast = [np.asarray(d).astype(v.dtype) for d, v in zip(dy, y, strict=True)]
            came = pull(cast)
            zeros = [np.zeros(v.shape, v.dtype) if d else None for v, d in zip(leaves, c.differentiable, strict=True)]
            found.append([v if isinstance(v, np.ndarray) else zero for v, zero in zip(came, zeros, strict=True)])
        return y, found

    def in_float64(leaves: Arrays, dys: list[Arrays]) -> tuple[Arrays, list[Arrays]]:
        wide = [in_dtype(v, "float64") if d else v for v, d in zip(leaves, c.differentiable, strict=True)]
        return run(wide, [[in_dtype(v, "float64") if is_differentiable(v) else v for v in dy] for dy in dys])

    return exact(text, run, in_float64, lambda: fun in c.watch.stops or _has_own_backward(c, fun, leaves))


def _observed(c: TorchCall, front: Called, key: int) -> Observed:
    leaves = point(front, key, 0)
    try:
        return observed(c, leaves, point(front, key, 1), front.outputs, key)
    except RuntimeError:  # its backward fails as it is: the verdicts say how
        return Observed([], [], [])


def _sizes(c: TorchCall) -> list[int]:
    return [int(np.prod(v.shape)) for v in c.leaves]


@contextmanager
def _threads_for(c: TorchCall) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if max(_sizes(c)) < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _has_own_backward(c: TorchCall, fun: Callable, leaves: Arrays) -> bool:
    return torch_oracle.has_own_backward(c.outputs(fun, c.tensors(leaves)))


def _runs_in_float64(front: Called, key: int) -> bool:
    leaves = [
        in_dtype(v, "float64") if d else v for v, d in zip(point(front, key, 0), front.differentiable, strict=True)
    ]
    try:
        return all(v.dtype in (np.float64, np.complex128) for v in front.plain(leaves) if is_differentiable(v))
    except Exception:  # whatever it is, it says that this dtype is not for this function
        return False


def _require_running(c: TorchCall, key: int) -> None:
    """Raise `CannotCheck` with what the function itself raises."""
    front = Called(c.name, c.names, c.leaves, c.differentiable, partial(swept, c, c.fun), partial(plain, c, c.fun))
    with _blaming(c, c.name):
        y = front.plain(point(front, key, 0))
    if not any(is_differentiable(v) for v in y):
        raise CannotCheck(f"{c.name}: it returns no floating-point numbers, so there is nothing to differentiate")


def _require_reference(c: TorchCall, reference: Callable, leaves: Arrays) -> None:
    """Raise `CannotCheck` with what the reference raises."""
    with _blaming(c, "the reference"):
        plain(c, reference, leaves)


@contextmanager
def _blaming(c: TorchCall, what: str) -> Iterator[None]:
    """`CannotCheck` in place of what is raised inside, which says whose it is."""
    try:
        yield
    except CannotCheck:
        raise
    except Exception as error:
        called = ", ".join(f"{n}: {v.dtype}{list(v.shape)}" for n, v in zip(c.names, c.leaves, strict=True))
        raise CannotCheck(
            f"{what} raised {type(error).__name__}: {first_line(error)} (called with {called})"
        ) from error


def at_other_sizes(c: TorchCall, made: Callable[[TorchCall], tuple[Called, Oracle]], key: int) -> Sized:
    """The same function at other sizes: one more, which is no multiple of a block, and 1.

    A kernel works block by block; what it does with a last block that is not full shows at few sizes. A size is changed
    wherever it occurs in the arguments. It stays where something holds it: a parameter of a module, a number among the
    arguments, the values of integers (offsets, lengths, a permutation).

    `made` gives what is checked and what it is held against, of a call of other sizes.
    """
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
    for size in list(sizes)[:MOST_SIZES]:
        for new in (size + 1, 1):
            leaves = [_resized(v, size, new) for v in c.leaves]
            other = [v.shape != w.shape for v, w in zip(leaves, c.leaves, strict=True)]
            placements = [
                placement._replace(strides=None) if changed else placement
                for placement, changed in zip(c.placements, other, strict=True)
            ]
            shapes = [f"{n} {list(v.shape)}" for n, v, changed in zip(c.names, leaves, other, strict=True) if changed]
            yield size, ", ".join(shapes), c._replace(leaves=leaves, placements=tuple(placements))


def _held(c: TorchCall) -> set[float]:
    """The sizes that something other than the arguments' shapes holds."""
    of_parameters = {n for v, p in zip(c.leaves, c.parameters, strict=True) if p is not None for n in v.shape}
    numbers = {v for v in jax.tree.leaves(c.rebuild([None] * c.parameters.count(None))) if isinstance(v, int | float)}
    held: set[float] = of_parameters | numbers
    sizes = {n for v in c.leaves if v.dtype.kind not in "iu" for n in v.shape}
    for v in c.leaves:
        if is_specification(v) or v.dtype.kind not in "iu" or not v.size:
            continue
        of_values = {*np.unique(v).tolist(), int(v.sum())}
        if np.array_equal(np.sort(v, axis=None), np.arange(v.size)):
            of_values.add(v.size)
        held |= of_values | (set(v.shape) if of_values & sizes else set())
    return held


def _resized(v: Leaf, size: int, new: int) -> Leaf:
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
