"""Files that a command writes: over what was there before, and nothing of that is lost if it fails."""

import os
from pathlib import Path

import pytest

from bpref.cli.errors import UsageError
from bpref.cli.writing import require_writable, write


def test_a_file_that_is_there_is_replaced_also_behind_a_link(tmp_path):
    file, link = tmp_path / "kept.json", tmp_path / "link.json"
    file.write_text("before")
    link.symlink_to(file)
    require_writable("--json", link)
    assert file.read_text() == "before"
    write("--json", link, "after")
    assert link.is_symlink()
    assert file.read_text() == "after"
    assert sorted(tmp_path.iterdir()) == [file, link]


def test_of_a_write_that_fails_the_file_as_it_was_is_left(tmp_path, monkeypatch):
    file = tmp_path / "kept.json"
    file.write_text("before")

    def full(path, text):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UsageError) as failed:
        write("--json", file, "after")
    assert str(failed.value) == f"--json {file}: No space left on device"
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    require_writable("--json", pipe)
    write("--json", pipe, "text")
    assert os.read(reading, 10) == b"text"


def test_where_nothing_can_be_written_is_said_before(tmp_path):
    for path, why in ((tmp_path, "it is a directory"), (tmp_path / "no/r.json", "No such file or directory")):
        with pytest.raises(UsageError) as refused:
            require_writable("--json", path)
        assert str(refused.value) == f"--json {path}: {why}"
