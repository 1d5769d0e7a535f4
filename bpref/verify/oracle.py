"""The oracle: the only file that differentiates. Everything else in bpref is derived by hand and held against it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import Typed, is_literal

Function = Callable[..., PyTree]

Arrays = list[np.ndarray]
"""Values of leaves, or of outputs: NumPy's arrays, of random keys alone JAX's."""

Leaf = np.ndarray | jax.ShapeDtypeStruct
"""A leaf of a call's arguments: an array, as above, or a specification of one."""

Specs = list[jax.ShapeDtypeStruct]

Values = Sequence[ArrayLike]
"""Values of leaves as a function is called with them, traced ones too."""


def is_differentiable(v: Typed) -> bool:
    """Whether an array has a cotangent: real or complex floating-point numbers do; integers and keys do not."""
    return jnp.issubdtype(v.dtype, jnp.inexact)


def with_cotangents(f: Function, *args: PyTree) -> tuple[PyTree, Callable[[PyTree], tuple]]:
    """`f(*args)`, and the function that takes the cotangent of its output to those of `args`.

    The cotangents have the tree of `args`, with `None` for what is not differentiable; so may that of the output.
    """
    of_chosen, chosen, fill = _restricted(f, args)
    y, transpose = jax.vjp(of_chosen, *chosen)
    return y, lambda dy: fill(transpose(_with_float0(dy, y)), None)


def gradient(f: Function) -> Callable[..., tuple]:
    """The function that gives the cotangents of all arguments of a scalar `f`."""

    def cotangents_of(*args):
        y, cotangents = with_cotangents(f, *args)
        return cotangents(jnp.ones_like(y))

    return cotangents_of


def as_cotangent(dy: PyTree, y: PyTree) -> PyTree:
    """Arrays of the tree of `y` as its cotangent: in its dtypes, integers with JAX's `float0`, whatever is there."""

    def one(v, dv):
        return dv.astype(v.dtype) if is_differentiable(v) else np.zeros(v.shape, jax.dtypes.float0)

    return jax.tree.map(one, y, dy)


def _with_float0(dy: PyTree, y: PyTree) -> PyTree:
    """A cotangent of y, with JAX's `float0` in the place of `None` where y has integers."""

    def one(dv, v):
        return np.zeros(v.shape, jax.dtypes.float0) if dv is None and not is_differentiable(v) else dv

    if all(map(is_differentiable, jax.tree.leaves(y))):
        return dy
    return jax.tree.map(one, dy, y, is_leaf=lambda dv: dv is None)


def bytes_kept_by_autodiff(f: Function, params: PyTree, x: PyTree) -> int:
    """The bytes that `jax.vjp` of `f(params, x)` keeps for its reverse sweep, counted as `bytes_kept` does."""

    def residuals(params, x):
        of_chosen, chosen, _ = _restricted(f, (params, x))
        return jax.vjp(of_chosen, *chosen)[1]

    return bytes_kept(residuals, params, x)


def bytes_kept(cache_of: Function, params: PyTree, x: PyTree) -> int:
    """The bytes of the arrays in `cache_of(params, x)`: each array once, no parameters, no constants.

    A parameter, also in another layout, is given to the backward anyway; what depends on no input is a constant.
    """
    program = jax.make_jaxpr(lambda params, x: jax.tree.leaves(cache_of(params, x)))(params, x).jaxpr
    of_params = set(program.invars[: len(jax.tree.leaves(params))])
    of_input = set(program.invars)
    for equation in program.eqns:
        operands = {v for v in equation.invars if not is_literal(v)}
        if operands & of_input:
            of_input.update(equation.outvars)
        if equation.primitive.name in ("transpose", "reshape") and operands <= of_params:
            of_params.update(equation.outvars)
    kept = {v for v in program.outvars if not is_literal(v)} & of_input - of_params
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)


def _restricted(f: Function, args: tuple) -> tuple[Function, list, Callable[[Sequence, object], PyTree]]:
    """`f` of its differentiable leaves alone, those leaves, and how to put such a list back into `args`' tree."""
    leaves, tree = jax.tree.flatten(args)
    where = [i for i, v in enumerate(leaves) if is_differentiable(v)]

    def fill(chosen, others):
        filled = list(leaves) if others is args else [others] * len(leaves)
        for i, v in zip(where, chosen, strict=True):
            filled[i] = v
        return jax.tree.unflatten(tree, filled)

    return lambda *chosen: f(*fill(chosen, args)), [leaves[i] for i in where], fill
