"""whole_file: a file is as it was, or as it is to be, and at no moment a part of that."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end; if that fails, nothing has changed."""
    beside = beside_of(path)
    try:
        yield beside
        os.replace(beside, path.resolve())
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def beside_of(path: Path) -> Path:
    """Where the new file is written first; a link is followed."""
    path = path.resolve()
    return path.with_name(f".{path.name}.{os.getpid()}")
