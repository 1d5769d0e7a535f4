"""The README's list of rules is the catalogue. `python -m tests.test_catalogue_in_readme` writes it there."""

from pathlib import Path

import pytest

from bpref.rules import KINDS, RULES

pytestmark = pytest.mark.quick

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- rules -->\n", "<!-- end of rules -->\n"


def listed() -> str:
    """A line for each kind; in brackets by what other names a rule is looked for."""
    lines = ["| kind | rules |", "| --- | --- |"]
    for kind, names in KINDS.items():
        lines.append(f"| {kind} | {', '.join(map(_with_other_names, names))} |")
    return "\n".join(lines) + "\n"


def _with_other_names(name: str) -> str:
    others = RULES[name].covers
    return f"`{name}`" + (f" ({', '.join(others)})" if others else "")


def test_the_readme_lists_every_rule():
    text = README.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == listed()


if __name__ == "__main__":
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + listed() + END + rest.split(END)[1])
