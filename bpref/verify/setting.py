"""A function as the numerical oracle calls it: one flat vector of outputs, how precise it is, and how noisy."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bpref.verify.noise import eps_of, is_inexact, measured_noise, widened


class Setting(NamedTuple):
    """What every derivative needs.

    Attributes:
      call: the function, from leaves to one flat vector of its floating-point outputs.
      leaves: the arguments.
      steps_dtype: arguments are rounded to it, so that a step is what the function sees of it.
      dys: `(cotangents, outputs)`.
      y: the outputs at the arguments.
      noise: the error of each output.
      eps: the relative error of rounding.
    """

    call: Callable[[Sequence[Any]], np.ndarray]
    leaves: list[Any]
    steps_dtype: Any
    dys: np.ndarray
    y: np.ndarray
    noise: np.ndarray
    eps: float


def setting_of(f: Callable[..., Any], args: tuple, dys: Sequence[Any]) -> tuple[Setting, Any]:
    """Finds out in which precision `f` computes and how noisy it is; and the tree of `args`."""
    given, tree = jax.tree.flatten(args)
    given = [np.array(v) if is_inexact(v) else v for v in given]

    def outputs(leaves: Sequence[Any]) -> list[np.ndarray]:
        copies = [np.array(v) if isinstance(v, np.ndarray) else v for v in leaves]
        return [np.asarray(v) for v in jax.tree.leaves(f(*jax.tree.unflatten(tree, copies)))]

    leaves = [widened(v) for v in given]
    try:
        seen = outputs(leaves)
    except Exception:  # it may take its own precision alone; what is wrong otherwise is raised by the next call
        leaves, seen = given, outputs(given)
    eps = max((eps_of(v) for v in seen if is_inexact(v)), default=float(np.finfo(np.float64).eps))
    if eps > 1e-10 and any(is_inexact(v) and eps_of(v) > 1e-10 for v in given):
        leaves, seen = given, outputs(given)
    which = [i for i, v in enumerate(seen) if is_inexact(v)]

    def call(leaves: Sequence[Any]) -> np.ndarray:
        parts = [v.reshape(-1) for v in outputs(leaves)]
        wide = [widened(parts[i]) for i in which]
        return np.concatenate(wide) if wide else np.zeros(0)

    y = call(leaves)
    steps_dtype = np.dtype(np.float64 if eps < 1e-10 else np.float32)
    noise = measured_noise(call, leaves, y, eps, steps_dtype)
    return Setting(call, leaves, steps_dtype, _stacked(dys, seen, which), y, noise, eps), tree


def _stacked(dys: Sequence[Any], seen: list[np.ndarray], which: list[int]) -> np.ndarray:
    """The cotangents as rows of a matrix."""
    rows = []
    for dy in dys:
        leaves = jax.tree.leaves(dy, is_leaf=lambda v: v is None)
        shapes = [None if v is None else np.shape(v) for v in leaves]
        if len(leaves) != len(seen) or any(shapes[i] != seen[i].shape for i in which):
            raise ValueError(f"dy has leaves of shapes {shapes}, the output of f {[v.shape for v in seen]}")
        rows.append(np.concatenate([widened(np.asarray(leaves[i])).reshape(-1) for i in which] or [np.zeros(0)]))
    return np.stack(rows)
