"""A command in several processes: the first speaks for all, and where one is lost, or ends before its time, all end.

Where a process is lost, JAX ends the others by C++'s abort, with a log and a stack on stderr, and has no other way: in
0.10 a callback in its place is given a status that is no object of Python, and aborts too. So what native code writes
is held meanwhile, and SIGABRT is answered by one line that says what it means.
"""

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import BinaryIO

import jax

from bpref.cli.ending import WRONG_USE, Stdout, answered, end_at_once, ending, leaving, say, so_far, speaking_as
from bpref.cli.errors import Ended, UsageError, blaming_the_input
from bpref.sharding.hosts import Hosts, are_many, is_first, largest, meet, part, told
from bpref.train.keeping.begun import BEGUN, Json

LOST = 75
"""The exit code where other processes are lost, or were not found: sysexits' temporary failure."""

BUS = getattr(signal, "SIGBUS", None)
"""What comes where a mapped file is shorter than it was; Windows has none."""

OF_JAX, OF_COLLECTIVES = "the JAX distributed service detected fatal errors", ("Gloo", "NCCL", "CoordinationService")
"""What the log says where JAX ends a process, and an error where a sum over devices has lost some."""


def together(hosts: Hosts | None, command: Callable[[], int]) -> int:
    """Run a command as one of several processes, from their meeting to their parting; the exit code.

    Each prints the one line that ends it on stderr; on stdout the first alone prints.
    """
    if hosts is None:
        with answered(BUS, cut_off):
            return command()
    with ExitStack() as stack:
        held = stack.enter_context(native_output_held())
        if hosts.process is not None:
            stack.enter_context(speaking_as(f"process {hosts.process} of {hosts.processes}"))
        with answered(signal.SIGABRT, lambda: met_not(hosts, log_of(held))), blaming_the_input():
            meet(hosts)
        if hosts.process is None:
            stack.enter_context(speaking_as(f"process {jax.process_index()} of {jax.process_count()}"))
        with answered(signal.SIGABRT, lambda: lost(log_of(held))), answered(BUS, cut_off):
            if not is_first():
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            code = ending(lambda: code_of(command))
        with answered(signal.SIGABRT, lambda: end_at_once("", code) if code else lost(log_of(held))):
            part()
        if code:
            end_at_once("", code)
    return 0


def code_of(command: Callable[[], int]) -> int:
    """The exit code of a command, after the line that ends it; of one that comes to its end when all have."""
    try:
        if code := command():
            return code
        largest(0)
        return 0
    except Ended as ended:
        say(str(ended))
        return ended.code
    except Exception as error:
        if found := of_lost(error):
            why, so_far_then = found
            with leaving(lambda: so_far_then):
                time.sleep(3.0 if is_first() else 1.0)  # until JAX has said more: is it the coordinator that is lost?
                end_at_once(f"another process of this run is lost ({why}){so_far()}", LOST)
        if isinstance(error, UsageError):
            say(str(error))
            return WRONG_USE
        raise


def of_lost(error: BaseException | None) -> tuple[str, str] | None:
    """Of an error since a process is not there any more, what it says of the connection, and what there was so far."""
    while error is not None:
        if any(sign in str(error) for sign in OF_COLLECTIVES):
            return re.sub(r"^.*\.cc:\d+\] ", "", str(error).splitlines()[0]), getattr(error, "so_far", "")
        error = error.__cause__ or error.__context__
    return None


def cut_off() -> None:
    """End where the system says that what is mapped is in no file any more, while it is read."""
    end_at_once(f"a file that is read while a run goes on has been cut off, or its disk is lost{so_far()}", WRONG_USE)


def met_not(hosts: Hosts, log: str) -> None:
    """End where the processes have not met."""
    if OF_JAX not in log:
        os.write(_stderr(), log.encode())
    elif "Unexpected task" in log:
        end_at_once(f"{hosts.coordinator} expects fewer processes; give all the same --processes", LOST)
    elif "DEADLINE_EXCEEDED" in log or "UNAVAILABLE" in log:
        of_all = "the processes" if hosts.processes is None else f"all {hosts.processes} processes"
        end_at_once(
            f"not {of_all} have met at {hosts.coordinator} within {hosts.connect_seconds} s (--connect-timeout), where "
            "process 0 must be reached",
            LOST,
        )
    else:
        end_at_once(f"the processes cannot meet at {hosts.coordinator}: {status_of(log)}", LOST)


def lost(log: str) -> None:
    """End where JAX says that another process is lost; where it is something else that aborts, show its log."""
    if OF_JAX not in log:
        os.write(_stderr(), log.encode())
        return
    silent = re.search(r"stopped sending heartbeats\):\n((?:\d+\n)+)", log)
    early = re.search(r"The first task at the barrier: (\d+)", log)
    if silent:
        what = f"nothing is heard of process {', '.join(silent[1].split())} any more"
    elif "Shutdown barrier" in log and early:
        what = f"process {early[1]} has ended before its time, and says why"
    elif "Failed to send RPC to coordination service" in log:
        what = "process 0, by which the others find each other, is lost"
    else:
        what = f"another process of this run is lost: {status_of(log)}"
    end_at_once(f"{what}{so_far()}", LOST)


def status_of(log: str) -> str:
    """What JAX says of the error that it ends a process for, in a line."""
    return log.rpartition("absl::Status: ")[2].partition("\n")[0]


def require_one_run(settings: Json) -> None:
    """Raise `ValueError` on every process unless all were given the same, and which differs in what."""
    every = [json.loads(text) for text in told(json.dumps(settings, default=str))] if are_many() else []
    for process, theirs in enumerate(every):
        others = [name for name, value in every[0].items() if theirs.get(name) != value]
        if others:
            parts = [f"{name} is {theirs.get(name)} there, and {every[0][name]} on process 0" for name in others]
            raise ValueError(f"process {process} was given another run: {'; '.join(parts)}")


def require_seen_by_all(directory: Path) -> None:
    """Raise `ValueError` on every process unless all see the run that the first has begun."""
    blind = [i for i, seen in enumerate(told("yes" if (directory / BEGUN).exists() else "")) if not seen]
    if blind:
        raise ValueError(
            f"process {blind[0]} does not see {directory}, in which process 0 has begun the run: all share it"
        )


@contextmanager
def native_output_held() -> Iterator[BinaryIO]:
    """Within, what is not written by Python on either output goes into a file."""
    with ExitStack() as stack:
        held = stack.enter_context(tempfile.TemporaryFile())
        for stream, number, redirected in ((sys.stdout, 1, redirect_stdout), (sys.stderr, 2, redirect_stderr)):
            if stream is None:  # closed by the caller, `>&-`
                continue
            stream.flush()
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            own = stack.enter_context(
                open(kept, "w", encoding=stream.encoding, errors=stream.errors, buffering=1, closefd=False)
            )
            stack.enter_context(redirected(Stdout(own) if number == 1 else own))
            os.dup2(held.fileno(), number)
        yield held


def log_of(held: BinaryIO) -> str:
    """What native code has written."""
    return os.pread(held.fileno(), os.fstat(held.fileno()).st_size, 0).decode(errors="replace")


def _stderr() -> int:
    return sys.stderr.fileno()
