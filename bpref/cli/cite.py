"""`bpref cite`: BibTeX of a rule's sources and of bpref."""

from typing import Annotated

import typer

from bpref.cli.bibtex import entries
from bpref.cli.errors import blaming_the_input
from bpref.nearest import meant
from bpref.rules import RULES, other_names


def cite(name: Annotated[str, typer.Argument(metavar="NAME", help="A rule, such as linear or gelu.")]) -> None:
    """Print BibTeX: the publications that a rule's formula comes from, and bpref itself."""
    with blaming_the_input():
        rule = RULES[meant("rule", name, RULES, other_names())]
    print("\n\n".join(entries(rule)))
