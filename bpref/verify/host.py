"""Functions that JAX cannot trace or differentiate: the hand's backward held against numbers with error bars.

Whatever takes and returns array-likes can be checked so: NumPy, PyTorch, a compiled kernel, a JAX function around a
callback. The oracle is `bpref.verify.numerical`. Where its bars are too wide to decide, the verdict is 'cannot tell'.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bpref.verify import points as fresh
from bpref.verify.diagnose import Residual, diagnose, diagnose_shape
from bpref.verify.laws import TWO_ANSWERS
from bpref.verify.naming import leaf_names
from bpref.verify.numerical import numerical_cotangents
from bpref.verify.oracle import is_differentiable
from bpref.verify.program import output_name
from bpref.verify.report import CANNOT_TELL, OK, WRONG, Finding, Report, Verdict
from bpref.verify.subject import Misfit, Subject

POINTS = 2
COTANGENTS = 2
ORACLE = "numerical oracle: finite differences of its own primal, extrapolated, with error bars"

BARS = 10
"""How many error bars off is wrong; within two is right."""

SHARP = 1e-3
"""A bar this large, relative to the array's largest element, decides nothing."""


class Sample(NamedTuple):
    """One point and one cotangent: the arguments, the output, dy, and for each argument what came, and the oracle's."""

    leaves: list[Any]
    y: list[np.ndarray]
    dy: list[np.ndarray]
    hand: list[Any]
    oracle: list[Any]
    bars: list[Any]
    projections: list[tuple]


def check_numerically(subject: Subject, key: int, why: str) -> Report:
    """The report of a subject whose oracle has to be numerical; `why` is a note for the reader."""
    subject = _compiled(subject)
    if not _is_repeatable(subject, key):
        names = [name for name, v in zip(subject.names, subject.leaves, strict=True) if is_differentiable(v)]
        verdicts = tuple(Verdict(name, CANNOT_TELL, TWO_ANSWERS, np.inf) for name in names)
        return Report(
            subject.name, ORACLE, key, verdicts, tuple(Finding(name, "impure", TWO_ANSWERS) for name in names), (why,)
        )
    samples = [s for i in range(POINTS) for s in _samples(subject, key, i)]
    verdicts, findings = [], []
    for n, (name, leaf) in enumerate(zip(subject.names, subject.leaves, strict=True)):
        if is_differentiable(leaf):
            verdict, finding = _judge(subject, n, name, samples)
            verdicts.append(verdict)
            findings += [finding] if finding else []
    return Report(subject.name, ORACLE, key, tuple(verdicts), tuple(findings), (why,) if why else ())


def _compiled(subject: Subject) -> Subject:
    """The same, its forward compiled where JAX can trace it: it is called many times."""
    specs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in subject.leaves]
    try:
        jax.eval_shape(subject.plain, specs)
    except Exception:
        return subject
    return subject._replace(plain=jax.jit(subject.plain))


def _is_repeatable(subject: Subject, key: int) -> bool:
    leaves = _point(subject, key, 0)
    once, again = (jax.tree.leaves(subject.plain(_copies(leaves))) for _ in range(2))
    return all(np.array_equal(np.asarray(v), np.asarray(w), equal_nan=True) for v, w in zip(once, again, strict=True))


def _point(subject: Subject, key: int, i: int) -> list[Any]:
    """The arguments at point i; the first has the values that were given."""
    rng = fresh.generator(key, i, 8)
    smallest = fresh.smallest_axis(subject.leaves)
    return [
        fresh.fill(v, rng, 0, smallest)
        if fresh.is_specification(v)
        else v
        if i == 0
        else fresh.near(v, rng, fresh.STRENGTHS[1])
        for v in subject.leaves
    ]


def _samples(subject: Subject, key: int, i: int) -> list[Sample]:
    rng = fresh.generator(key, i, 9)
    leaves = _point(subject, key, i)

    def call(*values: Any) -> list[np.ndarray]:
        return [np.asarray(v) for v in jax.tree.leaves(subject.plain(list(values)))]

    with jax.enable_x64(True):
        leaves = _widest(call, leaves)
        y = call(*_copies(leaves))
        tree = jax.tree.structure(subject.plain(_copies(leaves)))
        dys = [[_cotangent(v, rng) for v in y] for _ in range(COTANGENTS)]
        found = numerical_cotangents(call, tuple(leaves), dys, rng=rng)
        made = []
        for dy, numbers in zip(dys, found, strict=True):
            hand = subject.sweep(_copies(leaves))[1](jax.tree.unflatten(tree, _copies(dy)))
            made.append(
                Sample(
                    leaves,
                    y,
                    dy,
                    [_as_numpy(v) for v in hand],
                    list(numbers.cotangents),
                    list(numbers.bars),
                    list(numbers.projections),
                )
            )
    return made


def _widest(call: Callable[..., list[np.ndarray]], leaves: list[Any]) -> list[Any]:
    """The arguments in double precision, if the function takes and returns that; else as they are."""
    wide = [_wide(v) for v in leaves]
    try:
        doubled = all(v.dtype in (np.float64, np.complex128) for v in call(*_copies(wide)) if is_differentiable(v))
    except Exception:
        doubled = False
    return wide if doubled else leaves


def _wide(v: Any) -> Any:
    if not is_differentiable(v):
        return v
    return np.asarray(v, np.complex128 if np.iscomplexobj(v) else np.float64)


def _copies(values: list[Any]) -> list[Any]:
    return [np.array(v) if isinstance(v, np.ndarray) else v for v in values]


def _cotangent(v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if not is_differentiable(v):
        return np.zeros(v.shape, v.dtype)
    dy = rng.normal(size=v.shape)
    return np.asarray(dy + 1j * rng.normal(size=v.shape) if np.iscomplexobj(v) else dy).astype(v.dtype)


def _as_numpy(v: Any) -> Any:
    return v if v is None or isinstance(v, Misfit) else np.asarray(v)


def _judge(subject: Subject, n: int, name: str, samples: list[Sample]) -> tuple[Verdict, Finding | None]:
    """The verdict on one argument, and the finding if it is wrong."""

    def wrong(kind: str, detail: str, error: float = np.inf) -> tuple[Verdict, Finding]:
        return Verdict(name, WRONG, detail, error), Finding(name, kind, detail, error)

    first = samples[0].hand[n]
    if isinstance(first, Misfit):
        return wrong("structure", first.detail)
    oracle = np.stack([s.oracle[n] for s in samples])
    bars = np.stack([s.bars[n] for s in samples])
    if first is None:
        if np.any(np.abs(oracle) > BARS * bars):
            return wrong("structure", "the backward returned None for it, which stands for zero, and it is not zero")
        return Verdict(name, OK, "None, and the oracle's is zero", 0.0), None
    hand = np.stack([s.hand[n] for s in samples]).astype(oracle.dtype)
    residual = _residual(subject, n, name, samples, hand, oracle, bars)
    if hand.shape != oracle.shape:
        return wrong(*diagnose_shape(residual))
    looked = np.isfinite(bars)
    size = np.max(np.abs(oracle), axis=tuple(range(1, oracle.ndim)), keepdims=True, initial=0.0)
    rounding = 100 * float(np.finfo(samples[0].hand[n].dtype).eps) * size
    allowed = bars + rounding
    with np.errstate(invalid="ignore"):
        apart = np.where(looked, np.abs(hand - oracle), 0.0)
    apart = np.where(np.isnan(apart), np.inf, apart)
    error = float(np.max(apart / np.maximum(np.abs(oracle), SHARP * size + np.finfo(float).tiny), initial=0.0))
    if np.any(apart > BARS * np.where(looked, allowed, np.inf)):
        if looked.all() and error > BARS * residual.round_off:
            return wrong(*diagnose(residual), error)
        return wrong("unexplained", _worst(hand, oracle, apart), error)
    if _projections_disagree(samples, n, hand):
        return wrong("unexplained", "along a random direction through the whole array it is off", error)
    width = float(np.max(np.where(looked, bars, 0.0) / np.maximum(size, np.finfo(float).tiny), initial=0.0))
    if width > SHARP or np.any(apart > 2 * np.where(looked, allowed, np.inf)):
        detail = f"off by {error:.1e}, and the oracle is only sure to {width:.0e}"
        return Verdict(name, CANNOT_TELL, detail, error), None
    unseen = int((~looked).sum())
    more = f"; {unseen} elements were looked at only along random directions" if unseen else ""
    return Verdict(name, OK, f"{error:.0e} off; the oracle is sure to {width:.0e}{more}", error), None


def _projections_disagree(samples: list[Sample], n: int, hand: np.ndarray) -> bool:
    """Whether the hand is off along a direction; in double precision alone, where such a bar can be trusted."""
    if hand.dtype not in (np.float64, np.complex128) or samples[0].leaves[n].dtype.itemsize < 8:
        return False
    return any(
        abs(float(np.sum(h * p.direction).real) - p.value)
        > BARS * p.bar + 1e-9 * float(np.sum(np.abs(h * p.direction)))
        for s, h in zip(samples, hand, strict=True)
        for p in s.projections[n]
        if np.isfinite(p.bar)
    )


def _worst(hand: np.ndarray, oracle: np.ndarray, apart: np.ndarray) -> str:
    index = np.unravel_index(int(apart.argmax()), apart.shape)
    return f"at {[int(i) for i in index[1:]]} it is {hand[index]:.3e}, the oracle's {oracle[index]:.3e}"


def _residual(
    subject: Subject, n: int, name: str, samples: list[Sample], hand: np.ndarray, oracle: np.ndarray, bars: np.ndarray
) -> Residual:
    def stack(of: Callable[[Sample], Any]) -> np.ndarray:
        return np.stack([of(s) for s in samples])

    size = np.max(np.abs(oracle), initial=0.0) or 1.0
    output = output_name(subject.names)
    outputs = leaf_names(output, list(samples[0].y)) if len(samples[0].y) > 1 else [output]
    differentiable = [i for i, v in enumerate(subject.leaves) if is_differentiable(v)]
    return Residual(
        where=name,
        hand=hand,
        oracle=oracle,
        others={subject.names[i]: stack(lambda s, i=i: s.oracle[i]) for i in differentiable if i != n},
        args={
            m: stack(lambda s, i=i: s.leaves[i])
            for i, m in enumerate(subject.names)
            if not fresh.is_key(subject.leaves[i])
        },
        y={m: stack(lambda s, i=i: s.y[i]) for i, m in enumerate(outputs)},
        dy={m: stack(lambda s, i=i: s.dy[i]) for i, m in enumerate(outputs)},
        round_off=max(1e-10, 2 * float(np.max(np.where(np.isfinite(bars), bars, 0.0))) / size / SHARP),
    )
