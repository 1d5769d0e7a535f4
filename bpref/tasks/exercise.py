"""A rule as an exercise: one file with the forward's derivation and code, where the backward is missing."""

import inspect
import sys

import jax
import numpy as np

from bpref.rule import Rule
from bpref.rules import RULES
from bpref.tasks.problem import Problem, case_of, problem
from bpref.tasks.writing import missing_backward, naive_forward
from bpref.verify.rules.draw import axes_of, sized

SEED, LEAST = 1729, 3


def arguments(name: str) -> tuple[np.ndarray, ...]:
    """What the exercise's forward is checked with: small arrays, the same ones every time."""
    return _problem(RULES[name]).args


def exercise(rule: Rule) -> str:
    """The file: the first part of the derivation, the naive forward, and a backward that is to be written.

    Raises:
      NotAlone: the rule is made of another layer, whose backward its forward would show.
    """
    p = _problem(rule)
    written = naive_forward(rule, p)
    written.imports |= {"from bpref.tasks.exercise import arguments"}
    shapes = "\n".join(f"    {name}: {v.dtype} {v.shape}" for name, v in zip(p.names, p.args, strict=True))
    y = jax.eval_shape(p.forward, *p.args)
    of_y = ", ".join(f"{v.dtype} {v.shape}" for v in jax.tree.leaves(y))
    written["backward"] = missing_backward(p)
    written["make_args"] = f'def make_args():\n    return arguments("{rule.name}")'
    return f'"""{_given(rule)}\n\nArguments, for example:\n\n{shapes}\n    y: {of_y}\n\n{TASK}\n"""\n\n{written}'


TASK = """Write `backward(args, dy)`, which is given the arguments of `forward` and the cotangent of its output, and
returns the cotangent of each argument, None for one that has none. This says whether it is right, and if not, what is
wrong with it:

    bpref check {file}:forward --backward backward --args {file}:make_args"""


def _given(rule: Rule) -> str:
    """The derivation up to where the differential begins."""
    text = inspect.cleandoc(sys.modules[rule.make.__module__].__doc__ or "")
    return text.partition("\n\nDifferential")[0].partition("\n\nCached")[0].strip()


def _problem(rule: Rule) -> Problem:
    """At sizes that are all different, so that no two axes can be confused and go unnoticed."""
    case = case_of(rule)
    return problem(rule, sized(case, {name: n for n, name in enumerate(axes_of(case), LEAST)}), SEED)
