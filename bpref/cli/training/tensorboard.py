"""What `bpref train --tensorboard` leaves beside `metrics.jsonl`: the same figures, for TensorBoard."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpref.train.fitted import Epoch
from bpref.train.keeping.record import as_json

FIGURES = {"train_loss": "loss/train", "test_loss": "loss/test", "test_score": "score/test", "seconds": "seconds"}
"""What a figure of an epoch is called there."""


def require_tensorboard() -> None:
    """Raise `ValueError` where the library that writes its files is not there."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError('--tensorboard needs tensorboardX, which is not installed: pip install "bpref[tensorboard]"')


@contextmanager
def tensorboard(directory: Path, first: int | None) -> Iterator[Callable[[Epoch], None]]:
    """Who writes an epoch down, at its last step; of a run that goes on, what it left from step `first` on is void."""
    from tensorboardX import SummaryWriter

    # its name tells seconds only: of two in one second, the later would write over the earlier
    with SummaryWriter(str(directory), purge_step=first, filename_suffix=f".{first or 0:012d}") as writer:

        def write(epoch: Epoch) -> None:
            row = as_json(epoch)
            figures = {tag: row[name] for name, tag in FIGURES.items()}
            figures |= {f"gradient_norm/{layer}": v for layer, v in row["gradient_norm"].items()}
            for tag, v in figures.items():
                if v is not None:
                    writer.add_scalar(tag, v, row["steps"])
            writer.flush()

        yield write
