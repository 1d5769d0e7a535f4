"""A table that several commands read."""

import pytest


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"{i},{(i * 7) % 11},{2 * i + (i * 7) % 11 + 0.5}" for i in range(20)]
    path.write_text("\n".join(["a,b,y", *rows]))
    return path
