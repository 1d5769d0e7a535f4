"""Every reader on a few hundred files that nobody wrote; `python -m tests.fuzz` tries a hundred thousand."""

import pickle

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.fuzz import READERS, Reader, Unpickled, nothing_unpickled, tried

INPUTS = dict.fromkeys(READERS, 60) | {"safetensors": 15}


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_refused_in_a_line_or_read_as_it_is(name, tmp_path):
    seen = tried(name, INPUTS[name], tmp_path, derandomize=True)
    assert seen["accepted"] > 0
    assert seen["refused"] > 0


@pytest.mark.parametrize(
    ("reads", "raised"),
    [
        (lambda path, content: {}[content], KeyError),
        (lambda path, content: pickle.loads(content), Unpickled),
        (lambda path, content: np.testing.assert_array_equal(1, 2), AssertionError),
    ],
)
def test_what_must_not_be_is_seen(reads, raised, tmp_path, monkeypatch):
    """A reader that raises anything else, unpickles, or accepts what is wrong."""
    monkeypatch.setitem(READERS, "bad", Reader("t", st.just(b"x"), reads))
    with pytest.raises(raised):
        tried("bad", 3, tmp_path)
    with nothing_unpickled(), pytest.raises(Unpickled):
        np.load(tmp_path / "t", allow_pickle=True)
