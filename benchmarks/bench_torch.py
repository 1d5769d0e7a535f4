"""The corpus in the form of PyTorch: what `bpref.check` finds of it there, and what it accuses unjustly.

    python -m benchmarks.bench_torch [--seeds 1] [--names NAME ...] [--minutes 60] [--json FILE]

Each function becomes a `torch.autograd.Function` whose forward and backward are the corpus's, run by JAX over the
tensors' values; the reference is the same forward with autodiff's cotangents. In four data types beside the reference,
and once without one, held against finite differences. Left out are, as in `bench_checker`, functions that JAX does not
have in a half precision, and derivations that PyTorch mends by itself: it sums and casts what a backward returns. The
right ones are asked about first. What the file has already is not asked again, and it is written after each function,
so that a run which the minutes ended goes on where it stood. A wrong one is caught by any verdict but `ok`, a right
one accused by `wrong` or `imprecise`.
"""

import argparse
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

import bpref
from benchmarks import torch_figures
from benchmarks.checker_trials import arguments, mended_by_torch, wrong_in
from benchmarks.torch_figures import Row
from bpref.corpus import DERIVATIONS, Derivation
from bpref.verify.oracle import as_cotangent, with_cotangents
from bpref.verify.programs.quick import quick_compilation
from bpref.verify.report import IMPRECISE, OK, WRONG, Report
from bpref.verify.torch_front.tensors import Placement, to_numpy, to_tensor

CPU = Placement(torch.device("cpu"), None)
DTYPES = ("float32", "float64", "bfloat16", "float16")
HALF = ("bfloat16", "float16")


class Way(NamedTuple):
    """How a derivation is asked about: in which dtype, beside a reference or alone."""

    dtype: str
    has_reference: bool

    def __str__(self) -> str:
        return f"{self.dtype}, {'beside a reference' if self.has_reference else 'alone'}"


WAYS = (*(Way(dtype, True) for dtype in DTYPES), Way("float32", False))


class Trial(NamedTuple):
    """One derivation, asked about once; `case` is empty for the right one, `verdict` what was said or raised."""

    way: Way
    derivation: str
    case: str
    seed: int
    verdict: str

    def __str__(self) -> str:
        return f"{self.derivation}, {self.case or 'right'}, {self.way}, seed {self.seed}: {self.verdict}"


def in_torch(forward: Callable[..., Any], backward: Callable[[tuple, Any], tuple] | None = None) -> Callable[..., Any]:
    """A derivation as somebody's `autograd.Function`; with autodiff's cotangents where there is no backward."""
    run, pull = _compiled(forward), _compiled(backward or _by_autodiff(forward))
    trees: dict[str, Any] = {}

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            with _x64_for(tensors):
                leaves, trees["y"] = jax.tree.flatten(run(*map(to_numpy, tensors)))
            made = list(map(tensor, leaves))
            return tuple(made) if len(made) > 1 else made[0]

        @staticmethod
        def backward(ctx, *dys):
            tensors = ctx.saved_tensors
            with _x64_for(tensors):
                found = pull(tuple(map(to_numpy, tensors)), jax.tree.unflatten(trees["y"], map(to_numpy, dys)))
            return tuple(None if v is None else tensor(v) for v in found)

    return Rule.apply


@cache
def _compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(f, compiler_options=quick_compilation())


def _by_autodiff(forward: Callable[..., Any]) -> Callable[[tuple, Any], tuple]:
    def cotangents(args: tuple, dy: Any) -> tuple:
        y, pull = with_cotangents(forward, *args)
        return pull(as_cotangent(dy, y))

    return cotangents


def tensor(v: Any) -> torch.Tensor:
    """An argument of the corpus as PyTorch has it."""
    return to_tensor(np.asarray(v), CPU)


def _x64_for(tensors: Any) -> Any:
    return jax.enable_x64(any(t.dtype == torch.float64 for t in tensors))


def reported(d: Derivation, backward: Any, reference: Any, way: Way, seed: int) -> Report:
    """What `bpref.check` says of one derivation at the arguments of a seed."""
    with jax.enable_x64(way.dtype == "float64"):
        args = list(map(tensor, arguments(d, way.dtype, seed)))
    return bpref.check(backward, *args, reference=reference if way.has_reference else None, key=seed)


def trials(d: Derivation, way: Way, seeds: int, is_wrong: bool) -> Iterator[Trial]:
    """The right derivation of a function, or the wrong ones that are wrong in this dtype, and in PyTorch."""
    if way.dtype in HALF and not _runs(d, way.dtype):
        return
    wrong = [w for w in d.wrong if wrong_in(d, w, way.dtype) and not mended_by_torch(d, w.backward)]
    reference = in_torch(d.forward)
    for case, backward in [(w.name, w.backward) for w in wrong] if is_wrong else [("", d.backward)]:
        function = in_torch(d.forward, backward)
        for seed in range(seeds):
            try:
                said = reported(d, function, reference, way, seed)
                verdict = said.verdict if said.verdict == OK else f"{said.verdict}\n{said}"
            except Exception as error:
                verdict = f"raised {type(error).__name__}: {str(error)[:200]}"
            yield Trial(way, d.name, case, seed, verdict)


def _runs(d: Derivation, dtype: str) -> bool:
    args = arguments(d, dtype, 0)
    try:
        jax.block_until_ready(d.backward(args, d.forward(*args)))
    except (NotImplementedError, ValueError):
        return False
    return all(jnp.issubdtype(v.dtype, jnp.inexact) for v in jax.tree.leaves(d.forward(*args)))


def is_caught(t: Trial) -> bool:
    return not t.verdict.startswith((OK, "raised"))


def is_accused(t: Trial) -> bool:
    return t.verdict.startswith((WRONG, IMPRECISE, "raised"))


def rows(d: Derivation, way: Way, seeds: int, is_wrong: bool) -> Iterator[Row]:
    """A row for each kind; what was missed or accused is printed."""
    kinds = {w.name: w.kind for w in d.wrong} | {"": ""}
    found = list(trials(d, way, seeds, is_wrong))
    for t in found:
        if not is_caught(t) if t.case else is_accused(t):
            print(re.sub("^", "    ", str(t), flags=re.MULTILINE), flush=True)
    for kind in dict.fromkeys(kinds[t.case] for t in found):
        said = [is_caught(t) if t.case else is_accused(t) for t in found if kinds[t.case] == kind]
        yield Row(d.name, str(way), kind, sum(said), len(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="how often each derivation is asked about")
    parser.add_argument("--names", nargs="*", default=list(DERIVATIONS), help="of functions; all of them if left out")
    parser.add_argument("--minutes", type=float, default=60, help="when to stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, and go on from those there")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    known = torch_figures.read(options.json) if options.json else []
    has = {(r.function, bool(r.kind)) for r in known}
    names: list[str] = options.names
    for is_wrong, name in product([False, True], names):
        if (name, is_wrong) in has or time.monotonic() > end:
            continue
        _compiled.cache_clear()
        jax.clear_caches()
        for way in WAYS:
            known += rows(DERIVATIONS[name], way, options.seeds, is_wrong)
        if options.json:
            torch_figures.write(options.json, known)
    print(torch_figures.table(known))


if __name__ == "__main__":
    main()
