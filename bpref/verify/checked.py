"""checked: which layer of a network is derived wrongly, at the values that really flow through it.

A leaf transformation: each leaf's backward returns, in the parameter slot, the error of its own (dparams, dx)
against the oracle, and hands its dx on as it is. One reverse sweep then tells every leaf's error, each by
itself: a wrong leaf does not accuse the ones below it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.apart import sealed
from bpref.cotangents import has_none, with_zeros
from bpref.dtypes import require_arrays
from bpref.layer import Layer, leaf_paths, map_leaves, require_layer
from bpref.verify.naming import path_text
from bpref.verify.numbers.measure import relative_error, widened
from bpref.verify.oracle import with_cotangents
from bpref.verify.programs.lift import for_float64
from bpref.verify.programs.running import as_if_at_home


class CheckedCache(NamedTuple):
    cache: PyTree
    x: PyTree


class LeafErrors(NamedTuple):
    """Relative errors of a leaf's cotangents, a scalar for each array of its params, of x, and of what it shares."""

    params: PyTree
    x: PyTree
    data: PyTree = None


def checked(leaf: Layer) -> Layer:
    """The leaf, its backward returning `LeafErrors` in place of dparams; for `map_leaves`, and works under jit.

    The oracle differentiates the leaf's own forward, at the params, x and dy of the sweep; a state is constant for it.
    The cache grows by x.

    Example:
      >>> _, errors, _ = bpref.backpropagate(bpref.map_leaves(bpref.checked, J), params, (X, y))
      >>> bool(errors[0].params.W < 1e-4)
      True
    """
    require_layer("checked", "leaf", leaf)

    def forward(params, x):
        y, cache = leaf.forward(params, x)
        return y, CheckedCache(cache, x if leaf.begin is None else x._replace(data=None))

    def backward(params, cache, dy):
        came = hand = leaf.backward(params, cache.cache, dy)
        if leaf.begin is None:
            y, cotangents = with_cotangents(lambda params, x: leaf.forward(params, x)[0], params, cache.x)
            oracle = cotangents(with_zeros(dy, y))
        else:  # of the value alone: the state is a constant, and the next one is not differentiated
            dy, data = dy
            y, cotangents = with_cotangents(
                lambda p, x, data: leaf.forward(p, cache.x._replace(x=x, data=data))[0][0], params, cache.x.x, data
            )
            hand, oracle = (came[0], came[1].x, came[1].data), cotangents(with_zeros(dy, y))
        _require_same_tree(leaf, hand, oracle, not has_none(dy))
        return LeafErrors(*(_errors(*pair) for pair in zip(hand, oracle, strict=True))), came[1]

    return sealed("checked", leaf, checked, forward=forward, backward=backward)


def _errors(hand: PyTree, oracle: PyTree) -> PyTree:
    """The error of every cotangent in a tree; a `None` of the hand's may stand for a whole subtree."""

    def below(h, o):
        return jax.tree.map(lambda v: _error(None, v), o, is_leaf=_is_none) if h is None else _error(h, o)

    return jax.tree.map(below, hand, oracle, is_leaf=_is_none)


def _error(hand: Array | None, oracle: Array | None) -> ArrayLike | None:
    """The error of one cotangent; infinite where it is missing and not zero, or has another shape."""
    if oracle is None:
        return None if hand is None else jnp.inf
    if hand is None:
        return jnp.where(jnp.any(oracle != 0), jnp.inf, 0.0)
    return relative_error(hand, oracle) if hand.shape == oracle.shape else jnp.inf


def _require_same_tree(leaf: Layer, hand: PyTree, oracle: PyTree, is_used: bool) -> None:
    """Raise `ValueError` unless the backward returned a pair with the tree of (params, x), and a dx to go on with.

    Where an output is not used dx may be `None`; what of it is zero may be so always, and is compared as zero.
    """
    came, expected = (jax.tree.structure(tree, is_leaf=_is_none) for tree in (hand, oracle))
    try:
        filled = jax.tree.map(lambda h, o: o if h is None else h, hand, oracle, is_leaf=_is_none)
        fits = jax.tree.structure(filled, is_leaf=_is_none) == expected
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise ValueError(f"{leaf.name}: its backward returned {came}, expected (dparams, dx) as {expected}")
    missing = jax.tree.map(lambda h, o: None if o is None else h is None, hand[1], oracle[1], is_leaf=_is_none)
    if is_used and jax.tree.leaves(missing) and all(jax.tree.leaves(missing)):
        raise ValueError(f"{leaf.name}: its backward returned no dx, so the layers below have no cotangent")


def _is_none(v: object) -> bool:
    return v is None


class LeafReport(NamedTuple):
    """One leaf of a network: its path, its largest relative error, and the cotangent which has it."""

    path: str
    error: float
    where: str


@as_if_at_home
def check_leaves(layer: Layer, params: PyTree, x: PyTree, dy: PyTree = None) -> list[LeafReport]:
    """Hold every leaf of a network against the oracle, in float64, at the values that really flow through it.

    Args:
      layer: any composition; an error of 1e-10 or more in a leaf means that its derivation is wrong there.
      params, x: the live values, in any floating-point dtype.
      dy: the cotangent of the output, of a stateful layer its value's; left out, 1 everywhere.

    Returns:
      One report per leaf, in the order of `leaf_paths`. A leaf inside `scan` is reported once, by its worst slice.

    Example:
      >>> [(leaf.path, leaf.error < 1e-10) for leaf in bpref.check_leaves(J, params, (X, y))]
      [('0 linear', True), ('1 softmax_cross_entropy', True)]

    Raises:
      TypeError: `layer` is no Layer; a leaf of params, x or dy is no array.
    """
    require_layer("check_leaves", "layer", layer)
    require_arrays("check_leaves", params=params, x=x, dy=dy)

    def sweep(params, x, dy):
        y, cache = checking.forward(params, x)
        given = jax.tree.map(jnp.ones_like, y if layer.begin is None else y[0]) if dy is None else dy
        return checking.backward(params, cache, given if layer.begin is None else (given, x.data))[0]

    checking = map_leaves(checked, layer)
    in_float64, _ = for_float64(sweep, params, x, dy)
    with jax.enable_x64(True):
        errors = jax.jit(in_float64)(*widened((params, x, dy)))
    leaves = jax.tree.leaves(errors, is_leaf=lambda v: isinstance(v, LeafErrors))
    return [_worst(path, leaf) for path, leaf in zip(leaf_paths(layer), leaves, strict=True)]


def _worst(path: str, errors: LeafErrors) -> LeafReport:
    report = LeafReport(path, 0.0, "")
    for leaf_path, error in jax.tree_util.tree_flatten_with_path(errors)[0]:
        error = np.asarray(error)
        if not error.max() <= report.error:
            place = np.unravel_index(int(error.argmax()), error.shape)
            report = LeafReport(
                path, float(error.max()), path_text(leaf_path).removeprefix(".") + "".join(f"[{int(i)}]" for i in place)
            )
    return report
