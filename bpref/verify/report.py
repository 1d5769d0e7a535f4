"""What a check says: findings, a verdict for every argument, and the report that holds both."""

import json
import math
from typing import NamedTuple

from bpref.verify.numbers.measure import Ulps

OK, WRONG, IMPRECISE, CANNOT_TELL, NOT_RUN = "ok", "wrong", "imprecise", "cannot tell", "not run"

BY_GRAVITY = (WRONG, IMPRECISE, CANNOT_TELL, NOT_RUN, OK)
"""The verdicts; that of a whole report is the gravest of its arguments'."""

KINDS = (
    "factor",
    "sign",
    "zero",
    "transposed",
    "swapped",
    "missing_sum",
    "mean_for_sum",
    "sparse",
    "shifted",
    "missing_term",
    "slope",
    "ignores_dy",
    "another_dy",
    "nonlinear",
    "clipped",
    "nonfinite",
    "undefined",
    "dtype",
    "structure",
    "impure",
    "imprecise",
    "kink",
    "oracle",
    "unexplained",
)
"""What a finding may be. `impure` is a function whose value depends on how it is called: eager or under jit, alone
or under vmap, for the first or the second time. `oracle` is one that autodiff of the formula has wrong as well."""


class Pattern(NamedTuple):
    """Where a wrong array is wrong: relative errors, 0 where it is right and 1 where nothing of it is.

    Attributes:
      shape: the array's.
      drawn: the axes of the rows and columns, one or two; of the others, and of all samples, the worst is drawn.
      uneven: the axes that part right from wrong: at some of their indices everything is right, at others not.
      errors: the rows; one that stands for several neighbours is the worst of them.
    """

    shape: tuple[int, ...]
    drawn: tuple[int, ...]
    uneven: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing.

    Attributes:
      where: the value: `y`, or the argument by its parameter name and the path inside it, such as `params.W`.
      kind: one of `KINDS`.
      detail: what was seen, in one line, with figures; more lines show the residual's pattern.
      error: the largest relative error, elementwise; in ulps for `imprecise`.
      pattern: where the array is wrong, if it was compared and has the right shape.
    """

    where: str
    kind: str
    detail: str
    error: float = math.inf
    pattern: Pattern | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.detail}"


class Precision(NamedTuple):
    """Errors in ulps of one dtype against the float64 truth: by hand, and autodiff's own in that dtype.

    Attributes:
      dtype: its name.
      hand, autodiff: median, 99th percentile and maximum.
      worst: the index of the hand's largest error.
      beside: whose errors stand in `autodiff`: where there is no autodiff, those of the `attainable`.
      whole, autodiff_whole, attainable_whole: the norm of the error, relative to the norm of the value: by hand, by
        autodiff, and of the truth rounded once.
    """

    dtype: str
    hand: Ulps
    autodiff: Ulps
    worst: tuple[int, ...] = ()
    beside: str = "autodiff"
    whole: float = 0.0
    autodiff_whole: float = 0.0
    attainable_whole: float = 0.0


class Verdict(NamedTuple):
    """What was found of one value: the output `y`, or the cotangent of one argument.

    Attributes:
      where: as in `Finding`.
      verdict: `ok`, `wrong`, `imprecise` or `cannot tell`.
      detail: why, in one line.
      error: the largest relative error in the derivation.
      precision: one entry for each working dtype.
    """

    where: str
    verdict: str
    detail: str
    error: float
    precision: tuple[Precision, ...] = ()


class Report(NamedTuple):
    """What `check` says. Printed, it is a table; `.ok` is True only where every value was found right.

    Attributes:
      name: what was checked.
      oracle: what it was held against.
      key: the seed of every random draw; the same key gives the same report.
      verdicts: one for the output where a reference is given, and one for each differentiable argument.
      findings: what is wrong, the gravest first, and the kinks that were met.
      notes: what else a reader should know, such as a cast down to float32 inside.
    """

    name: str
    oracle: str
    key: int
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The gravest verdict of all."""
        return min((v.verdict for v in self.verdicts), key=BY_GRAVITY.index, default=CANNOT_TELL)

    @property
    def ok(self) -> bool:
        return self.verdict == OK

    def raise_if_wrong(self) -> "Report":
        """Raise `AssertionError` with the report if anything is wrong or imprecise; else the report itself."""
        if self.verdict in (WRONG, IMPRECISE):
            raise AssertionError(f"\n{self}")
        return self

    def to_json(self) -> str:
        """The report as one JSON object, but for the patterns; an infinite or undefined error is a string."""
        without_patterns = ({k: v for k, v in f._asdict().items() if k != "pattern"} for f in self.findings)
        plain = {
            "name": self.name,
            "verdict": self.verdict,
            "ok": self.ok,
            "oracle": self.oracle,
            "key": self.key,
            "verdicts": [_plain(v) for v in self.verdicts],
            "findings": [_plain(f) for f in without_patterns],
            "notes": list(self.notes),
        }
        return json.dumps(plain, indent=1)

    def __str__(self) -> str:
        lines = [f"{self.name}   {self.oracle}   key {self.key}"]
        names = max((len(v.where) for v in self.verdicts), default=0)
        kinds = max((len(v.verdict) for v in self.verdicts), default=0)
        for v in self.verdicts:
            word = v.verdict if v.verdict == OK else v.verdict.upper()
            first, *more = v.detail.splitlines() or [""]
            lines.append(f"  {v.where:{names}}   {word:{kinds}}   {first}".rstrip())
            lines += [" " * (names + kinds + 8) + line for line in more]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def _plain(v: object) -> object:
    """Named tuples as dictionaries, and numbers that JSON has no word for as strings."""
    if as_dict := getattr(v, "_asdict", None):
        v = as_dict()
    if isinstance(v, dict):
        return {name: _plain(value) for name, value in v.items()}
    if isinstance(v, tuple):
        return [_plain(item) for item in v]
    return str(v) if isinstance(v, float) and not math.isfinite(v) else v
