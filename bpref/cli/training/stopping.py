"""Ctrl-C or SIGTERM while a run can be kept: it stops after the steps under way; a second one ends it at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What is asked by, and what has happened then."""


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], int | None]]:
    """Within, a function that says which signal has come; a signal that this process ignores does not come."""
    came: list[int] = []
    before: dict[int, object] = {}

    def note(number: int, frame: object) -> None:
        if came:
            signal.signal(number, before[number])  # pyright: ignore[reportArgumentType]
            os.kill(os.getpid(), number)
        came.append(number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
