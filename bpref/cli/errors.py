"""How a command says that what it was given is wrong: one line on stderr, exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """What the user gave is wrong; the message is one line that says what, and what was expected."""


class Ended(Exception):
    """The command ends before its time, as it was asked to; the message is one line, and `code` its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


@contextmanager
def blaming_the_size(what: str) -> Iterator[None]:
    """Turn running out of memory into a `UsageError` that names what was too large."""
    import jax

    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or any(
            sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory")
        ):
            raise UsageError(f"{what} does not fit into memory") from error
        raise


@contextmanager
def blaming_the_input() -> Iterator[None]:
    """Turn the `ValueError`, `TypeError` or `OSError` that a wrong input raises into a `UsageError`.

    For the part of a command that reads and checks what the user gave; not for the computation after it,
    where such an error is a bug and keeps its traceback.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
