"""A table that several commands read."""

import pytest


@pytest.fixture
def csv_file(as_csv):
    rows = [f"{i},{(i * 7) % 11},{2 * i + (i * 7) % 11 + 0.5}" for i in range(20)]
    return as_csv("\n".join(["a,b,y", *rows]))
