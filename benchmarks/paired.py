"""Times of two programs side by side: in one process, in turn, as ratios with their median and spread.

An absolute time on a shared machine is not a result; the ratio of two that ran within the same second is one.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np


class Ratio(NamedTuple):
    """Of the pairwise ratios hand / other: the median, and the quartiles around it; and the median times in seconds."""

    median: float
    low: float
    high: float
    hand_seconds: float
    other_seconds: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def paired(hand: Callable[[], object], other: Callable[[], object], pairs: int, warm: int = 1) -> Ratio:
    """Time the two in turn, `pairs` times after `warm` uncounted ones.

    A call that returns an array is timed until the array is there.
    """
    return beside_each((hand, other), pairs, warm)[0]


def beside_each(runs: Sequence[Callable[[], object]], rounds: int, warm: int = 1) -> list[Ratio]:
    """Time all in turn, the order turned round at every round; the first beside each of the others."""
    times = np.empty((warm + rounds, len(runs)))
    for i in range(warm + rounds):
        for which in range(len(runs))[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            result = runs[which]()
            if isinstance(result, jax.Array):
                result.block_until_ready()
            times[i, which] = time.perf_counter() - start
    times = times[warm:]
    return [ratio(times[:, 0], others) for others in times[:, 1:].T]


def ratio(hand: np.ndarray, other: np.ndarray) -> Ratio:
    low, median, high = np.quantile(hand / other, [0.25, 0.5, 0.75])
    return Ratio(*map(float, (median, low, high, np.median(hand), np.median(other))))


def repetitions(run: Callable[[], object], budget: float, most: int = 200, least: int = 5) -> int:
    """How many pairs fit into `budget` seconds, judged by one call, once warm."""
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return int(np.clip(budget / (2 * (time.perf_counter() - start) + 1e-9), least, most))


def least_time(run: Callable[[], object], rounds: int) -> float:
    """The shortest of so many runs that wait for their result, once warm, in seconds."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
