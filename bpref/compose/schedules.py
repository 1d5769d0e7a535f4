"""schedules: in which tick each device of a pipeline works on which micro-batch, forward and backward.

P stages stand in a row, a device each, and M micro-batches go through them, up by F and down by B. A tick is one F or
one B; what a device has made is with its neighbour in the next. So F of m on stage p comes after that on p - 1, B of m
on p after that on p + 1, and on the last stage after F. There is work for 2 M of the ticks; the others are its bubble.

GPipe: all up, then all down, the last first. 2 (M + P - 1) ticks, and M micro-batches are up at once.

    F of m on p in tick  p + m               B  in tick  (M + P - 1) + (P - 1 - p) + (M - 1 - m)

1F1B: m goes down as soon as it is up, and a stage has every other tick for either.

    F of m on p in tick  p + 2 m             B  in tick  2 P - 1 - p + 2 m

One is even where the other is odd, so that they never meet; both come from the neighbour's in the tick before, so that
nothing waits. Of m on p the two are 2 (P - p) - 1 ticks apart: P - p micro-batches, whatever M is, are up at once. The
last B, of M - 1 on stage 0, is in tick 2 (M + P - 1) - 1: GPipe's ticks, and its bubble, (P - 1) / (M + P - 1).

    of 3 stages and 4 micro-batches
    0   F0 .  F1 .  F2 B0 F3 B1 .  B2 .  B3
    1   .  F0 .  F1 B0 F2 B1 F3 B2 .  B3 .
    2   .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .

Sources: Huang et al., 'GPipe', arXiv:1811.06965; Narayanan et al., 'Efficient large-scale language model training on
GPU clusters using Megatron-LM', arXiv:2104.04473, section 2.2 (1F1B, PipeDream-flush: there a stage's first P - p F
come as early as they can, here as late, in the same order).
"""

from typing import NamedTuple

import numpy as np

from bpref.checks.hyperparameters import require_choice, require_sizes


class Schedule(NamedTuple):
    """Of each tick and device (T, P), the micro-batch that is worked on, or -1; printed, a line for each device.

    Attributes:
      forward: of F.
      backward: of B.
    """

    forward: np.ndarray
    backward: np.ndarray

    @property
    def ticks(self) -> int:
        """T, their number."""
        return len(self.forward)

    @property
    def kept(self) -> tuple[int, ...]:
        """Of each device, how many micro-batches are up at once, F done and B not."""
        up = np.cumsum((self.forward >= 0).astype(int) - (self.backward >= 0), axis=0)
        return tuple(up.max(axis=0).tolist())

    @property
    def bubble(self) -> float:
        """The share of ticks in which a device has nothing to do."""
        return float(np.mean((self.forward < 0) & (self.backward < 0)))

    def __str__(self) -> str:
        cells = np.full(self.forward.shape, ".", dtype=object)
        for name, of in zip("FB", self, strict=True):
            cells[of >= 0] = [f"{name}{m}" for m in of[of >= 0]]
        width = max(map(len, cells.flat))
        return "\n".join(
            f"{p:<3} " + " ".join(cell.ljust(width) for cell in row).rstrip() for p, row in enumerate(cells.T)
        )


def pipeline_schedule(schedule: str, stages: int, microbatches: int) -> Schedule:
    """What each device of a pipeline does in each tick.

    Args:
      schedule: "gpipe" or "1f1b".
      stages: P.
      microbatches: M.

    Example:
      >>> print(bpref.pipeline_schedule("1f1b", stages=2, microbatches=3))
      0   F0 .  F1 B0 F2 B1 .  B2
      1   .  F0 B0 F1 B1 F2 B2 .

    Raises:
      ValueError: there is no such schedule; a number is no positive integer.
    """
    require_choice("pipeline_schedule", "schedule", schedule, ("gpipe", "1f1b"))
    P, M = require_sizes("pipeline_schedule", stages=stages, microbatches=microbatches)
    t, p = np.ogrid[: 2 * (M + P - 1), :P]
    if schedule == "gpipe":
        return Schedule(_of(t - p, M), _of(2 * (M + P - 1) - 1 - p - t, M))
    return Schedule(_every_other(t - p, M), _every_other(t - (2 * P - 1 - p), M))


def _of(m: np.ndarray, M: int) -> np.ndarray:
    """The micro-batch of this number, -1 where there is none."""
    return np.where((m >= 0) & (m < M), m, -1)


def _every_other(ticks: np.ndarray, M: int) -> np.ndarray:
    """The micro-batch that comes so many ticks after the first, two after each other."""
    return np.where(ticks % 2 == 0, _of(ticks // 2, M), -1)
