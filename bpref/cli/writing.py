"""Writing the file that a command was asked for: what was there before stays until the new one is whole."""

from pathlib import Path

from bpref.cli.errors import UsageError
from bpref.whole_file import beside_of, whole_file


def require_writable(option: str, path: Path) -> None:
    """Raise `UsageError`, before anything is computed, unless a file can be written there."""
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        if _is_replaced(path):
            beside = beside_of(path)
            beside.touch()
            beside.unlink()
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def write(option: str, path: Path, text: str) -> None:
    """The file with this text, in place of one that is there, once it is whole.

    What is no plain file (`/dev/stdout`, a pipe) is written to.
    """
    try:
        if not _is_replaced(path):
            path.write_text(text)
            return
        with whole_file(path) as beside:
            beside.write_text(text)
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from error


def _is_replaced(path: Path) -> bool:
    return path.is_file() or not path.exists()
