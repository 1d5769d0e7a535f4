"""The angles of rotary embeddings: a frequency for each pair of features, as they are and as models stretch them."""

from typing import Literal, NamedTuple

import numpy as np


class Stretch(NamedTuple):
    """How a model's positions are made to reach `factor` times as far as it was trained for, `length` positions.

    Attributes:
      way: "linear" divides all frequencies by the factor (arXiv:2306.15595); "ntk" enlarges the base, so that the
        slowest alone is divided by it; "llama3" (arXiv:2407.21783) divides those that turn less than `slow` times
        within `length`, leaves those that turn more than `fast` times, and goes from one to the other between them;
        "yarn" (arXiv:2309.00071) does so linearly in the number of the pair, and multiplies by 1 + 0.1 ln factor.
      factor, length, slow, fast: as said; fast is 32 for "yarn" and 4 for "llama3", as in the papers, if not given.
    """

    way: Literal["linear", "ntk", "llama3", "yarn"]
    factor: float
    length: int = 8192
    slow: float = 1.0
    fast: float | None = None


def frequencies(features: int, base: float, stretch: Stretch | None) -> np.ndarray:
    """Radians for each position, of each of features / 2 pairs, in float64."""
    if stretch is not None and stretch.way == "ntk":
        base = base * stretch.factor ** (features / max(features - 2, 1))
    pairs = np.arange(features // 2)
    frequency = base ** (-2.0 * pairs / features)
    if stretch is None or stretch.way == "ntk":
        return frequency
    if stretch.way == "linear":
        return frequency / stretch.factor
    fast = stretch.fast or (32.0 if stretch.way == "yarn" else 4.0)
    turns = stretch.length * frequency / (2 * np.pi)
    if stretch.way == "llama3":
        kept = np.clip((turns - stretch.slow) / (fast - stretch.slow), 0, 1)
    else:
        first, last = (_pair_that_turns(n, features, base, stretch.length) for n in (fast, stretch.slow))
        first, last = max(np.floor(first), 0), min(np.ceil(last), features - 1)
        kept = 1 - np.clip((pairs - first) / max(last - first, 1e-3), 0, 1)
    return frequency * (kept + (1 - kept) / stretch.factor)


def magnitude(stretch: Stretch | None) -> float:
    """What rotated features are multiplied by."""
    return float(1 + 0.1 * np.log(stretch.factor)) if stretch is not None and stretch.way == "yarn" else 1.0


def _pair_that_turns(times: float, features: int, base: float, length: int) -> float:
    return features * np.log(length / (times * 2 * np.pi)) / (2 * np.log(base))
