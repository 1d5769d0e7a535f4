"""How a command ends before its time: at Ctrl-C, when nobody reads its output any more, when that cannot be written."""

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, NoReturn, TextIO

from bpref.leftovers import undo_all

WRONG_USE, FAULT, INTERRUPTED, UNREAD, TERMINATED = 2, 70, 130, 141, 143
"""The exit codes besides those of a verdict; the last three are the shell's for a process that a signal has ended."""

_SPEAKER: list[str] = []
"""Which of several processes this is."""

_SO_FAR: list[Callable[[], str]] = []
"""What there is so far, the innermost last."""


class _Unwritable(BaseException):
    """Standard output took no more. No `Exception`: neither the user's code nor a library is meant to handle it."""


def say(message: str) -> None:
    """One line on stderr, if it can be written there."""
    if sys.stderr is not None:
        try:
            print(_line(message), file=sys.stderr, flush=True)
        except OSError:
            _discard(sys.stderr)


def _line(message: str) -> str:
    return ": ".join(["bpref", *_SPEAKER, message])


@contextmanager
def speaking_as(name: str) -> Iterator[None]:
    """Within, a line on stderr says whose it is."""
    _SPEAKER.append(name)
    try:
        yield
    finally:
        _SPEAKER.pop()


def ending(command: Callable[[], int]) -> int:
    """Run a command of this process and return its exit code, also where its output cannot be written.

    141 if the reader of standard output has gone (`| head -1`), without a word; 2 and one line if the disk is full;
    70 and the traceback if bpref itself is at fault.
    """
    stdout = sys.stdout
    if stdout is None:  # closed by the caller, `>&-`
        return command()
    try:
        with redirect_stdout(Stdout(stdout)):
            code = command()
            sys.stdout.flush()
        return code
    except _Unwritable as stopped:
        _discard(stdout)
        if isinstance(stopped.__cause__, BrokenPipeError):
            return UNREAD
        say(f"the output cannot be written: {getattr(stopped.__cause__, 'strerror', None) or stopped.__cause__}")
        return WRONG_USE
    except Exception:
        with suppress(OSError):
            traceback.print_exc()
        return FAULT


class Stdout:
    """Standard output; what it raises passes through whoever writes to it."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _passing_through():
            return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        with _passing_through():
            self._stream.writelines(lines)

    def flush(self) -> None:
        with _passing_through():
            self._stream.flush()


@contextmanager
def _passing_through() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unwritable from error


def _discard(stream: TextIO) -> None:
    """Let what is still in a stream's buffer go nowhere when the process ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def end_at_interrupt() -> None:
    """From now on Ctrl-C ends this process at once, with one line and exit code 130.

    No exception is raised: a `KeyboardInterrupt` inside of JAX is lost in one of its callbacks, or turned into another
    error, or crashes it. A process that was started to ignore Ctrl-C goes on to ignore it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_at_once(f"interrupted{so_far()}", INTERRUPTED)


@contextmanager
def ended_by_termination() -> Iterator[None]:
    """Within, SIGTERM ends this process with one line too, and leaves nothing temporary behind."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: end_at_once(f"terminated{so_far()}", TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def answered(number: int | None, answer: Callable[[], None]) -> Iterator[None]:
    """Within, a signal that comes of native code, such as C++'s abort, calls `answer` in the thread that it comes to.

    Python's own handlers wait until that code has returned, which it never does. Where `answer` returns, the process
    ends by the signal. None is a signal that this system has not.
    """
    if os.name != "posix" or number is None:
        yield
        return

    def call(number: int) -> None:
        answer()
        of_c(number, None)
        os.kill(os.getpid(), number)

    of_c = ctypes.CDLL(None).signal
    of_c.argtypes, of_c.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(call)
    before = of_c(number, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        of_c(number, before)


def end_at_once(message: str, code: int) -> NoReturn:
    """End this process with one line, whatever its threads are about to do; without one where the message is empty."""
    with suppress(BaseException):
        sys.stdout.flush()
    undo_all()
    with suppress(Exception):
        _end_children()
    with suppress(Exception):
        # On a terminal a progress bar may stand in the line, and have hidden the cursor.
        stderr = 2 if sys.stderr is None else sys.stderr.fileno()
        clear = "\r\x1b[K\x1b[?25h" if os.isatty(stderr) else ""
        os.write(stderr, f"{clear}{_line(message)}\n".encode() if message else b"")
    os._exit(code)


def _end_children() -> None:
    """The processes that this one has started, and the semaphores that it shares with them."""
    if "multiprocessing" in sys.modules:
        from multiprocessing import active_children, util

        for child in active_children():
            child.terminate()
        vars(util)["_run_finalizers"](0)  # else the tracker of semaphores warns of each on stderr


def so_far() -> str:
    """What an interruption here would leave, as the end of a sentence; empty where nothing was said."""
    return _SO_FAR[-1]() if _SO_FAR else ""


@contextmanager
def leaving(what: Callable[[], str]) -> Iterator[None]:
    """Within, an interruption says what there is so far; an error that passes takes it along as its `so_far`."""
    _SO_FAR.append(what)
    try:
        yield
    except Exception as error:
        vars(error).setdefault("so_far", what())
        raise
    finally:
        _SO_FAR.pop()


@contextmanager
def interrupt_held() -> Iterator[None]:
    """Ctrl-C waits until the end of this; processes that are started here never see it, and end with this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
