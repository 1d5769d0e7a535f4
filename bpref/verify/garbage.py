"""Garbage collection while one program after the other is traced and compiled."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def collect_rarely() -> None:
    """Let Python's collector run seldom: what tracing makes lives on in JAX's caches, and is looked through in vain.

    Of a long run of checks that is a tenth of the time or more.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """Pauses the collector, for as long as a check takes; a seventh of which it took."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
