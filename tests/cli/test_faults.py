"""What happens to files while `bpref train` runs, each of which ends it in one line."""

import subprocess
import sys

import numpy as np

from tests.cli.test_ending import ENVIRONMENT

CUT_OFF = """
import os
from bpref import __main__ as program
from bpref.cli.training import carrying_out
from bpref.train.data import mapped
from bpref.train import start
from bpref.train.data.rows import Rows
from bpref.train.windows import Windows

mapped.IN_MEMORY, start.WINDOW = 0, 2**14
carrying_out.require_right = lambda *given: None
at, found = Windows.at, Rows._require_unchanged

def in_steps(self, step):
    Rows._require_unchanged = cut
    return at(self, step)

def cut(self):
    found(self)
    os.truncate(self.file, 4096)

Windows.at = in_steps
program.main()
"""
"""The command, whose file is cut off when it has just been found as it was."""


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path):
    X = np.random.default_rng(0).normal(size=(20_000, 8))
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", X[:, 0])
    options = ["train", "--data", "X.npy", "--target", "y.npy", "--layers", "4", "--epochs", "2", "--out", "run"]
    command = [sys.executable, "-c", CUT_OFF, *options]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stderr == (
        "bpref: a file that is read while a run goes on has been cut off, or its disk is lost after 0 epochs; the "
        "metrics so far are in run/metrics.jsonl\n"
    )
    assert ended.returncode == 2


TERMINATED = """
import os, signal
from bpref import __main__ as program
from bpref.cli.training import carrying_out
from bpref.leftovers import temporary_folder

def terminate(*given):
    temporary_folder()
    os.kill(os.getpid(), signal.SIGTERM)

carrying_out.require_right = terminate
program.main()
"""
"""The command, which is asked to end before there is anything to keep."""


def test_terminated_before_the_first_step_it_says_so_and_leaves_nothing_behind(tmp_path):
    command = [sys.executable, "-c", TERMINATED, "train", "--out", "run"]
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "bpref: terminated\n")
    assert list(tmp_path.iterdir()) == []
