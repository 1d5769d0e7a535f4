"""What a rule is to those who verify it: how to make the layer, what it must equal, and inputs worth trying.

A rule file ends with one `RULE`; everything else (laws, sabotage, `bpref explain`, tables, benchmarks) reads that.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import PyTree

from bpref.layer import Layer

T = TypeVar("T")


class Real(NamedTuple):
    """An array of floating-point numbers, for a case: its named axes and the values it may take.

    Attributes:
      axes: names separated by spaces, such as "N d"; the same name is the same size throughout a case.
      low, high: the range that random values come from.
      points: values that are always among the first elements: kinks, and the far ends of the domain.
      simplex: whether the last axis is a distribution (positive, sum 1).
      domain: what makes of random values ones that the function is defined for, such as positive definite matrices;
        `array -> array` of the same shape, in NumPy.
      is_complex: whether the numbers are complex; the imaginary parts are drawn like the real ones.
    """

    axes: str
    low: float = -4.0
    high: float = 4.0
    points: tuple[float, ...] = ()
    simplex: bool = False
    domain: Callable[[np.ndarray], np.ndarray] | None = None
    is_complex: bool = False


class Integer(NamedTuple):
    """An array of integers in `[low, high)`; `high` may name an axis, such as "C" for labels."""

    axes: str
    low: int
    high: int | str
    points: tuple[int, ...] = ()


class Boolean(NamedTuple):
    """An array of booleans: a mask."""

    axes: str


class Key(NamedTuple):
    """A PRNG key, as the two 32-bit words that `jax.random` also takes for one."""

    axes: str = ""


Spec = Real | Integer | Boolean | Key
"""What an array of a case may be."""


def specs(kind: Callable[..., T], *of_fields: object, **of_named_fields: object) -> T:
    """A named tuple of specs, where its fields are declared to hold arrays: `specs(Heads, Real("B T N D"), ...)`."""
    return kind(*of_fields, **of_named_fields)


class Interval(NamedTuple):
    """A real hyperparameter: `typical` is verified everywhere, any value from `low` to `high` may be drawn."""

    low: float
    high: float
    typical: float


class Size(NamedTuple):
    """An integer hyperparameter that is the size of the named axis, such as the number of outputs."""

    axis: str


Hyper = Mapping[str, Any]
"""Hyperparameters by name: what a layer is made with."""


class Case(NamedTuple):
    """One way of calling a rule.

    Attributes:
      name: distinguishes the cases of one rule, such as "no bias".
      x: a pytree of `Real`, `Integer`, `Boolean` and `Key`.
      hyper: what `make` and `reference` are called with: plain values, `Interval`s or `Size`s.
      never_empty: axes that a drawn shape may not leave empty, since the function has no value there.
      params: a tree like `init`'s of what the parameters are; `None` for normal random numbers.
      fixed: axes that have one size in every shape, such as channels that groups must divide.
      least: axes that a drawn shape may not make smaller, such as those that a window must fit in.
      timed: the sizes of all axes that the benchmark measures the case with; a rule has one such case.
    """

    name: str
    x: PyTree
    hyper: Hyper = {}  # noqa: RUF012, a Mapping is not written to
    never_empty: tuple[str, ...] = ()
    params: PyTree = None
    fixed: Mapping[str, int] = {}
    least: Mapping[str, int] = {}
    timed: Mapping[str, int] = {}


class Rule(NamedTuple):
    """A layer, what it is verified against, and where its formula comes from.

    Attributes:
      name: its key in `RULES`.
      make: `(**hyper) -> Layer`; the module it is defined in has the derivation as its docstring.
      reference: `(params, x, **hyper) -> y`, an independent naive forward, or a library's own.
      cases: the calls that the laws are tried on.
      cite: the source of the formula.
      covers: other names by which it is looked for, such as "swiglu" for `glu`.
    """

    name: str
    make: Callable[..., Layer]
    reference: Callable[..., PyTree]
    cases: tuple[Case, ...]
    cite: str
    covers: tuple[str, ...] = ()


def called_as(make: Callable[..., Layer]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """For a reference that is called as `make` is: it names what it needs; order and defaults stand in `make` alone."""
    named = inspect.signature(make).parameters.values()
    signature = inspect.Signature([p for p in named if p.name != "name"])  # what a layer is called is not computed with

    def of(reference: Callable[..., T]) -> Callable[..., T]:
        @wraps(reference)
        def called(params: PyTree, x: PyTree, *args: object, **hyper: object) -> T:
            bound = signature.bind(*args, **hyper)
            bound.apply_defaults()
            return reference(params, x, **bound.arguments)

        own = list(inspect.signature(reference).parameters.values())[:2]
        called.__signature__ = inspect.Signature([*own, *signature.parameters.values()])  # pyright: ignore[reportAttributeAccessIssue]
        return called

    return of
