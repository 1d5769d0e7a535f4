"""`check` of PyTorch code: what torch.autograd gives through it, held against float64 autograd of a reference."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from bpref.verify import torch_oracle
from bpref.verify.examining.program import SCALES, output_name
from bpref.verify.examining.refusals import CannotCheck, refuse_eager
from bpref.verify.host.called import Arrays, Called, in_dtype
from bpref.verify.host.check import check_called, disagreements, of_two_answers
from bpref.verify.host.oracles import Oracle, exact, numerical
from bpref.verify.host.sampling import point
from bpref.verify.naming import first_line
from bpref.verify.oracle import is_differentiable
from bpref.verify.report import WRONG, Report, Verdict
from bpref.verify.torch_front.call import TorchCall, plain, swept, torch_call
from bpref.verify.torch_front.laws import Observed, observed
from bpref.verify.torch_front.sizes import Sized, at_other_sizes
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


def check_torch(
    fun: Any,
    args: tuple,
    reference: Callable[..., Any] | None,
    backward: Callable[[tuple, Any], tuple] | None,
    key: int,
    dtypes: Sequence[Any] | None,
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
    c: TorchCall, reference: Any, backward: Any, key: int, dtypes: Any, linear: bool, cross_check: bool
) -> Report:
    fun = c.fun
    if backward is not None and any(p is not None for p in c.parameters):
        raise CannotCheck(f"{c.name}: backward= goes with a function; a module's own backward is what is checked")
    _require_running(c, key)
    front = _front(c, backward)
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


def _front(c: TorchCall, backward: Any) -> Called:
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


def _oracle(c: TorchCall, front: Called, reference: Any, backward: Any, key: int) -> tuple[Oracle, list[str]]:
    leaves = point(front, key, 0)
    if reference is not None:
        return _differentiated(c, reference, OF_REFERENCE, leaves), []
    if backward is not None and not _has_own_backward(c, c.fun, leaves):
        return _differentiated(c, c.fun, OF_ITSELF, leaves)._replace(y=None), []
    runs = _runs_in_float64(front, key)
    return numerical(front.plain, c.differentiable, "its own primal", False, LIMIT), [] if runs else [GIVE_ONE]


def _differentiated(c: TorchCall, fun: Any, text: str, leaves: Arrays) -> Oracle:
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
        return observed(c, leaves, front.outputs, key)
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


def _has_own_backward(c: TorchCall, fun: Any, leaves: Arrays) -> bool:
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
    try:
        y = front.plain(point(front, key, 0))
    except CannotCheck:
        raise
    except Exception as error:
        called = ", ".join(f"{n}: {v.dtype}{list(v.shape)}" for n, v in zip(c.names, c.leaves, strict=True))
        raise CannotCheck(
            f"{c.name} raised {type(error).__name__}: {first_line(error)} (called with {called})"
        ) from error
    if not any(is_differentiable(v) for v in y):
        raise CannotCheck(f"{c.name}: it returns no floating-point numbers, so there is nothing to differentiate")
