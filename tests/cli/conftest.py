"""What the tests of several commands have in common: a table, a place for a run, and no check before it."""

import pytest

from bpref.cli.training import carrying_out


@pytest.fixture
def csv_file(as_csv):
    rows = [f"{i},{(i * 7) % 11},{2 * i + (i * 7) % 11 + 0.5}" for i in range(20)]
    return as_csv("\n".join(["a,b,y", *rows]))


@pytest.fixture
def out(tmp_path):
    """The directory of a run, which is not there yet."""
    return tmp_path / "run"


@pytest.fixture
def verified(monkeypatch):
    """That the gradient is right is shown elsewhere."""
    monkeypatch.setattr(carrying_out, "require_right", lambda *given: None)
