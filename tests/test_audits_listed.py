"""The page of published kernels and losses has a row for each that the benchmark checks, and for no other."""

import re
from pathlib import Path

import pytest

from benchmarks.audits import AUDITS

pytestmark = pytest.mark.quick

PAGE = Path(__file__).parent.parent / "benchmarks" / "audits.md"


def test_every_audit_has_its_row():
    rows = re.findall(r"^\| (\S+) \d\S* \| `([^`]+)` \| (.+) \| (.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert [row[:2] for row in rows] == [(audit.package, audit.name) for audit in AUDITS]
    assert len(rows) == 26
    assert [name for _, name, verdict, what in rows if not verdict.startswith("ok") and not what.strip()] == []
