"""search: is there a shape, a dtype, a value or a hyperparameter for which a hand-derived gradient is wrong?"""

import json
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import PyTree

from bpref.bridge import as_function
from bpref.layer import Layer
from bpref.verify.naming import function_name
from bpref.verify.options import (
    require_count,
    require_fitting,
    require_flags,
    require_functions,
    require_seconds,
    seed_of,
)
from bpref.verify.report import Report
from bpref.verify.searching.hunt import Hunt, leaving_nothing_behind, require_hypothesis
from bpref.verify.searching.layouts import (
    Template,
    as_template,
)
from bpref.verify.searching.snippet import snippet


class SearchReport(NamedTuple):
    """What `search` says. Printed: what was tried, and if a case failed, its report and a program that shows it.

    Attributes:
      name: what was searched.
      key: the seed of every draw: the same cases are tried in the same order, as many as the time allows.
      tried: how many cases were checked.
      refused: of these, how many the function did not take: it raised `ValueError`, `TypeError` or the like.
      undecided: of these, how many ended in 'cannot tell'.
      seconds: how long it took.
      args: the arguments of the failing case, made as small as was possible; None if there is none.
      report: what `check` says of it.
      snippet: a self-contained program that checks it again.
      refusal: the first message of a refusal.
      values: how the arguments of the failing case were drawn, such as `x: flat rows`, before they were made smaller.
    """

    name: str
    key: int
    tried: int
    refused: int
    undecided: int
    seconds: float
    args: tuple | None = None
    report: Report | None = None
    snippet: str = ""
    refusal: str = ""
    values: str = ""

    @property
    def found(self) -> bool:
        """Whether there is a case that fails."""
        return self.report is not None

    @property
    def ok(self) -> bool:
        """Whether cases were decided, and all of them found right."""
        return not self.found and self.tried > self.refused + self.undecided

    def raise_if_wrong(self) -> "SearchReport":
        """Raise `AssertionError` with the report if a case failed; else the report itself."""
        if self.found:
            raise AssertionError(f"\n{self}")
        return self

    def to_json(self) -> str:
        """The whole report as one JSON object; the arguments as they stand in the snippet."""
        whole = self._asdict() | {"found": self.found, "ok": self.ok}
        del whole["args"]
        return json.dumps(whole | {"report": json.loads(self.report.to_json()) if self.report else None}, indent=1)

    def __str__(self) -> str:
        tried = f"{self.tried} cases in {self.seconds:.0f} s, {self.refused} refused, {self.undecided} undecided"
        if self.report is None:
            outcome = "no failing case" if self.ok else "nothing could be decided"
            refusal = f"\n  the first refusal: {self.refusal}" if self.refusal and not self.ok else ""
            return f"{self.name}   {outcome}   {tried}   key {self.key}{refusal}"
        values = f"  drawn as {self.values}\n" if self.values else ""
        return f"{self.name}   FAILS   {tried}   key {self.key}\n{values}\n{self.report}\n\n{self.snippet}"


def search(
    fun: Callable | Layer,
    specs: PyTree,
    reference: Callable[..., PyTree] | None = None,
    backward: Callable[[tuple, PyTree], tuple] | None = None,
    seconds: float = 10.0,
    key: int | Array | None = None,
    examples: int | None = None,
    cross_check: bool = True,
) -> SearchReport:
    """Look for arguments for which `check` finds a derivation wrong or imprecise; a function of PyTorch gets tensors.

    Tried are sizes of 1 and 0, odd and prime ones, square and not; every dtype and hyperparameter given; ties, zeros,
    repeated indices and ids by Zipf's law, rows that hardly vary or hardly differ, outlier channels, huge and subnormal
    values. What fails is made smaller.

    Args:
      fun, reference, backward: as `check` takes them.
      specs: one for each argument, in a tuple (or all of them in one string, apart by spaces): `"f32[N,d]"`, where a
        letter is a size, the same wherever it occurs; `"f32|bf16[N,d]"`, one of these dtypes, the same for all
        arguments that give these; `"i32[N]<V"`, integers below the size V; `"f32[N|1,d]"`, N or, broadcast, 1. A list
        or set, one of its values: hyperparameters, or strings such as these. A Hypothesis strategy that draws arrays.
        Tuples and dictionaries of all that; and any other value, an array too, as it is.
      seconds: when to stop; making a failing case smaller may take as long again. A case that would not be through by
        then, compilation included, is not begun.
      key: the seed of every draw, a whole number or a `jax.random.key`; left out, a new one, which the report names.
      examples: how many cases to try at most; left out, as many as the time allows.
      cross_check: whether to hold the oracle itself against finite differences in each.

    Example:
      >>> def backward(args, dy):
      ...     return (dy * jnp.cos(args[0]),)
      >>> bpref.search(jnp.sin, (jax.ShapeDtypeStruct((3,), jnp.float32),), backward=backward, seconds=1.0).ok
      True

    Raises:
      ImportError: Hypothesis is not installed.
      TypeError, ValueError: the specifications cannot be read.
    """
    start = time.monotonic()
    require_hypothesis()
    key = seed_of("search", key)
    require_functions("search", fun, reference=reference, backward=backward)
    require_seconds("search", seconds)
    if examples is not None:
        require_count("search", "examples", examples)
    require_flags("search", cross_check=cross_check)
    template = as_template(specs)
    _require_fitting(fun, template)
    options = {"reference": reference, "backward": backward, "key": key, "cross_check": cross_check}
    hunt = Hunt(fun, template, options, start, seconds, math.inf if examples is None else examples)
    with leaving_nothing_behind():
        hunt.explore()
        found = hunt.smallest()
    known = (hunt.name, key, hunt.tried, hunt.refused, hunt.undecided, time.monotonic() - hunt.start)
    if found is None:
        return SearchReport(*known, refusal=hunt.refusal)
    args, report = hunt.given(found[0]), found[1]
    program = snippet(fun, args, reference, backward, key)
    return SearchReport(*known, args, report, program, hunt.refusal, hunt.drawn_as())


def _require_fitting(fun: Callable | Layer, template: Template) -> None:
    """Raise `TypeError` unless `fun` can be called with as many arguments as there are specifications."""
    called = as_function(fun) if isinstance(fun, Layer) else fun
    require_fitting("search", "specs", function_name(fun), called, jax.tree.unflatten(template.tree, template.leaves))
