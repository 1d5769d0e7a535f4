"""A solution in a process of its own: inputs go there, cotangents come back; nothing else of the judge's is there."""

import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from bpref.leftovers import temporary_folder, undone
from bpref.tasks import child

MOST = 2**31
"""Bytes of an answer."""


class Failed(Exception):
    """The solution gave no cotangents; the message is one line that says what it did instead."""


class Solution:
    """A file's `backward(args, dy)`, called in another process, under limits.

    That process is given arguments and cotangents of y over a pipe, and answers with cotangents. Its environment
    says where programs and its own folder are, it can write no file that is not empty, and it is ended with all that
    it started. What it computes is data here: no object of its is unpickled. It is the same user's process: against a
    program that attacks other processes, run the judge in a container.

    Args:
      path: the file.
      seconds: what an answer may take; the first has the import of JAX in it.
      gigabytes: of address space.
      framework: "jax" or "torch", whose arrays it takes.

    Attributes:
      failure: why it gives no answers any more; empty as long as it does.
      uses_autodiff: whether JAX or PyTorch has differentiated something there so far.
    """

    def __init__(self, path: Path, seconds: float, gigabytes: float, framework: str = "jax"):
        self.failure = ""
        self.uses_autodiff = False
        self._seconds = seconds
        self._framework = framework
        folder, self._remove = temporary_folder()
        own = Path(folder) / "solution.py"
        shutil.copyfile(path, own)
        environment = {"PATH": os.defpath, "HOME": folder, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED, str(int(gigabytes * 2**30)), child.__file__, str(own)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        self._end = undone(self._killed)

    def __enter__(self) -> "Solution":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._remove()

    def _killed(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process.wait()

    def backward(self, args: Sequence[np.ndarray], dy: PyTree) -> tuple:
        """Its cotangents of `args`, as it returned them.

        Raises:
          Failed: it raised, ended, took too long, or answered with something else.
        """
        return tuple(self._asked("backward", args, dy))

    def exported(self, args: Sequence[np.ndarray], dy: PyTree) -> bytes:
        """Its backward as a serialized program for such arguments, if JAX can trace it; raises as `backward`."""
        return self._asked("export", args, dy)[0].tobytes()

    def _asked(self, what: str, args: Sequence[np.ndarray], dy: PyTree) -> list:
        if self.failure:
            raise Failed(self.failure)
        dys = [dy] if (is_one := not isinstance(dy, tuple | list)) else list(dy)
        about = {"do": what, "args": len(args), "one": is_one, "framework": self._framework}
        question = child.packed(about, [*map(np.asarray, args), *dys])
        try:
            header, arrays = self._answer(question)
        except Failed as failed:
            self.failure = str(failed)
            raise
        self.uses_autodiff |= bool(header.get("autodiff"))
        if "error" in header:
            raise Failed(f"it raised {str(header['error'])[:300]}")
        return arrays

    def _answer(self, question: bytes) -> tuple[dict, list]:
        until = time.monotonic() + self._seconds
        to = self._process.stdin
        assert to is not None
        os.set_blocking(to.fileno(), False)
        while question:
            self._wait([], [to], until)
            try:
                question = question[os.write(to.fileno(), question) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise Failed(self._ended()) from None
        (size,) = struct.unpack("<Q", self._read(8, until))
        if size > MOST:
            raise Failed("its answer cannot be read")
        body = self._read(size, until)
        try:
            return child.unpacked(body)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Failed("its answer cannot be read") from error

    def _read(self, size: int, until: float) -> bytes:
        back, found = self._process.stdout, b""
        assert back is not None
        while len(found) < size:
            self._wait([back], [], until)
            more = os.read(back.fileno(), min(size - len(found), 2**20))
            if not more:
                raise Failed(self._ended())
            found += more
        return found

    def _wait(self, read: list, write: list, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0 or not any(select.select(read, write, [], left)):
            raise Failed(f"it took more than {self._seconds:g} s")

    def _ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.poll()
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"its process ended with {how}"


_LIMITED = """
import resource, runpy, sys
size, child, solution = sys.argv[1:]
for what, most in ((resource.RLIMIT_AS, int(size)), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
    try:
        resource.setrlimit(what, (most, most))
    except (ValueError, OSError):
        pass
sys.argv = [child, solution]
runpy.run_path(child, run_name="__main__")
"""
"""The limits are set before anything of the solution is read; a system that has not one of them goes without it."""
