"""search: is there a shape, a dtype, a value or a hyperparameter for which a hand-derived gradient is wrong?"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

import jax
import numpy as np

from bpref.bridge import as_function
from bpref.layer import Layer
from bpref.verify.check import check
from bpref.verify.examining.subject import is_array
from bpref.verify.naming import argument_names, function_name, leaf_names
from bpref.verify.options import (
    require_count,
    require_fitting,
    require_flags,
    require_functions,
    require_seconds,
    seed_of,
)
from bpref.verify.report import CANNOT_TELL, IMPRECISE, WRONG, Report
from bpref.verify.search_draw import (
    Drawn,
    Layout,
    Template,
    arguments,
    as_template,
    is_possible,
    layouts,
)
from bpref.verify.simplify import simpler_arguments
from bpref.verify.snippet import snippet
from bpref.verify.strategies import draws, leaving_nothing_behind, require_hypothesis
from bpref.verify.torch_front import as_tensors, is_torch, named

FIRST, LATER = 40, 8
"""How many draws of values the plainest layout is tried with, and how many any other: each new one is compiled."""

SHRINKING = 1.0
"""How much longer than the search a failing case may be made smaller, in units of the search's time."""

REFUSALS = (ValueError, TypeError, ZeroDivisionError, IndexError, AssertionError)
"""What a function raises for arguments that it does not take."""


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
    fun: Any,
    specs: Any,
    reference: Callable[..., Any] | None = None,
    backward: Callable[[tuple, Any], tuple] | None = None,
    seconds: float = 10.0,
    key: Any = None,
    examples: int = 200,
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
      examples: how many cases to try at most.
      cross_check: whether to hold the oracle itself against finite differences in each.

    Raises:
      ImportError: Hypothesis is not installed.
      TypeError, ValueError: the specifications cannot be read.
    """
    start = time.monotonic()
    require_hypothesis()
    key = seed_of("search", key)
    require_functions("search", fun, reference=reference, backward=backward)
    require_seconds("search", seconds)
    require_count("search", "examples", examples)
    require_flags("search", cross_check=cross_check)
    template = as_template(specs)
    _require_fitting(fun, template)
    options = {"reference": reference, "backward": backward, "key": key, "cross_check": cross_check}
    hunt = _Hunt(fun, template, options, start, seconds, examples)
    with leaving_nothing_behind():
        hunt.explore()
        found = hunt.smallest()
    known = (hunt.name, key, hunt.tried, hunt.refused, hunt.undecided, time.monotonic() - hunt.start)
    if found is None:
        return SearchReport(*known, refusal=hunt.refusal)
    args, report = hunt.given(found[0]), found[1]
    program = snippet(fun, args, reference, backward, key)
    return SearchReport(*known, args, report, program, hunt.refusal, hunt.drawn_as())


def _require_fitting(fun: Any, template: Template) -> None:
    """Raise `TypeError` unless `fun` can be called with as many arguments as there are specifications."""
    called = as_function(fun) if isinstance(fun, Layer) else fun
    require_fitting("search", "specs", function_name(fun), called, jax.tree.unflatten(template.tree, template.leaves))


class _Case(NamedTuple):
    layout: Layout
    drawn: Drawn


class _Failed(Exception):
    """Raised inside of Hypothesis, for it to shrink."""


class _Hunt:
    """One search: what was tried so far, and what failed."""

    def __init__(
        self,
        fun: Any,
        template: Template,
        options: dict[str, Any],
        start: float,
        seconds: float,
        examples: int,
    ):
        self.fun, self.template, self.key, self.options = fun, template, options["key"], options
        of_torch = is_torch(fun, template.leaves)
        self.given = as_tensors if of_torch else lambda args: args
        self.refusals = (*REFUSALS, RuntimeError) if of_torch else REFUSALS
        self.name, self.signature = named(fun) if of_torch else (function_name(fun), fun)
        self.start = start
        self.end, self.shrunk_by = self.start + seconds, self.start + seconds * (1 + SHRINKING)
        self.took = {True: 0.0, False: 0.0}
        self.compiled: set[Any] = set()
        self.most = examples
        self.tried = self.refused = self.undecided = 0
        self.refusal = ""
        self.failing: tuple[_Case, Report] | None = None
        self.outcomes: dict[Any, Report | None] = {}

    def explore(self) -> None:
        """Try layouts one after the other, each with many values, until one fails or the time is up."""
        for i, layout in enumerate(self._rounds()):
            if self.tried >= self.most or not self._has_time(self.end, is_new=True) or self.failing:
                return
            self._explore(layout, FIRST if i == 0 else LATER, i)

    def smallest(self) -> tuple[tuple, Report] | None:
        """The failing case, of smaller sizes and with simpler values if it fails with these too."""
        if self.failing is None:
            return None
        while any(self._fails_alike(smaller) for smaller in self._smaller(self.failing[0])):
            pass
        case, report = self.failing
        args = arguments(self.template, *case)
        return simpler_arguments(args, report, self._like, lambda: not self._has_time(self.shrunk_by, is_new=False))

    def drawn_as(self) -> str:
        """The failing case's values in words, those of them that are not ordinary."""
        args = jax.tree.unflatten(self.template.tree, range(len(self.template.leaves)))
        roots = ("params", "x") if isinstance(self.fun, Layer) else argument_names(self.signature, len(args))
        names = [name for root, arg in zip(roots, args, strict=True) for name in leaf_names(root, arg)]
        patterns = self.failing[0].drawn.patterns if self.failing else ()
        return ", ".join(f"{n}: {p}" for n, p in zip(names, patterns, strict=False) if p not in ("", "ordinary"))

    def _rounds(self) -> Iterator[Layout]:
        """The layouts; all of them again, if there are so few."""
        for turn in count():
            known = list(layouts(self.template, np.random.default_rng([self.key, turn])))
            yield from known

    def _explore(self, layout: Layout, n: int, i: int) -> None:
        from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

        every_check: Any = list(HealthCheck)

        @seed(self.key * 1009 + i)
        @settings(
            max_examples=n,
            database=None,
            deadline=None,
            derandomize=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=every_check,
            verbosity=Verbosity.quiet,
            print_blob=False,
        )
        @given(draws(self.template, layout))
        def trial(drawn):
            if self._fails_alike(_Case(layout, drawn)):
                raise _Failed

        with suppress(_Failed):
            trial()

    def _fails_alike(self, case: _Case) -> bool:
        """Whether it fails, and as the first failing case did; it is then the one that is kept."""
        name = (case.layout, case.drawn.patterns, case.drawn.seed, tuple(map(id, case.drawn.given)))
        if name not in self.outcomes:
            args = arguments(self.template, *case)
            if self.tried >= self.most and not self.failing:
                return False
            if not self._has_time(self.shrunk_by if self.failing else self.end, _form(args) not in self.compiled):
                return False
            self.outcomes[name] = self._outcome(args)
        report = self.outcomes[name]
        if report is None or (self.failing and not _alike(report, self.failing[1])):
            return False
        self.failing = case, report
        return True

    def _like(self, args: tuple, report: Report) -> Report | None:
        """The report on these arguments, if they fail as `report` says."""
        outcome = self._outcome(args)
        return outcome if outcome is not None and _alike(outcome, report) else None

    def _has_time(self, end: float, is_new: bool) -> bool:
        """Whether a case is through by then, if it takes as long as the longest so far; a new one is compiled first.

        The very first is tried however long the imports took.
        """
        if self.tried == 0 and self.end > self.start:
            return True
        return time.monotonic() + self.took[is_new] <= end

    def _outcome(self, args: tuple) -> Report | None:
        """The report, if the arguments fail; the time that it takes is noted."""
        begin, form = time.monotonic(), _form(args)
        try:
            return self._checked(args)
        finally:
            is_new = form not in self.compiled
            self.took[is_new] = max(self.took[is_new], time.monotonic() - begin)
            self.compiled.add(form)

    def _checked(self, args: tuple) -> Report | None:
        self.tried += self.failing is None
        try:
            with np.errstate(all="ignore"):
                report = check(self.fun, *self.given(args), **self.options)
        except self.refusals as error:
            self.refused += self.failing is None
            self.refusal = self.refusal or f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return None
        self.undecided += report.verdict == CANNOT_TELL and self.failing is None
        return report if report.verdict in (WRONG, IMPRECISE) else None

    def _smaller(self, case: _Case) -> Iterator[_Case]:
        """The case with one axis smaller."""
        for k, (name, size) in enumerate(case.layout.sizes):
            for less in sorted({1, 2, 3, size // 2}):
                if less < size:
                    sizes = (*case.layout.sizes[:k], (name, less), *case.layout.sizes[k + 1 :])
                    layout = case.layout._replace(sizes=sizes)
                    if is_possible(self.template, layout):
                        yield from (_Case(layout, case.drawn._replace(seed=seed)) for seed in (case.drawn.seed, 0, 1))


def _form(args: tuple) -> str:
    """What of the arguments a program is compiled for."""
    return str([(v.shape, v.dtype) if is_array(v) else v for v in jax.tree.leaves(args)])


def _alike(report: Report, other: Report) -> bool:
    """Whether two failures may have one cause: as grave, of the same argument."""
    return report.verdict == other.verdict and report.findings[0].where == other.findings[0].where
