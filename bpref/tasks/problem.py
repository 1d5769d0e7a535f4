"""A rule as a problem: its naive forward as a function of arrays alone, and arguments for it."""

import inspect
import keyword
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.rule import Case, Rule, Size
from bpref.verify.numbers.measure import rounded
from bpref.verify.oracle import is_differentiable
from bpref.verify.rules.draw import axes_of, draw, hyperparameters, sized


class Problem(NamedTuple):
    """A naive forward, and one set of arguments.

    Attributes:
      forward: `(*args) -> y`, an array, or a tuple of them; its outputs that have no cotangent are left out.
      names: of its arguments.
      args: NumPy arrays; floats are float32.
      tree: how they are put together, as `(params, x)`.
      hyper: what the rule's reference is called with.
      several: whether y is a tuple.
    """

    forward: Callable[..., PyTree]
    names: tuple[str, ...]
    args: tuple[np.ndarray, ...]
    tree: Hashable
    hyper: dict[str, object]
    several: bool


def case_of(rule: Rule) -> Case:
    """The way of calling it that is the task: the one that is timed."""
    return next(case for case in rule.cases if case.timed)


def small_sizes(case: Case, rng: np.random.Generator) -> dict[str, int]:
    """Fresh sizes for every axis, from 2 to 7 where the case allows them."""
    return sized(case, {name: int(rng.integers(2, 8)) for name in axes_of(case)})


def problem(rule: Rule, sizes: Mapping[str, int], seed: int) -> Problem:
    """The rule's naive forward at these sizes, with random arguments."""
    case = case_of(rule)
    example = draw(rule, case, sizes, seed)
    with_paths, tree = jax.tree_util.tree_flatten_with_path(rounded((example.params, example.x), jnp.float32))
    args = tuple(np.asarray(v) for _, v in with_paths)
    names = _names([path for path, _ in with_paths])
    hyper = hyperparameters(case, sizes)

    def forward(*args):
        params, x = jax.tree.unflatten(tree, args)
        outputs = [v for v in jax.tree.leaves(rule.reference(params, x, **hyper)) if is_differentiable(v)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    vars(forward)["__signature__"] = inspect.Signature(parameters)
    forward.__name__ = rule.name
    return Problem(forward, names, args, tree, hyper, isinstance(jax.eval_shape(forward, *args), tuple))


def sizes_named(case: Case) -> dict[str, str]:
    """The hyperparameters that are the size of an axis, and which."""
    return {name: v.axis for name, v in case.hyper.items() if isinstance(v, Size)}


def _names(paths: list[tuple]) -> tuple[str, ...]:
    """Of each argument: `W`, `x`, `labels`; those that are no names, or taken, with the root before them."""
    found: list[str] = []
    for path in paths:
        root = ("params", "x")[path[0].idx]
        parts = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", "")))) for k in path[1:]]
        name = "_".join(parts)
        if not name.isidentifier() or keyword.iskeyword(name) or name in found:
            name = "_".join([root, *parts])
        found.append(name)
    return tuple(found)
