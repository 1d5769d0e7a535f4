"""One search: layouts and values are tried, as Hypothesis draws them, until something fails; that is made smaller."""

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from bpref.layer import Layer
from bpref.leftovers import temporary_folder
from bpref.programs import is_typed
from bpref.verify.check import check
from bpref.verify.naming import argument_names, function_name, names_of_leaves
from bpref.verify.numbers.measure import widened
from bpref.verify.oracle import is_differentiable
from bpref.verify.report import CANNOT_TELL, IMPRECISE, WRONG, Report
from bpref.verify.searching.layouts import (
    Drawn,
    Layout,
    Strategy,
    Template,
    arguments,
    is_possible,
    layouts,
    patterns_of,
)
from bpref.verify.torch_front import as_tensors, is_torch, named

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

FIRST, LATER = 40, 8
"""How many draws of values the plainest layout is tried with, and how many any other: each new one is compiled."""

SHRINKING = 1.0
"""How much longer than the search a failing case may be made smaller, in units of the search's time."""

REFUSALS = (ValueError, TypeError, ZeroDivisionError, IndexError, AssertionError)
"""What a function raises for arguments that it does not take."""

FEW = 24
"""In an array of up to this many elements, each one is tried as zero or rounded by itself."""


class _Trial(NamedTuple):
    layout: Layout
    drawn: Drawn


class _Failed(Exception):
    """Raised inside of Hypothesis, for it to shrink."""


class Hunt:
    """One search: what was tried so far, and what failed."""

    def __init__(
        self,
        fun: Callable | Layer,
        template: Template,
        options: dict[str, Any],
        start: float,
        seconds: float,
        examples: float,
    ):
        self.fun, self.template, self.key, self.options = fun, template, options["key"], options
        of_torch = is_torch(fun, template.leaves)
        self.given = as_tensors if of_torch else lambda args: args
        self.refusals = (*REFUSALS, RuntimeError) if of_torch else REFUSALS
        self.name, self.signature = named(fun) if of_torch else (function_name(fun), fun)
        self.start = start
        self.end, self.shrunk_by = self.start + seconds, self.start + seconds * (1 + SHRINKING)
        self.took = {True: 0.0, False: 0.0}
        self.compiled: set[Hashable] = set()
        self.most = examples
        self.tried = self.refused = self.undecided = 0
        self.refusal = ""
        self.failing: tuple[_Trial, Report] | None = None
        # The trial is kept beside its report, lest an array's id occur again.
        self.outcomes: dict[Hashable, tuple[Report | None, _Trial]] = {}

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
        names = names_of_leaves(roots, args)
        patterns = self.failing[0].drawn.patterns if self.failing else ()
        return ", ".join(f"{n}: {p}" for n, p in zip(names, patterns, strict=False) if p not in ("", "ordinary"))

    def _rounds(self) -> Iterator[Layout]:
        """The layouts; all of them again, if there are so few."""
        for turn in count():
            yield from layouts(self.template, np.random.default_rng([self.key, turn]))

    def _explore(self, layout: Layout, n: int, i: int) -> None:
        from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

        @seed(self.key * 1009 + i)
        @settings(
            max_examples=n,
            database=None,
            deadline=None,
            derandomize=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]  # its metaclass yields no type
            verbosity=Verbosity.quiet,
            print_blob=False,
        )
        @given(draws(self.template, layout))
        def trial(drawn):
            if self._fails_alike(_Trial(layout, drawn)):
                raise _Failed

        with suppress(_Failed):
            trial()

    def _fails_alike(self, case: _Trial) -> bool:
        """Whether it fails, and as the first failing case did; it is then the one that is kept."""
        name = (case.layout, case.drawn.patterns, case.drawn.seed, tuple(map(id, case.drawn.given)))
        if name not in self.outcomes:
            args = arguments(self.template, *case)
            if self.tried >= self.most and not self.failing:
                return False
            if not self._has_time(
                self.shrunk_by if self.failing else self.end, _compiled_for(args) not in self.compiled
            ):
                return False
            self.outcomes[name] = self._outcome(args), case
        report, _ = self.outcomes[name]
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
        begin, form = time.monotonic(), _compiled_for(args)
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

    def _smaller(self, case: _Trial) -> Iterator[_Trial]:
        """The case with one axis smaller."""
        for k, (name, size) in enumerate(case.layout.sizes):
            for less in sorted({1, 2, 3, size // 2}):
                if less < size:
                    sizes = (*case.layout.sizes[:k], (name, less), *case.layout.sizes[k + 1 :])
                    layout = case.layout._replace(sizes=sizes)
                    if is_possible(self.template, layout):
                        yield from (_Trial(layout, case.drawn._replace(seed=seed)) for seed in (case.drawn.seed, 0, 1))


def _compiled_for(args: tuple) -> str:
    """What of the arguments a program is compiled for."""
    return str([(v.shape, v.dtype) if is_typed(v) else v for v in jax.tree.leaves(args)])


def _alike(report: Report, other: Report) -> bool:
    """Whether two failures may have one cause: as grave, of the same argument."""
    return report.verdict == other.verdict and report.findings[0].where == other.findings[0].where


def simpler_arguments(
    args: tuple, report: Report, like: Callable[[tuple, Report], Report | None], is_late: Callable[[], bool]
) -> tuple[tuple, Report]:
    """The arguments with arrays of ones and zeros and rounded numbers where that fails alike, and their report.

    Args:
      args, report: what fails.
      like: the report on other arguments if they fail alike, else None.
      is_late: whether to stop with what there is.
    """
    leaves, tree = jax.tree.flatten(args)
    for i in range(len(leaves)):
        for proposed in _simpler(leaves[i]):
            if is_late():
                break
            if np.array_equal(proposed(leaves[i]), leaves[i]):
                continue
            tried = [*leaves[:i], proposed(leaves[i]), *leaves[i + 1 :]]
            outcome = like(jax.tree.unflatten(tree, tried), report)
            if outcome is not None:
                leaves, report = tried, outcome
    return jax.tree.unflatten(tree, leaves), report


def _simpler(v: np.ndarray) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Changes to an array, in the order in which they are tried, each on top of those that were kept."""
    if not isinstance(v, np.ndarray) or v.size == 0 or not hasattr(v, "dtype") or not is_differentiable(v):
        return
    yield np.zeros_like
    yield np.ones_like
    for digits in (0, 1, 2, 4):
        yield lambda w, digits=digits: _rounded(w, digits)
    if v.size <= FEW:
        for place in np.ndindex(v.shape):
            yield lambda w, place=place: _with(w, place)


def _rounded(v: np.ndarray, digits: int) -> np.ndarray:
    """To so many digits after the first."""
    with np.errstate(all="ignore"):
        wide = widened(v)
        unit = 10.0 ** (np.floor(np.log10(np.where(wide == 0, 1.0, np.abs(wide)))) - digits)
        return (np.round(wide / unit) * unit).astype(v.dtype)


def _with(v: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    changed = v.copy()
    changed[place] = 0
    return changed


def draws(template: Template, layout: Layout) -> "SearchStrategy[tuple]":
    """A Hypothesis strategy for the values of a layout: all of them ordinary, or a few of the leaves special."""
    from hypothesis import strategies as st

    patterns = patterns_of(template, layout)
    several = [i for i, p in enumerate(patterns) if len(p) > 1]

    @st.composite
    def drawn(draw):
        base = draw(st.sampled_from([0, 0, 1]))
        chosen = [p[min(base, len(p) - 1)] for p in patterns]
        for i in draw(st.lists(st.sampled_from(several), max_size=2, unique=True)) if several else ():
            chosen[i] = draw(st.sampled_from(patterns[i]))
        given = tuple(draw(leaf.strategy) for leaf in template.leaves if isinstance(leaf, Strategy))
        return Drawn(tuple(chosen), draw(st.integers(0, 999)), given)

    return drawn()


@contextmanager
def leaving_nothing_behind() -> Iterator[None]:
    """Hypothesis keeps notes in a folder of the current directory; during a search, in one that is removed again."""
    from hypothesis import configuration

    before = getattr(configuration, "__hypothesis_home_directory", None)
    folder, remove = temporary_folder()
    configuration.set_hypothesis_home_dir(folder)
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(before)
        remove()


def require_hypothesis() -> None:
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise ImportError('search draws its cases with Hypothesis; install it: pip install "bpref[search]"') from None
