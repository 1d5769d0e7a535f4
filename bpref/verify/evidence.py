"""What a diagnosis of one wrong value is made from: the arrays of all samples, brought to one scale."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np

from bpref.verify.diagnose import Residual
from bpref.verify.examine import ROUND_OFF, Held, Point, run_in_float64
from bpref.verify.numbers.points import is_key
from bpref.verify.prepare import Prepared
from bpref.verify.program import COTANGENTS, Seen
from bpref.verify.terms import contributions

Arrays = dict[str, np.ndarray]

LEGIBLE = 1e-3
"""However much round-off may make of a value, what explains it agrees with it to three digits."""


def unscaled(arrays: Arrays, scales: Sequence[float]) -> Arrays:
    """Stacked cotangents as they are for the dys that were drawn; exactly, since the scales are powers of two."""
    of_samples = np.repeat(scales, COTANGENTS)
    return {name: v / of_samples.reshape(-1, *[1] * (v.ndim - 1)) for name, v in arrays.items()}


def residuals(
    ready: Prepared, points: list[Point], seen: Seen, scales: Sequence[float], nonlinear: set[str]
) -> Callable[[str, Held | None], Residual]:
    """`(name, held) -> Residual` for the values of one stacked run.

    The points' cotangents differ by the powers of two in `scales`. They are divided out, except for the values whose
    backward is not linear.
    """
    of_args = {
        name: np.stack([p.leaves[i] for p in points])
        for i, name in enumerate(ready.subject.names)
        if not is_key(points[0].leaves[i])
    }
    dys = [np.concatenate([p.dys[i] for p in points]) for i in range(len(points[0].dys))]
    scaled = partial(unscaled, scales=scales)

    @cache
    def terms() -> dict[str, Arrays]:
        return contributions(ready.primal, ready.subject.names, points)

    def terms_of(name: str, level: Callable[[Arrays], Arrays]) -> Arrays:
        return level(terms()[name])

    def for_dys(name: str, others: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        """The oracle's cotangents of one argument for other dys, each given for all samples."""

        def for_all(d: Mapping[str, np.ndarray]) -> np.ndarray:
            of_points = [
                Point(p.leaves, [dy[i * COTANGENTS : (i + 1) * COTANGENTS] for dy in d.values()])
                for i, p in enumerate(points)
            ]
            return np.concatenate([s.oracle[name] for s in run_in_float64(ready.wide.oracle, of_points)])

        return list(map(for_all, others))

    def round_off(held: Held | None) -> float:
        return min(held.allowed, max(LEGIBLE, ready.round_off)) if held else ROUND_OFF

    def of_output(name: str, held: Held | None) -> Residual:
        others = {n: v for n, v in seen.y_oracle.items() if n != name}
        return Residual(name, seen.y[name], seen.y_oracle[name], others, of_args, {}, {}, round_off(held))

    def of_cotangent(name: str, held: Held | None) -> Residual:
        level: Callable[[Arrays], Arrays] = dict if name in nonlinear else scaled
        right = {name: held.oracle} if held else {}
        hand, oracle = level(seen.hand), level(seen.oracle | right)
        outputs = {n: np.repeat(v, COTANGENTS, axis=0) for n, v in seen.y_oracle.items()}
        return Residual(
            where=name,
            hand=hand.get(name, np.zeros_like(oracle[name])),
            oracle=oracle[name],
            others={n: v for n, v in oracle.items() if n != name},
            args={n: np.repeat(v, COTANGENTS, axis=0) for n, v in of_args.items()},
            y=outputs,
            dy=level(dict(zip(outputs, dys, strict=True))),
            round_off=round_off(held),
            terms=partial(terms_of, name, level),
            for_dys=partial(for_dys, name),
        )

    def residual(name: str, held: Held | None) -> Residual:
        return of_output(name, held) if name in seen.y_oracle else of_cotangent(name, held)

    return residual
