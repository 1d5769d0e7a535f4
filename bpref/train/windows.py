"""windows: what the steps of a run take, so many steps at a time; the next is read while the steps of one run."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bpref.train.start import Start


class At(NamedTuple):
    """Where a window begins: the epoch, from 1, and the step of it, from 0."""

    epoch: int
    first: int


class Windows:
    """The windows of a run. Data in memory have one for each epoch, and nothing is read ahead.

    Args:
      begin: the run's.
      steps: how many it has.
    """

    def __init__(self, begin: Start, steps: int):
        self.begin, self.steps = begin, steps
        self._reader = ThreadPoolExecutor(1, "data") if begin.is_on_disk else None
        self._at, self._given, self._next = None, None, None

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def at(self, step: int) -> tuple[PyTree, int]:
        """`(data, order)` of the window that a step of all is in, and the step after it; raises `Changed`."""
        at, end = self._place(step)
        if at != self._at:
            self._at, self._given = at, self._placed(self._read(at))
            if self._reader is not None and end < self.steps:
                after, _ = self._place(end)
                self._next = after, self._reader.submit(self.begin.read, *after)
        return self._given, end

    def _place(self, step: int) -> tuple[At, int]:
        steps, window = len(self.begin.order(1)), self.begin.window
        epoch, i = divmod(step, steps)
        first = i - i % window
        return At(epoch + 1, first), epoch * steps + min(first + window, steps)

    def _read(self, at: At) -> PyTree:
        ahead: tuple[At, Future] | None = self._next
        return ahead[1].result() if ahead is not None and ahead[0] == at else self.begin.read(*at)

    def _placed(self, given: PyTree) -> PyTree:
        """On the device that this thread computes on; on a mesh it lies there already."""
        return given if self.begin.layout is not None else jax.tree.map(jnp.asarray, given)
