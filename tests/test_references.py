"""What judges shares nothing with what is judged: no function of ours, so that one mistake cannot be in both."""

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest

import bpref
from bpref.rules import RULES

pytestmark = pytest.mark.quick

ROOT = Path(bpref.__file__).parent
NAIVE = sorted(path.stem for path in (ROOT / "naive").glob("*.py") if path.stem != "__init__")
OF_DTYPES = ("cast", "widen", "wide_dtype")


def borrowed(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """The names that a file imports from bpref: the module that each is of, and its name there."""
    return {
        a.asname or a.name: (str(node.module), a.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("bpref")
        for a in node.names
    }


def is_independent(module: str, name: str) -> bool:
    """Whether it is a data type, what deals with data types, a naive form, or the reference of another rule."""
    if module == "bpref.dtypes":
        return name in OF_DTYPES
    if module.startswith("bpref.naive") or name == "reference":
        return True
    found = getattr(importlib.import_module(module), name)
    return isinstance(found, type) or get_origin(found) is not None


def reached(tree: ast.Module, start: str) -> tuple[set[str], set[tuple[str, str]]]:
    """The names that a function of a file uses, through the file's other functions too, and attributes of names."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    names, attributes, left = set(), set(), [start]
    while left:
        name = left.pop()
        if name in names:
            continue
        names.add(name)
        for statement in functions[name].body if name in functions else ():
            for node in ast.walk(statement):
                if isinstance(node, ast.Name):
                    left.append(node.id)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    attributes.add((node.value.id, node.attr))
    return names, attributes


@pytest.mark.parametrize("name", NAIVE)
def test_naive_forms_know_data_types_alone(name):
    tree = ast.parse((ROOT / "naive" / f"{name}.py").read_text())
    assert [found for found in borrowed(tree).values() if not is_independent(*found)] == []


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_reference_knows_data_types_and_naive_forms_alone(rule):
    module = importlib.import_module(rule.make.__module__)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    assert rule.reference is module.reference
    names, attributes = reached(tree, "reference")
    shared = borrowed(tree)
    modules = {name for name in names & set(shared) if isinstance(getattr(module, name), ModuleType)}
    assert [shared[name] for name in names & set(shared) - modules if not is_independent(*shared[name])] == []
    of_modules = [(".".join(shared[of]), name) for of, name in attributes if of in modules]
    assert [found for found in of_modules if not is_independent(*found)] == []

    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    in_both = names & reached(tree, rule.make.__name__)[0] & functions
    assert in_both == set(), "the layer and its reference call one function"


def test_the_law_would_notice():
    """attention_block's layer takes its frequencies from the forward's own file: a reference may not."""
    assert not is_independent("bpref.formulas.attention.rotations", "frequencies")
    assert not is_independent("bpref.formulas.attention.distances", "buckets")
    assert is_independent("bpref.formulas.attention.rotations", "Stretch")
    names, _ = reached(ast.parse("def f():\n    return g()\ndef g():\n    return frequencies(3)"), "f")
    assert names == {"f", "g", "frequencies"}
