"""schedules: in which tick each device of a pipeline works on which micro-batch, forward and backward.

P stages stand in a row, a device each, and M micro-batches go through them, up by F and down by B. In a tick a device
does one of these; what it has made is with its neighbour in the next. So F of m on stage p comes after that on p - 1, B
of m on p after that on p + 1, and on the last stage after F. What is left of the ticks is the bubble.

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

Zero bubble (ZB-H1): B is the half of the backward that the stage below waits for, W the other, dparams, which nobody
waits for. In each tick a stage does B, if there is one; else F, if fewer than P micro-batches are up and there is one;
else a W that waits, of which there are at most P. That takes 3 M + P - 1 ticks, where M >= P. The first stage stands
still in P - 1 of them, while the first micro-batch goes up and down; all others as long, and no longer.

    of 3 stages and 4 micro-batches
    0   F0 F1 F2 .  .  B0 F3 B1 W0 B2 W1 W2 B3 W3
    1   .  F0 F1 F2 B0 W0 B1 F3 B2 W1 W2 B3 W3 .
    2   .  .  F0 B0 F1 B1 F2 B2 F3 W0 B3 W1 W2 W3

Sources: Huang et al., 'GPipe', arXiv:1811.06965; Narayanan et al., 'Efficient large-scale language model training on
GPU clusters using Megatron-LM', arXiv:2104.04473, section 2.2 (1F1B, PipeDream-flush: there a stage's first P - p F
come as early as they can, here as late, in the same order); Qi et al., 'Zero bubble pipeline parallelism',
arXiv:2401.10241, section 2.3 (ZB-H1: a third of 1F1B's bubble, where F, B and W take as long as each other).
"""

from typing import NamedTuple

import numpy as np

from bpref.checks.hyperparameters import require_choice, require_sizes


class Schedule(NamedTuple):
    """Of each tick and device (T, P), the micro-batch that is worked on, or -1; printed, a line for each device.

    Attributes:
      forward: of F.
      backward: of B.
      params: of W; all -1 where B is the whole backward.
    """

    forward: np.ndarray
    backward: np.ndarray
    params: np.ndarray

    @property
    def ticks(self) -> int:
        """T, their number."""
        return len(self.forward)

    @property
    def kept(self) -> tuple[int, ...]:
        """Of each device, how many micro-batches are up at once, F done and B not."""
        return most_between(self.forward, self.backward)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Of each device, how many wait for their W at once, where there is one."""
        return most_between(self.backward, self.params) if np.any(self.params >= 0) else (0,) * self.params.shape[1]

    @property
    def from_before(self) -> np.ndarray:
        """Of what micro-batch the output of the device before comes to each, to be there in the next tick; (T, P)."""
        return np.hstack([np.full_like(self.forward[:, :1], -1), self.forward[:, :-1]])

    @property
    def from_behind(self) -> np.ndarray:
        """Of what micro-batch the cotangent of its output comes: to the last device from the loss, with its F."""
        return np.hstack([self.backward[:, 1:], self.forward[:, -1:]])

    @property
    def bubble(self) -> float:
        """The share of ticks in which a device has nothing to do."""
        return float(np.mean(np.all(np.stack(self) < 0, axis=0)))

    def __str__(self) -> str:
        cells = np.full(self.forward.shape, ".", dtype=object)
        for name, of in zip("FBW", self, strict=True):
            cells[of >= 0] = [f"{name}{m}" for m in of[of >= 0]]
        width = max(map(len, cells.flat))
        return "\n".join(
            f"{p:<3} " + " ".join(cell.ljust(width) for cell in row).rstrip() for p, row in enumerate(cells.T)
        )


SCHEDULES = ("gpipe", "1f1b", "zero-bubble")


def pipeline_schedule(schedule: str, stages: int, microbatches: int) -> Schedule:
    """What each device of a pipeline does in each tick.

    Args:
      schedule: "gpipe", "1f1b" or "zero-bubble".
      stages: P.
      microbatches: M.

    Example:
      >>> print(bpref.pipeline_schedule("1f1b", stages=2, microbatches=3))
      0   F0 .  F1 B0 F2 B1 .  B2
      1   .  F0 B0 F1 B1 F2 B2 .

    Raises:
      ValueError: there is no such schedule; a number is no positive integer.
    """
    require_choice("pipeline_schedule", "schedule", schedule, SCHEDULES)
    P, M = require_sizes("pipeline_schedule", stages=stages, microbatches=microbatches)
    if schedule == "zero-bubble":
        return _zero_bubble(P, M)
    t, p = np.ogrid[: 2 * (M + P - 1), :P]
    if schedule == "gpipe":
        up, down = _of(t - p, M), _of(2 * (M + P - 1) - 1 - p - t, M)
    else:
        up, down = _every_other(t - p, M), _every_other(t - (2 * P - 1 - p), M)
    return Schedule(up, down, np.full_like(up, -1))


def most_between(begun: np.ndarray, done: np.ndarray) -> tuple[int, ...]:
    """Of each device, of how many micro-batches at once, at most, one is done and the other is not."""
    return tuple(np.cumsum((begun >= 0).astype(int) - (done >= 0), axis=0).max(axis=0).tolist())


def _of(m: np.ndarray, M: int) -> np.ndarray:
    """The micro-batch of this number, -1 where there is none."""
    return np.where((m >= 0) & (m < M), m, -1)


def _every_other(ticks: np.ndarray, M: int) -> np.ndarray:
    """The micro-batch that comes so many ticks after the first, two after each other."""
    return np.where(ticks % 2 == 0, _of(ticks // 2, M), -1)


def _zero_bubble(P: int, M: int) -> Schedule:
    """Tick by tick, of how many micro-batches each stage has done F, B and W."""
    done, rows = np.zeros((3, P), int), []
    while np.any(done[2] < M):
        F, B, W = done
        can_go_down = (np.append(B[1:], F[-1]) > B) & (B - W < P)
        can_go_up = (np.append(M, F[:-1]) > F) & (F - B < P)
        does = np.stack([can_go_up & ~can_go_down, can_go_down, (W < B) & ~can_go_up & ~can_go_down])
        rows.append(np.where(does, done, -1))
        done = done + does
    return Schedule(*np.stack(rows, axis=1))
