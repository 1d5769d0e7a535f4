"""`bpref train --coordinator` of files larger than memory: each process reads its part, and the run is that of one."""

import os

import numpy as np
import pytest

from bpref.cli.app import run
from tests.cli.test_together import UNVERIFIED, assert_alike, by_hand, ended, started, until

pytestmark = pytest.mark.usefixtures("standard_promotion")

ON_DISK = f"""
from bpref.train.data import mapped
from bpref.train import start
mapped.IN_MEMORY, start.WINDOW = 0, 1000
{UNVERIFIED}
"""
"""The command, for which no file is small enough to be read at once, and no epoch to be one window."""

OF_TABLE = ["--data", "X.npy", "--target", "y.npy", "--layers", "4", "--batch-size", "8"]
OF_TOKENS = ["gpt", "--text", "ids.bin", "--tokens", "uint16", "--vocabulary", "50", "--context", "8", "--width", "8"]
OF_TOKENS += ["--depth", "1", "--heads", "2", "--batch-size", "16"]


@pytest.fixture
def files(tmp_path, monkeypatch, verified):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(203, 5))
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", np.sin(X[:, 0]))
    draw.integers(0, 50, 3000).astype("<u2").tofile(tmp_path / "ids.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("what", "more"), [(OF_TABLE, []), (OF_TOKENS, ["--mesh", "sequence=2"])], ids=["table", "tokens"]
)
def test_what_is_on_disk_is_trained_on_by_two_processes_as_in_memory_by_one(what, more, files):
    options = ["train", *what, "--epochs", "3", "--dtype", "float64"]
    with started(*(["-c", ON_DISK, *options, *more, "--out", "two", *meet] for meet in by_hand(2))) as processes:
        assert run([*options, "--out", "one"]) == 0
        assert [(code, stderr) for code, _, stderr in ended(processes)] == [(0, "")] * 2
    assert_alike(files / "two", files / "one")


def test_where_the_file_of_one_process_changes_all_stop_with_a_line(files):
    """Each with a copy on a disk of its own."""
    for i in range(2):
        (files / f"X{i}.npy").write_bytes((files / "X.npy").read_bytes())
    options = ["train", *OF_TABLE, "--epochs", "100000", "--out", "run"]
    commands = [[option.replace("X.npy", f"X{i}.npy") for option in options] for i in range(2)]
    pairs = zip(commands, by_hand(2), strict=True)
    with started(*(["-c", ON_DISK, *command, *meet] for command, meet in pairs)) as processes:
        until(lambda: (files / "run" / "metrics.jsonl").exists() and (files / "run" / "metrics.jsonl").stat().st_size)
        os.utime("X1.npy", ns=(1, 1))
        first, second = ended(processes)
    assert (first[0], second[0]) == (75, 2)
    assert second[2].startswith(f"bpref: process 1 of 2: {files / 'X1.npy'} has changed since it was opened; its ")
    assert "process 0 of 2: " in first[2]
    assert first[2].count("\n") == second[2].count("\n") == 1
