"""The terms of the chain rule: what each path through the primal contributes to a cotangent.

A wrong derivation often is the right one without one of them, or with its sign reversed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bpref.verify.examine import Point
from bpref.verify.oracle import with_cotangents
from bpref.verify.paths import split_paths
from bpref.verify.program import completed
from bpref.verify.programs.running import in_float64


def contributions(
    primal: Callable[[list[Any]], Any], names: Sequence[str], points: Sequence[Point]
) -> dict[str, dict[str, np.ndarray]]:
    """For every differentiable argument by name: each path's label, and its term in the oracle's cotangent.

    `primal` takes the leaves with these names, and can be traced in float64.

    A term has shape (samples, *shape of the argument), a sample for each point and cotangent, in float64. Paths with
    the same label (several uses in one line) are one term together, and one each. Paths that contribute nothing by
    themselves, such as that of the maximum which a softmax is shifted by, are closed before the others are measured:
    beside a closed path they would contribute.
    """
    with jax.enable_x64(True):
        leaves = points[0].leaves
        program = jax.make_jaxpr(lambda values: jax.tree.leaves(primal(values)))(leaves)
        masked, labels = split_paths(program)
        if not labels:
            return {name: {} for name in names}

        def cotangents(mask, leaves, dy):
            y, pull = with_cotangents(lambda leaves: masked(mask, *leaves), leaves)
            return {n: c for n, c in zip(names, pull(completed(dy, y))[0], strict=True) if c is not None}

        of_all = jax.vmap(jax.vmap(cotangents, (0, None, None)), (None, None, 0))

        def with_closed(closed: np.ndarray) -> dict[str, np.ndarray]:
            """Cotangents with all paths open, and then with each row's closed; (samples, 1 + rows, *shape)."""
            masks = 1.0 - np.concatenate([np.zeros((1, len(labels))), closed])
            seen = [run(masks, p.leaves, p.dys) for p in points]
            return {name: np.concatenate([s[name] for s in seen]) for name in seen[0]}

        groups = _groups(labels)
        closed = np.stack([np.isin(np.arange(len(labels)), paths) for paths in groups.values()]).astype(float)
        masks = np.ones((1 + len(groups), len(labels)))
        run, *_ = in_float64(jax.jit(of_all).trace(masks, leaves, points[0].dys))
        joined = with_closed(closed)
        idle = [all(_is_nothing(v[:, 0] - v[:, k + 1], v[:, 0]) for v in joined.values()) for k in range(len(groups))]
        if any(idle):
            joined = with_closed(np.maximum(closed, closed[idle].max(axis=0)))
    return {
        name: {_with_names(label, names): v[:, 0] - v[:, k + 1] for k, label in enumerate(groups) if not idle[k]}
        for name, v in joined.items()
    }


def _groups(labels: Sequence[str]) -> dict[str, list[int]]:
    """What is closed together: each path, and all those that have the same label, several uses in one line."""
    alike = {label: [i for i, other in enumerate(labels) if other == label] for label in labels}
    several = {label: paths for label, paths in alike.items() if len(paths) > 1}
    each = {
        f"{label}, use {k + 1} of {len(paths)}": [i] for label, paths in several.items() for k, i in enumerate(paths)
    }
    return alike | each


def _is_nothing(term: np.ndarray, whole: np.ndarray) -> bool:
    return bool(np.max(np.abs(term), initial=0.0) <= 1e-12 * np.max(np.abs(whole), initial=0.0))


def _with_names(label: str, names: Sequence[str]) -> str:
    """The argument that a label calls by its place in the list of leaves, by its name."""
    for i, name in enumerate(names):
        label = label.replace(f"`values[{i}]`", f"`{name}`")
    return label
