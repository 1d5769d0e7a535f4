"""How much a criterion lets through: the corpus's derivations, right and wrong, judged by it as a test suite would."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.corpus import DERIVATIONS, Derivation, Wrong
from bpref.corpus.criteria import Criterion, criterion_named

SIZES = (1.0, 0.01, 0.001)
DRAWS = 5
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""How to compile what runs once."""


class AtSize(NamedTuple):
    """What a criterion does with cotangents of one size.

    Attributes:
      size: the standard deviation of the cotangents of y.
      let_through: how many trials of wrong derivations it passes, of `wrong`.
      rejected: how many trials of right derivations it rejects, of `right`: false alarms.
      passing: for each wrong derivation that it passes at all, "function: mistake" and in how many trials.
    """

    size: float
    let_through: int
    wrong: int
    rejected: int
    right: int
    passing: dict[str, int]


class Grade(NamedTuple):
    """What a criterion lets through, by the size of the cotangents.

    Attributes:
      criterion: what it is called.
      seeds: the trials of each derivation.
      draws: the random draws that must all pass in a trial.
      derivations: how many wrong derivations were tried.
      rows: one for each size.
    """

    criterion: str
    seeds: int
    draws: int
    derivations: int
    rows: tuple[AtSize, ...]

    def __str__(self) -> str:
        head = f"{self.criterion}   {self.derivations} wrong derivations, {self.seeds} seeds, {self.draws} draws each"
        lines = [f"  {'cotangents of size':<20}{'lets through':>28}{'rejects of the right':>28}"]
        for row in self.rows:
            through = f"{_percent(row.let_through, row.wrong)} of {row.wrong:,}"
            alarms = f"{row.rejected} of {row.right:,}"
            lines.append(f"  {row.size:<20g}{through:>28}{alarms:>28}")
        return "\n".join([head, *lines])

    def to_json(self) -> str:
        return json.dumps(self._asdict() | {"rows": [row._asdict() for row in self.rows]}, indent=1)


def grade(
    criterion: str | Criterion,
    seeds: int = 3,
    sizes: Sequence[float] = SIZES,
    names: Sequence[str] = tuple(DERIVATIONS),
) -> Grade:
    """How many wrong derivations an acceptance criterion lets through, and how many right ones it rejects.

    In a trial five draws of arguments and cotangents in float32 must all pass: for every argument the criterion gets
    the cotangent in question and the right one, which was computed in float64. A cotangent that is absent or
    of another shape is rejected without asking. A derivation whose only mistake is to return float32 is left out.

    Args:
      criterion: `(got, expected) -> bool` of two NumPy arrays of floating-point numbers, or the name of one, such as
        "allclose(rtol=1e-2, atol=1e-2)", "fraction(0.99, rtol=1e-2, atol=1e-2)", "cosine(0.99)", "max_abs(1e-2)".
      seeds: how many trials each derivation has at each size.
      sizes: of the cotangents of y, their standard deviation.
      names: the functions of `bpref.corpus.DERIVATIONS` that are tried.

    Example:
      >>> row = bpref.grade("allclose", seeds=1, sizes=(1.0,), names=("softmax",)).rows[0]
      >>> row.let_through, row.wrong
      (0, 5)

    Raises:
      ValueError: a criterion that does not exist, or not one seed.
      TypeError: a criterion that is neither a name nor a function, or returns something else than true or false.
    """
    if seeds < 1:
        raise ValueError(f"grade: seeds must be at least 1, got {seeds}")
    if not (isinstance(criterion, str) or callable(criterion)):
        raise TypeError(f"grade: criterion must be a name or a function, got {type(criterion).__name__}")
    asked = criterion_named(criterion) if isinstance(criterion, str) else criterion
    called = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "criterion")
    through: list[dict[str, int]] = [{} for _ in sizes]
    rejected = [0 for _ in sizes]
    tried = 0
    for d in map(DERIVATIONS.__getitem__, names):
        truth, right, wrong = _evaluated(d, seeds, tuple(sizes))
        tried += len(wrong)
        for i in range(len(sizes)):
            rejected[i] += seeds - _trials_passed(asked, right, truth, seeds, i)
            for name, found in wrong.items():
                passed = _trials_passed(asked, found, truth, seeds, i)
                if passed:
                    through[i][f"{d.name}: {name}"] = passed
    rows = (
        AtSize(float(size), sum(t.values()), tried * seeds, r, len(names) * seeds, t)
        for size, t, r in zip(sizes, through, rejected, strict=True)
    )
    return Grade(called, seeds, DRAWS, tried, tuple(rows))


def _percent(count: int, of: int) -> str:
    return f"{100 * count / max(of, 1):.1f}%"


def _trials_passed(criterion: Criterion, found: tuple, truth: tuple, seeds: int, size: int) -> int:
    """In how many trials all draws pass; arrays have leading axes (size, seed, draw)."""
    if len(found) != len(truth) or any((f is None) != (t is None) for f, t in zip(found, truth, strict=True)):
        return 0
    pairs = [(f, t) for f, t in zip(found, truth, strict=True) if t is not None]
    if any(f.shape != t.shape for f, t in pairs):
        return 0
    return sum(
        all(_asked(criterion, f[size, s, k], t[size, s, k]) for k in range(DRAWS) for f, t in pairs)
        for s in range(seeds)
    )


def _asked(criterion: Criterion, got: np.ndarray, expected: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        said = criterion(got, expected)
    if np.ndim(said) or np.asarray(said).dtype != bool:
        raise TypeError(f"grade: the criterion must return True or False, got {said!r}"[:200])
    return bool(said)


@cache
def _evaluated(d: Derivation, seeds: int, sizes: tuple[float, ...]) -> tuple[tuple, tuple, dict[str, tuple]]:
    """The true cotangents (float64, in float32), the right derivation's and the wrong ones' in float32."""
    drawn = [d.make_args(np.random.default_rng((s, k)), np.float32) for s in range(seeds) for k in range(DRAWS)]
    args = tuple(np.stack(values) for values in zip(*drawn, strict=True))
    y = jax.eval_shape(d.forward, *drawn[0])
    rng = np.random.default_rng(0)
    dy = jax.tree.map(lambda v: rng.normal(size=(len(drawn), *v.shape)), y)
    dys = jax.tree.map(lambda v: np.stack([size * v for size in sizes]).astype(np.float32), dy)

    def run(backwards: Sequence[Callable], args: tuple, dys: PyTree) -> PyTree:
        def at_all(args, dys):
            return jax.vmap(lambda dy: [b(args, dy) for b in backwards])(dys)

        by_draw = jax.jit(jax.vmap(at_all, in_axes=(0, 1), out_axes=1), compiler_options=QUICK)(args, dys)
        return jax.tree.map(lambda v: _of_trials(v, seeds), jax.device_get(by_draw))

    wrong = [w for w in d.wrong if _is_wrong(d, w, drawn[0], y)]
    right, *others = run([d.backward, *(w.backward for w in wrong)], args, dys)
    with jax.enable_x64(True):
        (truth,) = run([d.backward], *jax.tree.map(_widened, (args, dys)))
    return truth, right, {w.name: found for w, found in zip(wrong, others, strict=True)}


def _of_trials(v: np.ndarray, seeds: int) -> np.ndarray:
    """Axes (size, draws of all trials) as (size, trial, draw); what is no float32, such as float16, widened to it."""
    return np.asarray(v, np.float32).reshape(len(v), seeds, DRAWS, *v.shape[2:])


def _widened(v: np.ndarray) -> np.ndarray:
    return v.astype(np.float64) if v.dtype == np.float32 else v


def _is_wrong(d: Derivation, wrong: Wrong, args: tuple, y: PyTree) -> bool:
    """Whether it is wrong in float32: one whose only mistake is the dtype that it returns may be right there."""
    if wrong.kind != "dtype":
        return True
    found, right = (jax.eval_shape(b, args, y) for b in (wrong.backward, d.backward))
    return [jnp.dtype(v.dtype) for v in jax.tree.leaves(found)] != [v.dtype for v in jax.tree.leaves(right)]
