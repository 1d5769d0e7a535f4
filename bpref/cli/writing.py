"""Writing the file that a command was asked for: what was there before stays until the new one is whole."""

import os
from pathlib import Path

from bpref.cli.errors import UsageError


def require_writable(option: str, path: Path) -> None:
    """Raise `UsageError`, before anything is computed, unless a file can be written there."""
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if _is_replaced(path):
            beside = _beside(path)
            beside.touch()
            beside.unlink()
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def write(option: str, path: Path, text: str) -> None:
    """The file with this text, in place of one that is there.

    It is written beside it first, so that of an interruption or a full disk the file as it was is left. What is no
    plain file (`/dev/stdout`, a pipe) is written to.
    """
    try:
        if not _is_replaced(path):
            path.write_text(text)
            return
        beside = _beside(path)
        try:
            beside.write_text(text)
            os.replace(beside, path.resolve())
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def _is_replaced(path: Path) -> bool:
    return path.is_file() or not path.exists()


def _beside(path: Path) -> Path:
    """Where the new file is written first; a link is followed."""
    path = path.resolve()
    return path.with_name(f".{path.name}.{os.getpid()}")
