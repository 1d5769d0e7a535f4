"""What it costs to keep a run: checkpoints every 50 steps, metrics and progress beside the bare jitted step.

    python -m benchmarks.bench_keeping [--json FILE] [--pairs 10]

`bpref train gpt` with its default settings, on data on the device. In one process and in turn, 200 steps as
`bpref train` takes them, visited by all that it has to say and keep, and 200 calls of the jitted step alone.
"""

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
from rich.console import Console

from bpref.cli.training import progress as bar
from bpref.models.text import text_model
from bpref.train.data.text import read_text
from bpref.train.fitted import Epoch
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.keeping.keep import keeping
from bpref.train.keeping.record import Record
from bpref.train.loop import Visit, run
from bpref.train.optimizers import make_optimizer
from bpref.train.recipes import OF_TEXT
from bpref.train.start import Start, start

EVERY, STEPS = 50, 200


def begun() -> Start:
    r = OF_TEXT["gpt"]
    text = read_text(None, r.context, r.tokens)
    model = text_model("gpt", text.tokenizer.vocabulary, r.context, r.width, r.depth, r.heads)
    optimizer = make_optimizer(r.optimizer, r.learning_rate, steps=10_000, schedule=r.schedule)
    train = jax.tree.map(lambda v: v[: STEPS * r.batch_size], text.train)
    return start(model.objective, optimizer, train, batch_size=r.batch_size)


def clocks() -> np.ndarray:
    """Seconds that have passed, and those of work of this process, which tell more where others work too."""
    return np.array([time.perf_counter(), time.process_time()])


def measured(pairs: int) -> np.ndarray:
    """The ratios kept / bare of so many pairs by both clocks, (pairs, 2), after one that is not counted."""
    begin = begun()
    going = jax.tree.map(lambda v: v.copy(), begin.state)
    step = jax.jit(
        lambda going, data, rows: begin.stepper.step(going, jax.tree.map(lambda v: v[rows], data)), donate_argnums=0
    )
    order = list(begin.order(1))
    ratios, since = [], clocks()

    def bare() -> np.ndarray:
        nonlocal going
        at = clocks()
        for rows in order:
            going, *_ = step(going, begin.data, rows)
        jax.block_until_ready(going)
        return clocks() - at

    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder) / "run")
        checkpoints = Checkpoints(record.directory / "checkpoints")
        visits = keeping(checkpoints, EVERY, lambda: None)
        terminal = Console(file=io.StringIO(), force_terminal=True)
        with patch.object(bar, "Console", lambda stderr: terminal), bar.progress(pairs + 1, 1, "J") as show:
            assert show is not None

            def on_epoch(epoch: Epoch) -> None:
                nonlocal since
                record.add(epoch)
                kept = clocks() - since
                ratios.append(kept / bare())
                since = clocks()

            run(begin, epochs=pairs + 1, on_epoch=on_epoch, visits=[*visits, Visit(show)])
        checkpoints.wait()
    return np.array(ratios[1:])


def table(figures: dict[str, float]) -> str:
    """A row for each clock, in Markdown."""
    lines = ["| | kept / bare |", "| --- | --- |"]
    for clock, what in (("seconds", "time"), ("work", "work of the processor")):
        low, median, high = (figures[f"{clock}{which}"] for which in ("_low", "", "_high"))
        lines.append(f"| {what} | {median:.3f} ({low:.3f}-{high:.3f}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args()
    quartiles = np.percentile(measured(given.pairs), (25, 50, 75), axis=0).T
    figures: dict[str, float] = {"steps": STEPS, "every": EVERY, "pairs": given.pairs}
    for clock, (low, median, high) in zip(("seconds", "work"), quartiles, strict=True):
        figures |= {clock: median, f"{clock}_low": low, f"{clock}_high": high}
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
