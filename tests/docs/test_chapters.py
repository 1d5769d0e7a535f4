"""The chapters that are written by hand: every program in them runs, and prints what stands below it.

`python -m tests.docs.test_chapters` runs them and writes what they print into the chapters.
"""

import contextlib
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.test_readme import blocks, refreshed, run_section

CHAPTERS = Path(__file__).parents[2] / "docs/chapters"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")
WITH_PROGRAMS = ("migrate", "signals")


@pytest.mark.parametrize("name", WITH_PROGRAMS)
def test_the_programs_of_a_chapter_print_what_it_shows(name, tmp_path, monkeypatch):
    if name == "migrate":
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = (CHAPTERS / f"{name}.md").read_text(encoding="utf-8")
    outputs = run_section(text, tmp_path)
    assert sum(bool(expected) for expected, _ in outputs) == sum(b.language == "text" for b in blocks(text)) > 2
    for expected, came in outputs:
        assert NUMBER.sub("#", came) == NUMBER.sub("#", expected)
        if name == "signals":  # the others are round-off errors
            seen, shown = ([float(n) for n in NUMBER.findall(text)] for text in (came, expected))
            np.testing.assert_allclose(seen, shown, rtol=0.1, atol=0.02)


if __name__ == "__main__":
    for file in (CHAPTERS / f"{name}.md" for name in WITH_PROGRAMS):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            sys.path.insert(0, folder)
            file.write_text(refreshed(file.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")
