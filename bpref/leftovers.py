"""What must not be left behind when a process ends before its time: temporary folders, processes that were started."""

from collections.abc import Callable
from contextlib import suppress
from shutil import rmtree
from tempfile import mkdtemp

_LEFT: list[Callable[[], None]] = []


def undone(undo: Callable[[], None]) -> Callable[[], None]:
    """A function that calls `undo`, once, when it is first called; or `undo_all` calls it before, at Ctrl-C."""

    def once() -> None:
        if once in _LEFT:
            _LEFT.remove(once)
            undo()

    _LEFT.append(once)
    return once


def temporary_folder() -> tuple[str, Callable[[], None]]:
    """A new folder, and the function that removes it with all that is in it."""
    folder = mkdtemp()
    return folder, undone(lambda: rmtree(folder, ignore_errors=True))


def undo_all() -> None:
    """For a process that is about to end without its `finally` clauses."""
    for once in reversed(_LEFT[:]):
        with suppress(Exception):
            once()
