"""The tables in the READMEs are what the benchmarks' files say."""

import pytest

from benchmarks.in_readme import LONG, SHORT, pages

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("path", [SHORT, LONG], ids=["README.md", "benchmarks/README.md"])
def test_the_tables_are_what_was_measured(path):
    assert path.read_text() == pages()[path]
