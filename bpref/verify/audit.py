"""audit: every custom derivative rule inside a function, held against its own primal at the values that flow there."""

import json
import re
from collections.abc import Callable
from inspect import Parameter, Signature
from numbers import Number
from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import PyTree

from bpref.layer import Layer
from bpref.programs import is_typed
from bpref.verify.check import check
from bpref.verify.examining.prepare import WIDE
from bpref.verify.examining.refusals import CannotCheck
from bpref.verify.examining.subject import array_leaves
from bpref.verify.naming import argument_names, first_line, function_name, names_of_leaves
from bpref.verify.numbers.measure import widened
from bpref.verify.numbers.points import fill_specifications, generator
from bpref.verify.options import came, require_callable, require_fitting, require_flags, seed_of
from bpref.verify.programs.running import as_if_at_home
from bpref.verify.programs.sites import Site, sites
from bpref.verify.report import BY_GRAVITY, CANNOT_TELL, IMPRECISE, NOT_RUN, OK, WRONG, Finding, Report


class SiteReport(NamedTuple):
    """What was found of one rule at one place.

    Attributes:
      name: the function that the rule belongs to.
      kind: `custom_vjp` or `custom_jvp`; or `primitive of PACKAGE`, one with a derivative rule of its own.
      file, line: where it is called; the file is empty where no line of the user's calls it.
      defined: `file:line` of the rule, where known.
      verdict: the gravest over the calls that were looked at.
      detail: why nothing could be said, or not of every call, if so.
      reports: one for each call that was looked at.
    """

    name: str
    kind: str
    file: str
    line: int
    defined: str
    verdict: str
    detail: str
    reports: tuple[Report, ...]

    @property
    def place(self) -> str:
        """`called at FILE:LINE, its rule at FILE:LINE`, as far as that is known."""
        called = f"called at {self.file}:{self.line}" if self.file else ""
        return ", ".join(filter(None, (called, f"its rule at {self.defined}" if self.defined else "")))


class AuditReport(NamedTuple):
    """What `audit` says: one entry for each rule and place; `.ok` where every rule ran and is right.

    Where there is none, nothing was looked at: that is `not run`.
    """

    name: str
    key: int
    sites: tuple[SiteReport, ...]

    @property
    def verdict(self) -> str:
        return min((s.verdict for s in self.sites), key=BY_GRAVITY.index, default=NOT_RUN)

    @property
    def ok(self) -> bool:
        return self.verdict == OK

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, `where` with the rule's name in front."""
        return tuple(
            f._replace(where=f"{s.name}.{f.where}") for s in self.sites for report in s.reports for f in report.findings
        )

    def raise_if_wrong(self) -> "AuditReport":
        """Raise `AssertionError` with the report if a rule is wrong or imprecise; else the report itself."""
        if self.verdict in (WRONG, IMPRECISE):
            raise AssertionError(f"\n{self}")
        return self

    def to_json(self) -> str:
        """The whole as one JSON object."""
        of_sites = [
            s._asdict() | {"reports": [json.loads(report.to_json()) for report in s.reports]} for s in self.sites
        ]
        plain = {"name": self.name, "verdict": self.verdict, "ok": self.ok, "key": self.key, "sites": of_sites}
        return json.dumps(plain, indent=1)

    def __str__(self) -> str:
        count = len(self.sites)
        lines = [f"{self.name}   {count} custom rule{'s' * (count != 1)}   key {self.key}"]
        if not self.sites:
            lines.append("  nothing was found to audit; rules inside jax.grad are applied before they are seen")
        for s in self.sites:
            word = s.verdict if s.verdict == OK else s.verdict.upper()
            lines.append(f"  {s.name} ({s.kind})   {word}   {s.place}".rstrip())
            lines += [f"    {s.detail}"] if s.detail else []
            wrong = next((r for r in s.reports if r.verdict == s.verdict and not r.ok), None)
            lines += [f"  {line}" for line in str(wrong).splitlines()[1:]] if wrong else []
        return "\n".join(lines)


@as_if_at_home
def audit(
    fun: Callable[..., PyTree],
    *args: PyTree,
    key: int | Array | None = None,
    drive: bool = False,
    cross_check: bool = True,
) -> AuditReport:
    """Find every custom derivative rule that `fun(*args)` runs, and check each against its own primal.

    The rules are found wherever they are: inside jit, scan, while, cond and remat, inside other rules, in a library's
    code. Each is checked at the values that really flow into it, and at fresh values like them.

    Args:
      fun: any JAX function: a model's `apply`, a library's loss, an optimiser's step.
      args: what it is called with: pytrees of arrays, or of `jax.ShapeDtypeStruct`s, which are filled with random
        values. Strings, Python numbers and functions among them are held fixed.
      key: the seed of every random draw, a whole number or a `jax.random.key`; left out, a new one, which the report
        names.
      drive: whether a rule that did not run is checked all the same, at values drawn for its shapes.
      cross_check: whether to hold the oracle itself, autodiff of a rule's primal, against finite differences.

    Not seen is a rule inside a `jax.grad` that `fun` itself calls, since it is applied while `fun` is traced: audit the
    function that is differentiated instead.

    Returns:
      One entry for each rule and place. A rule in a branch that was not taken is listed as one that did not run, and
      then the whole is not ok.

    Example:
      >>> report = bpref.audit(lambda x: jax.nn.relu(x).sum(), jnp.array([-1.0, 2.0]))
      >>> report.ok
      True

    Raises:
      TypeError: `fun` is no function, or an argument no array where `fun` takes it for one; or whatever it raises for
        these arguments.
      CannotCheck: JAX cannot trace `fun`, since it reads the values of arrays, as a primal in NumPy does.
    """
    if isinstance(fun, Layer):
        raise TypeError(
            f"audit: fun is the Layer {fun.name}, whose backward is no custom rule; use check or check_leaves"
        )
    require_callable("audit", "fun", fun)
    require_flags("audit", drive=drive, cross_check=cross_check)
    key = seed_of("audit", key)
    name = function_name(fun)
    require_fitting("audit", "args", name, fun, args)
    leaves, rebuild, _ = array_leaves(argument_names(fun, len(args)), args)
    filled = fill_specifications(leaves, generator(key, 0))
    try:
        found = sites(lambda *values: fun(*rebuild(list(values))), *filled)
    except jax.errors.JAXTypeError as error:
        raise CannotCheck(
            f"audit: {name} cannot be traced by JAX, since something in it reads the values of arrays "
            f"({first_line(error)}); give that function to check, which calls it with arrays"
        ) from error
    except TypeError as error:
        _require_arrays(name, fun, args, error)
        raise
    return AuditReport(name, key, tuple(_audited(site, key, drive, cross_check) for site in found))


def _require_arrays(name: str, fun: Callable, args: tuple, error: TypeError) -> None:
    """Raise in place of JAX's `error`, which says of an argument by its type alone that it is no array."""
    named = zip(names_of_leaves(argument_names(fun, len(args)), args), jax.tree.leaves(args), strict=True)
    odd = [(n, v) for n, v in named if not (is_typed(v) or isinstance(v, Number))]
    odd += [(n, v) for n, v in zip(argument_names(fun, len(args)), args, strict=True) if v is None or type(v) is list]
    held = ", ".join(f"{n} is {came(v)}" for n, v in odd)
    if held and re.search("valid JAX type|requires ndarray or scalar arguments", str(error)):
        raise TypeError(f"audit: {held}, and {name} takes it for an array: {error}") from error


def _audited(site: Site, key: int, drive: bool, cross_check: bool) -> SiteReport:
    about = site.name, site.kind, site.file, site.line, site.defined
    if site.primal is None:
        why = "its derivative is a rule of the primitive itself, which has no body that autodiff could differentiate"
        return SiteReport(*about, CANNOT_TELL, f"{why}: use check, whose oracle is then numerical", ())
    if not (site.ran or drive):
        return SiteReport(*about, NOT_RUN, "it did not run, or where it runs is not looked into", ())
    reports, problems = [], []
    for inputs in site.calls or (_drawn(site, key),):
        try:
            reports.append(_checked(site, inputs, key, cross_check))
        except (TypeError, ValueError, NotImplementedError) as error:
            problems.append(str(error).splitlines()[0])
    found = [r.verdict for r in reports] + [CANNOT_TELL] * len(problems)
    detail = problems[0] if problems else "" if site.ran else "it did not run; checked at drawn values"
    return SiteReport(*about, min(found, key=BY_GRAVITY.index), detail, tuple(reports))


def _drawn(site: Site, key: int) -> tuple:
    """What a rule is called with that did not run: values for what JAX asks no cotangent of, shapes of the others."""
    filled = fill_specifications(site.operands, generator(key, 1))
    return tuple(value if fixed else v for v, value, fixed in zip(site.operands, filled, site.fixed, strict=True))


def _checked(site: Site, inputs: tuple, key: int, cross_check: bool) -> Report:
    """One call, with respect to what JAX asks for."""
    moving = [i for i, is_fixed in enumerate(site.fixed) if not is_fixed]

    def of_moving(f: Callable[..., list]) -> Callable[..., list]:
        def call(*args):
            is_wide = any(v.dtype in WIDE for v in args)
            given = dict(zip(moving, args, strict=True))
            return f(*(given[i] if i in given else widened(v) if is_wide else v for i, v in enumerate(inputs)))

        if site.arguments:
            named = [Parameter(site.arguments[i], Parameter.POSITIONAL_ONLY) for i in moving]
            call.__signature__ = Signature(named)  # type: ignore[attr-defined]
        return call

    given = [inputs[i] for i in moving]
    assert site.primal is not None
    options = {"reference": of_moving(site.primal), "key": key, "cross_check": cross_check}
    report = check(of_moving(site.bound), *given, **options)
    return report._replace(name=site.name)
