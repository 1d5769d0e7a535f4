"""A layer beside the PyTorch function that computes the same: an oracle that has nothing to do with JAX."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from bpref.layer import Layer
from bpref.verify.numbers.measure import relative_error
from bpref.verify.oracle import is_differentiable
from tests.rules.sweeping import backpropagate

SEEDS = (0, 1, 2)
"""Each comparison is made on as many random shapes."""


def assert_same(layer: Layer, twin: Callable[..., Any], params: Any, x: Any, tolerance: float = 1e-10) -> None:
    """Compare forward and backward in float64, for a random cotangent.

    Args:
      layer: ours.
      twin: `(params, x) -> y` in PyTorch, of tensors in the same trees.
      params, x: trees of NumPy arrays, float64 or integers.
      tolerance: the largest relative error allowed, for functions that PyTorch computes less precisely.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    with jax.enable_x64(True):
        rng = np.random.default_rng(99)
        y = jax.eval_shape(layer.forward, params, x)[0]
        dy = jax.tree.map(lambda v: rng.normal(size=v.shape) if is_differentiable(v) else None, y)
        y, dparams, dx = backpropagate(layer, params, x, dy)

    def tensor(v):
        return torch.tensor(np.asarray(v), requires_grad=is_differentiable(v))

    tensors = jax.tree.map(tensor, (params, x))
    y_twin = twin(*tensors)
    pairs = [(v, d) for v, d in zip(_leaves(y_twin), _leaves(dy), strict=True) if d is not None]
    torch.autograd.backward([v for v, _ in pairs], [torch.tensor(d) for _, d in pairs])
    ours = [*jax.tree.leaves(y), *(d for d in _leaves((dparams, dx)) if d is not None)]
    theirs = [v.detach().numpy() for v in _leaves(y_twin)]
    given = zip(jax.tree.leaves(tensors), _leaves((dparams, dx), like=(params, x)), strict=True)
    theirs += [v.grad.numpy() if v.grad is not None else np.zeros(v.shape) for v, d in given if d is not None]
    errors = [float(relative_error(np.asarray(a), b)) for a, b in zip(ours, theirs, strict=True)]
    assert max(errors) <= tolerance, errors


def channels_second(twin: Callable[..., Any]) -> Callable[..., Any]:
    """Of images that have their channels last, what a twin makes of them as PyTorch has them."""
    return lambda params, x: twin(params, x.movedim(-1, 1)).movedim(1, -1)


def _leaves(tree: Any, like: Any = None) -> list[Any]:
    """The leaves, `None` among them; with `like`, a `None` for every leaf of `like` below one."""
    if like is None:
        return jax.tree.leaves(tree, is_leaf=lambda v: v is None)

    def below(d, v):
        if v is None:
            return ()
        return jax.tree.map(lambda _: None, v) if d is None else d

    spread = jax.tree.map(below, tree, like, is_leaf=lambda v: v is None)
    return _leaves(spread)
