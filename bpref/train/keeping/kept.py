"""kept: what `fit` leaves in a directory to go on from, and finds there: the machinery of `bpref train --out`."""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpref.layer import leaf_paths
from bpref.train.keeping.begun import BEGUN, Json, begun_otherwise, begun_with, require_the_same, write_begun
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.keeping.keep import keeping
from bpref.train.keeping.record import CHECKPOINTS, held, is_begun, require_new
from bpref.train.keeping.traced import CannotCompare, Traced, difference
from bpref.train.loop import Reached, Visit, begun
from bpref.train.start import Start, precision

OPTIMIZER = "optimizer"
"""Of what a run was begun with, what its optimiser computes."""


@contextmanager
def kept(
    directory: Path, settings: Json, optimizer: Traced, begin: Start, epochs: int, every: int | None, resume: bool
) -> Iterator[tuple[Reached | None, list[Visit]]]:
    """Within, what a run goes on from, None where it has just begun, and who visits it to keep it.

    Args:
      directory: a new one, or that of a run that is gone on with; no other run writes into it meanwhile.
      settings: what must be the same to go on, besides the layers and the arrays.
      optimizer: what it computes, which must be the same too, as far as that is known.
      begin: the run's.
      epochs: how many there are to be in all.
      every: steps between checkpoints; None for once a minute. The last step leaves one too.
      resume: whether to go on where there is a run.

    Raises:
      ImportError: orbax, which writes checkpoints, is not there.
      OSError: the directory exists, cannot be made, or another run writes into it.
      ValueError: the run in it was begun otherwise; how.
      Unwritable: a checkpoint cannot be written.
    """
    if importlib.util.find_spec("orbax") is None:
        raise ImportError('checkpoints are written by orbax, which is not installed: pip install "bpref[cli]"')
    settings = settings | {"layers": list(leaf_paths(begin.stepper.objective)), OPTIMIZER: optimizer._asdict()}
    if resume and is_begun(directory) and (directory / BEGUN).exists():
        require_the_same(directory, settings, but_for=(OPTIMIZER,))
        require_the_same_updates(directory, optimizer)
    else:
        if not (resume and is_begun(directory)):
            require_new(directory)
            directory.mkdir(parents=True)
        write_begun(directory, settings)
    checkpoints, steps = Checkpoints(directory / CHECKPOINTS), epochs * len(begin.order(1))
    with held(directory):
        with precision(begin.dtype):
            since = checkpoints.last(begun(begin), lambda message: warnings.warn(message, stacklevel=6))
        if since is not None and since.step > steps:
            raise ValueError(f"{directory}: {since.step} steps are done, more than the {steps} of epochs={epochs}")
        with checkpoints.written():
            yield since, keeping(checkpoints, every, lambda: None, last=steps)


def require_the_same_updates(directory: Path, now: Traced) -> None:
    """Raise `ValueError` where another optimiser has made a run's updates so far; a warning where that is not known."""
    before = begun_with(directory).get(OPTIMIZER)
    if not isinstance(before, dict):
        return
    try:
        if what := difference(before, now):
            raise begun_otherwise(directory, what)
    except CannotCompare as unknown:
        message = f"{directory} is gone on with, though {unknown}: whether it is the same is not known"
        warnings.warn(message, stacklevel=5)
