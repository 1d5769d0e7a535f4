"""Where the time of a step goes: some steps under JAX's profiler, after the first ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import jax

from bpref.train.loop import Reached, Visit

SECONDS = 1.0
"""Of steps that are traced, at least."""


@contextmanager
def profiling(directory: Path) -> Iterator[Visit]:
    """Who has the steps traced that follow the first ones, for ui.perfetto.dev and xprof."""
    began: float | None = None
    tracing = False

    def end() -> None:
        nonlocal tracing
        if tracing:
            jax.profiler.stop_trace()
            print(f"traced: {directory}")
        tracing = False

    def look(reached: Reached) -> None:
        nonlocal began, tracing
        if began is None:
            jax.profiler.start_trace(directory, create_perfetto_trace=True)
            began, tracing = perf_counter(), True
        elif perf_counter() - began >= SECONDS:
            end()

    try:
        yield Visit(look)
    finally:
        end()
