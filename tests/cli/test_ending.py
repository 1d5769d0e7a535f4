"""How the command ends: the version, Ctrl-C at any moment, a closed pipe, a full disk, a fault of bpref."""

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bpref
from bpref.cli.app import run
from bpref.cli.ending import ending

ROOT = Path(bpref.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
DERIVATIONS = "tests.cli.derivations"

COMMANDS = {
    "verify": ["verify", "tanh"],
    "rules": ["rules"],
    "check": ["check", f"{DERIVATIONS}:halved", "--args", "f32[3]"],
    "audit": ["audit", f"{DERIVATIONS}:halved", "--args", "f32[3]"],
    "explain": ["explain", "tanh"],
    "train": ["train", "--epochs", "1", "--layers", "3"],
    "--help": ["--help"],
}

INTERRUPTS_ITSELF = """
import os, signal, sys, threading
from bpref import __main__ as program

timer = threading.Timer(float(sys.argv.pop(1)), os.kill, (os.getpid(), signal.SIGINT))
timer.daemon = True
begin = program.end_at_interrupt
program.end_at_interrupt = lambda: (begin(), timer.start())
signal.signal(signal.SIGINT, signal.default_int_handler)
program.main()
"""


def test_the_version_is_that_of_the_installed_package(capsys):
    assert bpref.__version__ == importlib.metadata.version("bpref")
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"bpref {bpref.__version__}\n"


def test_run_from_its_sources_the_version_says_that_it_is_not_known(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert bpref.__version__ == "0+unknown"


@pytest.fixture
def into(monkeypatch):
    """Runs a command with its standard output going into a file descriptor."""

    def into(descriptor, command):
        with open(descriptor, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            return ending(lambda: run(command))

    return into


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_pipe_ends_with_141_without_a_word(name, into, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    assert into(writing, COMMANDS[name]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_ends_with_2(name, into, capsys):
    assert into(os.open("/dev/full", os.O_WRONLY), COMMANDS[name]) == 2
    assert capsys.readouterr().err == "bpref: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(("command", "code", "said"), [("rules", 141, ""), ("nowhere", 2, "bpref: No such command")])
def test_the_process_ends_so_too(command, code, said):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "bpref", command], stdout=writing, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    os.close(writing)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)


def test_a_fault_of_bpref_is_a_traceback_and_no_verdict(capsys):
    def command():
        raise RuntimeError("inside")

    assert ending(command) == 70
    assert capsys.readouterr().err.splitlines()[-1] == "RuntimeError: inside"


@pytest.mark.parametrize(
    ("command", "seconds"),
    [
        *((["train", "--epochs", "100000"], seconds) for seconds in (0, 0.5, 1, 2, 4)),
        (["verify"], 5),
        (["check", f"{DERIVATIONS}:halved", "--args", "f32[N]", "--search", "60", "--backward", "right"], 3),
        (["check", f"{DERIVATIONS}:halved", "--args", "f32[N]", "--search", "60", "--backward", "right"], 5),
        (["judge", "TASK", "TASK/solution.py"], 4),
    ],
)
def test_ctrl_c_ends_with_130_at_any_moment_and_leaves_nothing_behind(command, seconds, tmp_path):
    if "TASK" in command:
        run(["tasks", "--out", str(tmp_path), "linear"])
        (tmp_path / "linear/solution.py").write_text("import time\n\ntime.sleep(99)\n")
        command = [word.replace("TASK", str(tmp_path / "linear")) for word in command]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTS_ITSELF, str(seconds), *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
    )
    assert done.returncode == 130
    assert list(temporary.iterdir()) == []
    assert re.fullmatch(r"bpref: interrupted( after \d+ epochs?)?\n", done.stderr)


def test_an_interrupted_run_leaves_its_metrics_and_says_how_it_goes_on(tmp_path):
    metrics = tmp_path / "run/metrics.jsonl"
    # A job in the background ignores SIGINT, and so would the process.
    program = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.argv = ['bpref', 'train', '--epochs', '100000', '--out', {str(tmp_path / 'run')!r}]; "
        "runpy.run_module('bpref', run_name='__main__')"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    while running.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    goes_on = f"is kept in {tmp_path / 'run'}, and the same command with --resume goes on from there"
    said = re.fullmatch(rf"bpref: interrupted after (\d+) epochs; step \d+ {goes_on}\n", err)
    assert running.returncode == 130
    assert out.startswith("diabetes: 442 examples")
    lines = metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) == int(said[1])
