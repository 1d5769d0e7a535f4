"""The tables in the READMEs are what the benchmarks' files say."""

import pytest

from benchmarks import compiled_figures, rule_figures
from benchmarks.compiled_reasons import REASONS
from benchmarks.in_readme import COMPILED, LONG, SHORT, pages
from benchmarks.in_readme import RULES as FIGURES
from bpref.devices.works import SMALL
from bpref.rules import ON_ONE_DEVICE, RULES

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("path", [SHORT, LONG, COMPILED], ids=["README.md", "benchmarks/README.md", "compiled.md"])
def test_the_tables_are_what_was_measured(path):
    assert path.read_text() == pages()[path]


@pytest.mark.parametrize("device", compiled_figures.FILES)
def test_all_rules_are_compiled_for_a_device(device):
    rows = compiled_figures.read()[device]
    assert set(rows) >= {*ON_ONE_DEVICE, "gpt"}
    assert list(rows) == [name for name in [*RULES, *SMALL] if name in rows]


def test_what_takes_more_by_hand_on_a_device_has_a_reason_and_nothing_else_has():
    assert set(compiled_figures.worse(compiled_figures.read())) == set(REASONS)


def test_a_rule_that_is_slow_has_a_reason():
    assert set(rule_figures.slow(rule_figures.read(FIGURES))) <= set(rule_figures.SLOW_SINCE)
