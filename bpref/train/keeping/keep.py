"""keep: when a run leaves a checkpoint: every so many steps or seconds, and where it is asked to stop."""

import time
from collections.abc import Callable

from bpref.sharding.hosts import largest
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.loop import Reached, Visit

SECONDS = 60.0
"""Between checkpoints, where no number of steps was asked for."""


class Stopped(Exception):
    """The run was asked to stop, and has left a checkpoint; the next step would have been the one after `step`."""

    def __init__(self, step: int, why: int):
        super().__init__(f"stopped after step {step}")
        self.step, self.why = step, why


def keeping(
    checkpoints: Checkpoints, every: int | None, asked: Callable[[], int | None], last: int | None = None
) -> list[Visit]:
    """Who visits a run, to keep it.

    Args:
      checkpoints: where they go.
      every: so many steps; None for once a minute.
      asked: why the run is to stop; None as long as it is not. One process of several is enough.
      last: the step that is kept whatever came before.

    Raises:
      Stopped, Unwritable: by the visits.
    """
    saved, saved_at = -1, time.monotonic()

    def save(reached: Reached) -> None:
        nonlocal saved, saved_at
        if reached.step != saved:
            checkpoints.save(reached)
            saved, saved_at = reached.step, time.monotonic()

    def look(reached: Reached) -> None:
        why, since = largest(asked() or 0, time.monotonic() - saved_at)
        if why or reached.step == last or (every is None and since >= SECONDS):
            save(reached)
        if why:
            checkpoints.wait()
            raise Stopped(reached.step, int(why))

    return [Visit(look)] if every is None else [Visit(save, every), Visit(look)]
