"""What the corpus is made of: a function, its right derivation, and derivations that people got wrong."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

Backward = Callable[[tuple, PyTree], tuple]
"""`(args, dy) -> cotangents of args`, `None` for an argument that has none."""


class Wrong(NamedTuple):
    """A wrong derivation, and what a good checker says of it.

    Attributes:
      name: what was done wrong, in a few words.
      backward: `(args, dy) -> cotangents`.
      where: the parameter names of the arguments whose cotangents are wrong.
      kind: the diagnosis that is expected, one of `bpref.verify.report.KINDS`; `unexplained` where no simple
        pattern explains it.
      source: who made this mistake: an issue, a forum thread, a textbook's erratum, or a habit and why it is common.
    """

    name: str
    backward: Backward
    where: tuple[str, ...]
    kind: str
    source: str


class Derivation(NamedTuple):
    """A function with its right backward, and wrong ones.

    Attributes:
      name: what the function is called.
      forward: `(*args) -> y`, naive JAX; its parameters' names are how a report names the arguments.
      backward: the right derivation.
      make_args: `(rng, dtype) -> args`: NumPy arrays in general position, floats in `dtype`, none of them large.
      wrong: derivations that are wrong.
    """

    name: str
    forward: Callable[..., PyTree]
    backward: Backward
    make_args: Callable[[np.random.Generator, DTypeLike], tuple]
    wrong: tuple[Wrong, ...]
