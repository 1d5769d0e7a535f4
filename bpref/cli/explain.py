"""`bpref explain`: the derivation of a rule, as its file has it."""

import inspect
import sys
from typing import Annotated

import typer

from bpref.cli.errors import blaming_the_input
from bpref.nearest import require_known
from bpref.rules import RULES, other_names


def explain(name: Annotated[str, typer.Argument(metavar="NAME", help="A rule, such as linear or gelu.")]) -> None:
    """Print a rule's derivation, how it is called, what is cached, and where the formula comes from."""
    with blaming_the_input():
        if name not in other_names():
            require_known("rule", name, RULES)
    rule = RULES[other_names().get(name, name)]
    module = sys.modules[rule.make.__module__]
    print(inspect.cleandoc(module.__doc__ or ""))
    print(f"\nbpref.{rule.name}{inspect.signature(rule.make)}\n")
    print("    " + (inspect.getdoc(rule.make) or "").replace("\n", "\n    "))
    print(f"\nSource: {rule.cite}")
