"""Cotangents as trees: what they must be, and where they are `None`.

dV is the derivative of the objective J with respect to V and has V's tree, shapes and dtypes. `None` stands for the
cotangent of what is not differentiable, and for one that is zero since nothing that V reaches is used.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.dtypes import require_array


def require_cotangent(who: str, dy: PyTree, y: PyTree) -> None:
    """Raise unless dy has y's tree, and y's shapes and dtypes where y is differentiable; elsewhere it is not looked at.

    `None` may stand for any part of it.

    Raises:
      ValueError: the tree or a shape is another.
      TypeError: there is no array, or one of another dtype.
    """
    values, tree = jax.tree_util.tree_flatten_with_path(y)
    try:
        cotangents = tree.flatten_up_to(_in_place_of_none(lambda _: None, dy, y) if has_none(dy) else dy)
    except ValueError as error:
        raise ValueError(f"{who}: dy has the tree {jax.tree.structure(dy)}, y has {tree}") from error
    for (path, v), d in zip(values, cotangents, strict=True):
        if d is None or not is_differentiable(v):
            continue
        place = jax.tree_util.keystr(path)
        require_array(who, f"dy{place}", d)
        if d.shape != v.shape:
            raise ValueError(f"{who}: dy{place} has shape {d.shape}, y{place} has {v.shape}")
        if d.dtype != v.dtype:
            raise TypeError(f"{who}: dy{place} has dtype {d.dtype}, y{place} has {v.dtype}; cast it to y's")


def has_cotangent(params: PyTree, dparams: PyTree) -> PyTree:
    """A tree of `params`' structure: False under every `None` of `dparams`, True elsewhere."""
    return jax.tree.map(
        lambda d, p: jax.tree.map(lambda _: d is not None, p), dparams, params, is_leaf=lambda d: d is None
    )


def has_none(dy: PyTree) -> bool:
    """Whether something in a cotangent is `None`."""
    return any(d is None for d in jax.tree.leaves(dy, is_leaf=lambda d: d is None))


def with_zeros(d: PyTree, v: PyTree) -> PyTree:
    """The cotangent `d` of `v`, zeros in it where `None` says that it is zero."""
    return _in_place_of_none(lambda a: jnp.zeros_like(a) if is_differentiable(a) else None, d, v)


def _in_place_of_none(f: Callable[[PyTree], PyTree], d: PyTree, v: PyTree) -> PyTree:
    """The tree d; under every `None` in it, that of f of v's arrays."""
    return jax.tree.map(lambda e, u: jax.tree.map(f, u) if e is None else e, d, v, is_leaf=lambda e: e is None)


def is_differentiable(v: Array) -> bool:
    return jnp.issubdtype(v.dtype, jnp.inexact)


class Product(NamedTuple):
    """dW = dZ^T A, not made yet: dZ (..., m) and A (..., d)."""

    dZ: Array
    A: Array


class Total(NamedTuple):
    """db, the sum of dZ (..., m) over the examples, not made yet."""

    dZ: Array


class Root(NamedTuple):
    """Of a loss with the Hessian H = S S^T: the columns of S, by its cache (see `bpref.formulas.loss.root`).

    Attributes:
      width: `(cache) -> int`, how many columns an example has.
      column: `(cache, k) -> dx`, the one of number k, for all examples.
      drawn: `(cache, key) -> dx`, a random one s with E s s^T = H.
    """

    width: Callable[[PyTree], int]
    column: Callable[[PyTree, ArrayLike], PyTree]
    drawn: Callable[[PyTree, Array], PyTree]


def is_unmade(v: object) -> bool:
    return isinstance(v, (Product, Total))
