"""`bpref train --coordinator`: in several processes the run of one, and what stops one stops all, with a line each."""

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bpref.cli.app import run
from bpref.cli.ending import leaving
from bpref.cli.train import train
from bpref.cli.training import carrying_out, together
from bpref.sharding.hosts import Hosts
from bpref.train.keeping.record import held
from tests.cli.test_ending import ENVIRONMENT, ROOT
from tests.simulated import with_devices

pytestmark = pytest.mark.usefixtures("standard_promotion")

UNVERIFIED = """
from bpref import __main__ as program
from bpref.cli.training import carrying_out
carrying_out.require_right = lambda *given: None
program.main()
"""
"""The command; that the gradient is right is shown elsewhere."""

WAITING = """
import sys, time
from bpref.cli.training.together import together
from bpref.sharding.hosts import Hosts, largest

def command():
    while True:
        largest(0)
        print("together", flush=True)
        time.sleep(0.1)

sys.exit(together(Hosts(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 60), command))
"""
"""A command that does not end."""

DEADLINE = 180


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def until(seen):
    """Waits for it; a machine that has much else to do is given time."""
    end = time.monotonic() + DEADLINE
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def started(*commands, environments=None):
    """Processes of Python, which are ended in the end, however that comes."""
    environments = environments or [ENVIRONMENT] * len(commands)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, *command], env=environment, **pipes)
        for command, environment in zip(commands, environments, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(processes):
    """Of each the exit code, and what it has printed."""
    said = [process.communicate(timeout=DEADLINE) for process in processes]
    return [(process.returncode, *outputs) for process, outputs in zip(processes, said, strict=True)]


def by_hand(count):
    """The options that each of so many processes is given."""
    there = f"127.0.0.1:{free_port()}"
    return [["--coordinator", there, "--processes", str(count), "--process", str(i)] for i in range(count)]


def by_slurm(count):
    """The environment of each, as Slurm makes it, and two devices each."""
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(count)}
    job |= {"JAX_COORDINATOR_PORT": str(free_port())}
    return [with_devices(2, ENVIRONMENT | job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": "0"}) for i in range(count)]


def arguments(table, out, *more):
    """400 steps of a network of 4 units, in float64."""
    options = ["--data", str(table), "--target", "y", "--layers", "4,4", "--batch-size", "4", "--epochs", "100"]
    return ["train", *options, "--dtype", "float64", "--out", str(out), *more]


def rows(out):
    return [json.loads(line) | {"seconds": 0} for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_alike(out, whole):
    ours, theirs = (load_file(directory / "params.safetensors") for directory in (out, whole))
    assert list(ours) == list(theirs)
    for name, v in theirs.items():
        np.testing.assert_allclose(ours[name], v, rtol=0, atol=1e-12)
    for row, expected in zip(rows(out), rows(whole), strict=True):
        assert row.pop("gradient_norm") == pytest.approx(expected.pop("gradient_norm"), abs=1e-12)
        assert row == pytest.approx(expected, abs=1e-12)


def has_checkpoints(out):
    return len(list(out.glob("checkpoints/*.json"))) > 1


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("\n".join(["a,b,y", *(f"{i},{(i * 7) % 11},{2 * i + (i * 7) % 11 + 0.5}" for i in range(20))]))
    return path


@pytest.fixture(scope="module")
def alone(table, tmp_path_factory):
    """Trains in this process alone; the directory of a whole run."""
    out = tmp_path_factory.mktemp("alone") / "whole"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(carrying_out, "require_right", lambda *given: None)
        assert run(arguments(table, out)) == 0
        yield out


def test_four_processes_stop_at_one_step_and_two_go_on_to_the_run_of_one(table, alone, out):
    command = ["-c", UNVERIFIED, *arguments(table, out)]
    with started(*([*command, "--checkpoint-every", "2", *options] for options in by_hand(4))) as processes:
        until(lambda: has_checkpoints(out))
        processes[2].send_signal(signal.SIGTERM)
        four = ended(processes)
    assert [code for code, *_ in four] == [143] * 4
    assert "\non mesh data=4 of 4 processes: " in four[0][1]
    assert [stdout for _, stdout, _ in four[1:]] == [""] * 3
    (step,) = {re.search("; step ([0-9]+) is kept in ", stderr)[1] for *_, stderr in four}
    assert [stderr.partition(" after ")[0] for *_, stderr in four] == [
        f"bpref: process {i} of 4: terminated" for i in range(4)
    ]
    assert (out / "checkpoints" / f"{step}.json").exists()

    divided = ["--mesh", "data=2,model=2", "--layout", "fully-sharded", "--coordinator", "auto", "--resume"]
    with started(*[[*command, *divided]] * 2, environments=by_slurm(2)) as processes:
        two = ended(processes)
    assert [(code, stderr) for code, _, stderr in two] == [(0, "")] * 2
    assert f"\ngoing on from step {int(step):,}, after " in two[0][1]
    assert two[1][1] == ""
    assert_alike(out, alone)
    assert sorted(os.listdir(out)) == ["loss.png", "metrics.jsonl", "params.safetensors", "run.json"]


def test_where_one_is_killed_the_other_stops_and_the_run_goes_on_alone(table, alone, out, capsys):
    command = ["-c", UNVERIFIED, *arguments(table, out, "--layout", "fully-sharded", "--checkpoint-every", "2")]
    with started(*([*command, *options] for options in by_hand(2))) as processes:
        until(lambda: has_checkpoints(out))
        with pytest.raises(OSError, match=f"^another run is writing into {out}; "), held(out):
            pass
        processes[1].kill()
        killed = time.monotonic()
        (code, _, stderr), _ = ended(processes)
        assert time.monotonic() - killed < 60
    assert code == 75
    assert re.fullmatch(
        r"bpref: process 0 of 2: (another process of this run is lost \(.*127\.0\.0\.1.*\)|nothing is heard of "
        r"process 1 any more) after [0-9]+ epochs?; "
        r"the metrics so far are in .*/metrics\.jsonl, and the last checkpoint is of step [0-9]+\n",
        stderr,
    )
    assert run(arguments(table, out, "--resume")) == 0
    assert "\ngoing on from step " in capsys.readouterr().out
    assert_alike(out, alone)


def test_a_lost_coordinator_and_one_that_is_not_there_and_another_run_are_a_line_each(table, tmp_path):
    (tmp_path / "u.csv").write_text(table.read_text().replace("0.5", "0.25", 1))
    lost, other = by_hand(2), by_hand(2)
    alone = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process", "1"]
    commands = (
        *(["-c", WAITING, *options[1::2]] for options in lost),
        ["-m", "bpref", *arguments(table, tmp_path / "run", *other[0])],
        ["-m", "bpref", *arguments(tmp_path / "u.csv", tmp_path / "run", *other[1])],
        ["-m", "bpref", "train", *alone, "--connect-timeout", "6"],
    )
    began = time.monotonic()
    with started(*commands) as processes:
        assert processes[0].stdout.readline() == "together\n"
        processes[0].kill()
        (_, left, first, second, unanswered) = ended(processes)
    assert left[0] == 75
    assert re.fullmatch(
        r"bpref: process 1 of 2: (process 0, by which|another process of this run) .*is lost.*\n", left[2]
    )
    assert first[0] == second[0] == 2
    assert first[2].replace("process 0 of 2", "process 1 of 2") == second[2]
    assert re.fullmatch(
        "bpref: process 1 of 2: process 1 was given another run: data is sha256 [0-9a-f]{16} there, and sha256 "
        "[0-9a-f]{16} on process 0\n",
        second[2],
    )
    assert not (tmp_path / "run").exists()
    assert unanswered == (
        75,
        "",
        f"bpref: process 1 of 2: not all 2 processes have met at {alone[1]} within 6 s (--connect-timeout), "
        "where process 0 must be reached\n",
    )
    assert time.monotonic() - began < 60 + DEADLINE


ENDED = (
    "F1130 02:43:04 29389 client.h:80] Terminating process because the JAX distributed service detected fatal errors. "
)
LOGS = {
    f"{ENDED}absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe "
    "tasks have crashed.": "nothing is heard of process 1, 3 any more",
    f"The first task at the barrier: 1. Some timed out task names:\n0\n{ENDED}absl::Status: INTERNAL: Shutdown "
    "barrier has failed.\n": "process 1 has ended before its time, and says why",
    f"{ENDED}absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task": (
        "process 0, by which the others find each other, is lost"
    ),
    f"{ENDED}absl::Status: ABORTED: Something else.\nRPC: it": (
        "another process of this run is lost: ABORTED: Something else."
    ),
}
"""What JAX 0.10 writes before it aborts, and what it means."""


@pytest.fixture
def said(monkeypatch):
    """What this process would end with."""
    said = []
    monkeypatch.setattr(together, "end_at_once", lambda *given: said.append(given))
    return said


@pytest.mark.parametrize("log", LOGS)
def test_what_jax_writes_before_it_aborts_is_one_line(log, said):
    together.lost(log)
    assert said == [(LOGS[log], 75)]


def test_what_waited_for_a_lost_process_says_so_with_what_there_is_so_far():
    """A barrier before a checkpoint, or a sum over devices; no error else."""
    barrier = RuntimeError("INTERNAL: Barrier failed.\n\nRPC: /xla.coordination.CoordinationService/Barrier")
    gloo = ValueError("UNKNOWN: Gloo AllGather failed: [gloo/tcp/pair.cc:547] Connection closed by peer [::1]:2")
    for error, why in ((barrier, "INTERNAL: Barrier failed."), (gloo, "Connection closed by peer [::1]:2")):
        with pytest.raises(type(error)) as caught, leaving(lambda: " after 3 epochs"):
            raise error
        assert together.of_lost(caught.value) == (why, " after 3 epochs")
    assert together.of_lost(ValueError("no number")) is None


def test_processes_that_are_one_too_many_are_told_so(said):
    together.met_not(
        Hosts("h:1", 3, 2), f"{ENDED}absl::Status: INVALID_ARGUMENT: Unexpected task registered with task=2\n"
    )
    assert said == [("h:1 expects fewer processes; give all the same --processes", 75)]


def test_all_stop_where_one_does_not_see_the_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "told", lambda text: ["yes", text])
    with pytest.raises(ValueError, match=f"^process 1 does not see {tmp_path}, in which process 0 has begun the run: "):
        together.require_seen_by_all(tmp_path)


def test_the_readme_gives_options_that_there_are():
    (page,) = re.findall(r"^## [^\n]*Slurm cluster\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    given = {option for line in re.findall('bpref train [^"#&\n]*', page) for option in re.findall("--([a-z-]+)", line)}
    assert {"coordinator", "processes", "process", "mesh"} <= given
    assert {option.replace("-", "_") for option in given} <= set(inspect.signature(train).parameters)


OF_BOTH = "--coordinator HOST:PORT goes with --processes and --process"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--coordinator h:1 --processes 2", f"{OF_BOTH}, and --process is missing"),
        ("--coordinator h:1 --process 1", f"{OF_BOTH}, and --processes is missing"),
        ("--processes 2 --process 1", "--processes goes with --coordinator, where the processes of a run meet"),
        ("--connect-timeout 9", "--connect-timeout goes with --coordinator, where the processes of a run meet"),
        ("--coordinator h:1 --processes 2 --process 2", "--process is 2, expected 0 ... 1, of 2"),
        ("--coordinator h:1 --processes 0 --process 0", "--processes is 0, expected at least 1"),
        ("--coordinator h --processes 2 --process 1", "--coordinator is 'h', expected HOST:PORT of process 0, or auto"),
        (
            "--coordinator h:0 --processes 1 --process 0",
            "--coordinator is 'h:0', expected HOST:PORT of process 0, or auto",
        ),
        ("--coordinator auto --process 1", "--process goes with --coordinator HOST:PORT; with auto JAX finds it"),
        (
            "--coordinator h:1 --processes 2 --process 1 --connect-timeout 5",
            "--connect-timeout is 5, expected more than 5 seconds",
        ),
    ],
)  # fmt: skip
def test_what_no_processes_can_meet_by(options, message, capsys):
    assert run(["train", *options.split()]) == 2
    assert capsys.readouterr().err == f"bpref: {message}\n"
