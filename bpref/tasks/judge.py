"""The judge of a solution: right at fresh shapes and values? and what it costs beside autodiff of the naive form."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.rule import Rule
from bpref.tasks.problem import Problem, case_of, problem, small_sizes
from bpref.tasks.sandbox import Failed, Solution
from bpref.verify.check import check
from bpref.verify.oracle import with_cotangents
from bpref.verify.report import CANNOT_TELL, IMPRECISE, OK, WRONG, Report

NO_DERIVATION = "no derivation"
"""The verdict on right cotangents that autodiff has computed."""

ROUNDS, REPEATS, ATTEMPTS = 3, 9, 20


class Cost(NamedTuple):
    """By the solution and by autodiff of the naive forward, compiled for the sizes that the rule is timed at.

    Attributes:
      memory: bytes that XLA allocates beside inputs and outputs.
      seconds: the median of one call.
      time: the median of the ratios of calls that take turns.
      note: why there is no figure, if there is none.
    """

    memory: tuple[int, int] | None = None
    seconds: tuple[float, float] | None = None
    time: float | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.memory is None or self.seconds is None:
            return f"memory and time not measured: {self.note}"
        ours, autodiff = self.memory
        memory = f"temp memory {ours:,} of autodiff's {autodiff:,} B"
        return f"{memory}; time {self.time:.2f} of its {1e3 * self.seconds[1]:.3g} ms"


class Judgement(NamedTuple):
    """The verdict on a solution.

    Attributes:
      task: the rule's name.
      verdict: ok, wrong, imprecise, cannot tell; or no derivation, where autodiff has computed what is right.
      cause: one line: what is wrong with which cotangent, or what the solution did in place of an answer.
      key: the seed of shapes and values.
      reports: of each set of shapes that it was judged at; none after the first that it fails.
      shapes: those sets, by argument.
      cost: of a right solution, memory and time.
      uses_autodiff: whether it has let JAX or PyTorch differentiate.
    """

    task: str
    verdict: str
    cause: str
    key: int
    reports: tuple[Report, ...]
    shapes: tuple[dict[str, tuple[int, ...]], ...]
    cost: Cost | None
    uses_autodiff: bool = False

    def __str__(self) -> str:
        word = self.verdict if self.verdict == OK else self.verdict.upper()
        lines = [f"{self.task}   {word}   {len(self.shapes)} sets of shapes   key {self.key}"]
        lines += [f"  {self.cause}"] * bool(self.cause) + [f"  {self.cost}"] * bool(self.cost)
        return "\n".join(lines)

    def to_json(self) -> str:
        whole = self._asdict() | {
            "reports": [json.loads(r.to_json()) for r in self.reports],
            "cost": self.cost and self.cost._asdict(),
        }
        return json.dumps(whole, indent=1)


def judge(
    rule: Rule,
    path: Path,
    key: int,
    seconds: float = 60.0,
    gigabytes: float = 16.0,
    framework: str = "jax",
    allow_autodiff: bool = False,
) -> Judgement:
    """Judge the `backward(args, dy)` in a file as that of a rule's reference.

    Args:
      rule: the task.
      path: the file; it is run in another process, which is given inputs and nothing else (`Solution`).
      key: the seed of shapes, arguments and cotangents.
      seconds: what one answer may take.
      gigabytes: the address space of that process.
      framework: "jax" or "torch", whose arrays the solution takes and returns.
      allow_autodiff: whether a solution may let JAX or PyTorch differentiate.
    """
    reports: list[Report] = []
    shapes: list[dict[str, tuple[int, ...]]] = []
    rng = np.random.default_rng(key)
    verdict, cause, cost = OK, "", None
    with Solution(path, seconds, gigabytes, framework) as solution:
        for i in range(ROUNDS):
            p = _fresh(rule, rng)
            shapes.append({name: v.shape for name, v in zip(p.names, p.args, strict=True)})
            verdict, cause, report = _judged(p, solution, key + i)
            reports += [report] if report is not None else []
            if verdict in (OK, IMPRECISE) and solution.uses_autodiff and not allow_autodiff:
                verdict, cause = NO_DERIVATION, "it lets autodiff compute its cotangents; --allow-autodiff admits that"
            if verdict != OK:
                break
        else:
            in_jax = framework == "jax"
            cost = (
                _cost(rule, solution, key) if in_jax else Cost(note="only a solution in JAX is, beside JAX's autodiff")
            )
    return Judgement(rule.name, verdict, cause, key, tuple(reports), tuple(shapes), cost, solution.uses_autodiff)


def _fresh(rule: Rule, rng: np.random.Generator) -> Problem:
    """Sizes and values at which the function is finite: ctc is not, where there are more labels than steps."""
    for _ in range(ATTEMPTS - 1):
        p = problem(rule, small_sizes(case_of(rule), rng), int(rng.integers(2**31)))
        if all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves(p.forward(*p.args))):
            return p
    return problem(rule, small_sizes(case_of(rule), rng), int(rng.integers(2**31)))


def _judged(p: Problem, solution: Solution, key: int) -> tuple[str, str, Report | None]:
    """The verdict at one set of shapes, its cause, and the report, if it came to one."""
    said: list[str] = []

    def backward(args: tuple, dy: PyTree) -> tuple:
        values = [np.asarray(v) for v in args], jax.tree.map(np.asarray, dy)
        try:
            return solution.backward(*values)
        except Failed as failed:
            said.append(str(failed))
            raise

    compiled = jax.jit(p.forward)

    @wraps(p.forward)
    def called(*args: ArrayLike) -> PyTree:  # with arrays alone, as the solution is
        return jax.tree.map(np.asarray, compiled(*map(np.asarray, args)))

    try:
        report = check(called, *p.args, reference=p.forward, backward=backward, key=key)
        report = report._replace(verdicts=tuple(v for v in report.verdicts if v.where in p.names))  # y is ours
    except (TypeError, ValueError):
        if not said:
            raise
        return WRONG, said[0], None
    if solution.failure:
        return WRONG, solution.failure, report
    bad = next((v for v in report.verdicts if v.verdict == report.verdict), None)
    cause = "" if report.ok or bad is None else f"d{bad.where}: {bad.detail}".splitlines()[0]
    if report.verdict == CANNOT_TELL and said:
        cause = said[0]
    return report.verdict, cause, report


def _cost(rule: Rule, solution: Solution, key: int) -> Cost:
    """The solution's program, which is compiled and run here, beside autodiff of the forward; they take turns."""
    p = problem(rule, case_of(rule).timed, key)
    rng = np.random.default_rng(key)
    y = jax.eval_shape(p.forward, *p.args)
    dy = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape), v.dtype), y)
    try:
        program = solution.exported(p.args, jax.tree.map(np.asarray, dy))
    except Failed as failed:
        return Cost(note=f"JAX cannot compile it ({failed})")

    def autodiff(args: tuple, dy: PyTree) -> list:
        return [v for v in with_cotangents(p.forward, *args)[1](dy) if v is not None]

    args = tuple(map(jnp.asarray, p.args))
    try:
        ours = _compiled(_with_program(autodiff, program, args, dy), args, dy)
    except Exception as error:  # whatever the solution's bytes are
        return Cost(note=f"its program cannot be compiled here ({type(error).__name__})")
    compiled = [ours, _compiled(autodiff, args, dy)]
    memory = [int(m.temp_size_in_bytes) for c in compiled if (m := c.memory_analysis())]
    turns = np.array([[_seconds(c, args, dy) for c in compiled] for _ in range(REPEATS + 1)])[1:]
    medians = np.median(turns, axis=0)
    return Cost(
        (memory[0], memory[1]), (float(medians[0]), float(medians[1])), float(np.median(turns[:, 0] / turns[:, 1]))
    )


def _compiled(f: Callable, args: tuple, dy: PyTree) -> Compiled:
    return jax.jit(f).lower(args, dy).compile()


def _with_program(like: Callable, program: bytes, args: tuple, dy: PyTree) -> Callable:
    """A StableHLO module as a function with the inputs and outputs of `like`; nothing else of it is believed."""
    template = jax.export.export(jax.jit(like, keep_unused=True))(args, dy)
    return replace(template, mlir_module_serialized=program).call


def _seconds(f: Callable, args: tuple, dy: PyTree) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(f(args, dy))
    return time.perf_counter() - begin
