"""`bpref explain`: the derivation of a rule, as its file has it."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from bpref.checks.given import declared_of
from bpref.checks.shapes import declared_forms, in_words
from bpref.cli.errors import blaming_the_input
from bpref.layer import Layer
from bpref.nearest import meant
from bpref.rule import Rule
from bpref.rules import RULES, other_names
from bpref.verify.rules.draw import all_of_size, draw

WIDTH = 100
"""A call that is longer has one argument a line."""


def explain(name: Annotated[str, typer.Argument(metavar="NAME", help="A rule, such as linear or gelu.")]) -> None:
    """Print a rule's derivation, how it is called, what is cached, and where the formula comes from."""
    with blaming_the_input():
        rule = RULES[meant("rule", name, RULES, other_names())]
    module = sys.modules[rule.make.__module__]
    print(inspect.cleandoc(module.__doc__ or ""))
    print(f"\n{call(rule.make)}\n")
    print("    " + (inspect.getdoc(rule.make) or "").replace("\n", "\n    "))
    declared = dict.fromkeys(shapes(rule))
    if declared:
        print("\nShapes, refused otherwise:\n    " + "\n    ".join(declared))
    print(f"\nSource: {rule.cite}")


def shapes(rule: Rule) -> Iterator[str]:
    """What the rule's own forward declares of x, and its parameters' class of each: one line an array."""
    case = rule.cases[0]
    example = draw(rule, case, all_of_size(case, 3), seed=0)
    for root, form in (("x", declared_of(inspect.unwrap(example.layer.forward))), ("params", type(example.params))):
        for name, array in declared_forms(form, root):
            yield f"{name}: {in_words(array)}"


def call(make: Callable, result: object = Layer) -> str:
    """How a function is called, types without their modules; what a layer is made of, the shapes say."""
    signature = inspect.signature(make).replace(return_annotation=result)
    line = f"bpref.{make.__name__}{_bare(str(signature))}"
    if len(line) <= WIDTH:
        return line
    arguments = "".join(f"    {_bare(str(p))},\n" for p in signature.parameters.values())
    return f"bpref.{make.__name__}(\n{arguments}){line[line.rindex(') ->') + 1 :]}"


def _bare(types: str) -> str:
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", types)
