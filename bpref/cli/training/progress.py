"""A bar on a terminal while a network is trained: loss, metric, and how fast it goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bpref.train.loop import Reached


@contextmanager
def progress(epochs: int, examples: int, score: str) -> Iterator[Callable[[Reached], None] | None]:
    """Who shows what is reached, on a terminal's stderr and gone at the end; elsewhere None.

    Args:
      epochs: how many there are to be.
      examples: that are trained on in each.
      score: what is looked at after each.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=epochs, figures="compiling")
        before: tuple[int, float] | None = None

        def show(reached: Reached) -> None:
            nonlocal before
            steps = len(reached.carry.losses)
            figures = [f"loss {np.asarray(reached.carry.losses)[(reached.step - 1) % steps]:.4f}"]
            if reached.history and reached.history[-1].test_score is not None:
                figures.append(f"test {score} {reached.history[-1].test_score:.4f}")
            if before is not None:
                rate = (reached.step - before[0]) * examples / steps / (perf_counter() - before[1])
                figures.append(f"{rate:,.0f} examples/s")
            before = before or (reached.step, perf_counter())
            bar.update(task, completed=reached.step / steps, figures=", ".join(figures))

        yield show
