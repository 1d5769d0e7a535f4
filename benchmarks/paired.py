"""Times of two programs side by side: in one process, in turn, as ratios with their median and spread.

An absolute time on a shared machine is not a result; the ratio of two that ran within the same second is one.
"""

import time
from collections.abc import Callable
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
    """Time the two in turn, the order swapped at every pair, `pairs` times after `warm` uncounted ones.

    A call that returns an array is timed until the array is there.
    """
    times = np.empty((warm + pairs, 2))
    for i in range(warm + pairs):
        for which in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            result = (hand, other)[which]()
            if isinstance(result, jax.Array):
                result.block_until_ready()
            times[i, which] = time.perf_counter() - start
    times = times[warm:]
    low, median, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
    return Ratio(float(median), float(low), float(high), *map(float, np.median(times, axis=0)))


def repetitions(run: Callable[[], object], budget: float, most: int = 200, least: int = 5) -> int:
    """How many pairs fit into `budget` seconds, judged by one call, once warm."""
    jax.block_until_ready(run())
    start = time.perf_counter()
    jax.block_until_ready(run())
    return int(np.clip(budget / (2 * (time.perf_counter() - start) + 1e-9), least, most))
