"""hosts: several processes, on one machine or on many, each with devices of its own, that train one network together.

JAX's runtime is the engine: it has the processes find each other, shows each of them the devices of all, and moves
what crosses between them. Here is what a training asks of it: what is known to one and must be known to all, what
the first does for all, and how an array that each process holds comes to lie on the devices of all.

Source: https://docs.jax.dev/en/latest/multi_process.html
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import PyTree

T = TypeVar("T")

AUTO = "auto"
"""The coordinator that JAX finds: from Slurm, Open MPI, Kubernetes, or on a TPU pod."""

CONNECT_SECONDS, ADDED_BY_JAX = 60, 5
"""How long processes wait for each other in the beginning, and how much longer than it is told JAX does."""

SILENT_SECONDS = 30
"""After which a process that says nothing is taken for lost."""

PARTING_SECONDS = 10
"""How long a process that has come to its end waits for the others to come to theirs."""


class Hosts(NamedTuple):
    """Where the processes meet.

    Attributes:
      coordinator: HOST:PORT of process 0, or "auto".
      processes: how many there are.
      process: which of them this is, from 0.
      connect_seconds: how long they wait for each other.
    """

    coordinator: str
    processes: int | None = None
    process: int | None = None
    connect_seconds: int = CONNECT_SECONDS

    def require_consistent(self) -> None:
        """Raise `ValueError` for what no processes can meet by."""
        if self.connect_seconds <= ADDED_BY_JAX:
            raise ValueError(f"--connect-timeout is {self.connect_seconds}, expected more than {ADDED_BY_JAX} seconds")
        given = {"--processes": self.processes, "--process": self.process}
        if self.coordinator == AUTO:
            for option, value in given.items():
                if value is not None:
                    raise ValueError(f"{option} goes with --coordinator HOST:PORT; with auto JAX finds it")
            return
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"--coordinator is {self.coordinator!r}, expected HOST:PORT of process 0, or auto")
        for option, value in given.items():
            if value is None:
                raise ValueError(
                    f"--coordinator HOST:PORT goes with --processes and --process, and {option} is missing"
                )
        assert self.processes is not None
        assert self.process is not None
        if self.processes < 1:
            raise ValueError(f"--processes is {self.processes}, expected at least 1")
        if not 0 <= self.process < self.processes:
            raise ValueError(f"--process is {self.process}, expected 0 ... {self.processes - 1}, of {self.processes}")


def meet(hosts: Hosts) -> None:
    """Wait for the other processes; before any device is looked at.

    Raises:
      ValueError: "auto", and JAX finds no cluster that it knows.
      OSError: this is process 0, and its port is taken; or the cluster does not say what JAX asks it.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which a run is kept by
    by_hand = {
        "coordinator_address": hosts.coordinator,
        "num_processes": hosts.processes,
        "process_id": hosts.process,
        "cluster_detection_method": "deactivate",
    }
    try:
        jax.distributed.initialize(
            **({} if hosts.coordinator == AUTO else by_hand),
            initialization_timeout=hosts.connect_seconds - ADDED_BY_JAX,
            heartbeat_timeout_seconds=SILENT_SECONDS,
            shutdown_timeout_seconds=PARTING_SECONDS,
        )
    except ValueError as error:
        raise ValueError(
            "--coordinator auto: JAX finds no Slurm, Open MPI, Kubernetes or TPU pod that this process is part of; "
            "give --coordinator HOST:PORT, --processes and --process"
        ) from error
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        if "start RPC server" in why:
            why = "process 0 cannot listen at that port, which may be taken"
        raise ConnectionError(f"--coordinator {hosts.coordinator}: {why}") from error


def part() -> None:
    """Wait for the other processes to come to their end, too; where one does not, JAX ends this and tells them."""
    jax.distributed.shutdown()


def are_many() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def largest(*numbers: float) -> tuple[float, ...]:
    """Each one's largest over all processes, in float32; they go on when all have come here."""
    if not are_many():
        return numbers
    return tuple(float(v) for v in _of_all(np.array(numbers, np.float32)).max(0))


def told(text: str) -> list[str]:
    """The text that each process came here with, in their order."""
    if not are_many():
        return [text]
    said = np.frombuffer(text.encode(), np.uint8)
    lengths = _of_all(np.int32(len(said)))
    rows = _of_all(np.pad(said, (0, int(lengths.max()) - len(said))))
    return [bytes(row[:n]).decode() for row, n in zip(rows, lengths, strict=True)]


def by_first(act: Callable[[], T]) -> T | None:
    """What the first process alone does, while the others wait: what it returns there, None elsewhere.

    Raises:
      Exception: what it raises there; elsewhere `ValueError` with the same message.
    """
    done, raised = None, None
    if is_first():
        try:
            done = act()
        except Exception as error:
            raised = error
    why = told("" if raised is None else str(raised) or type(raised).__name__)[0]
    if raised is not None:
        raise raised
    if why:
        raise ValueError(why)
    return done


def laid(v: PyTree, sharding: NamedSharding, rows: np.ndarray | None = None) -> Array:
    """An array that every process holds, on the devices of all: each process gives its own the parts that they take.

    With `rows`, it is `v[rows]`, of which each process makes its own parts alone; v may stand for rows of a file.
    """
    if rows is None:
        v = np.asarray(v)
        return jax.make_array_from_callback(v.shape, sharding, lambda part: v[part])

    def taken(part: Any) -> np.ndarray:
        return v[rows[part[: rows.ndim]]][(..., *part[rows.ndim :])]

    return jax.make_array_from_callback((*rows.shape, *v.shape[1:]), sharding, taken)


def _of_all(v: ArrayLike) -> np.ndarray:
    """What each process has, by a first axis."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(v))
