"""The oracle: the only file that differentiates. Everything else in bpref is derived by hand and held against it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpref.verify.named import cut_at_names, with_names

Function = Callable[..., Any]


def is_differentiable(v: Any) -> bool:
    """Whether an array has a cotangent: real or complex floating-point numbers do; integers and keys do not."""
    return jnp.issubdtype(v.dtype, jnp.inexact)


def with_cotangents(f: Function, *args: Any) -> tuple[Any, Callable[[Any], tuple]]:
    """`f(*args)`, and the function that takes the cotangent of its output to those of `args`.

    The cotangents have the tree of `args`, with `None` for what is not differentiable.
    """
    of_chosen, chosen, fill = _restricted(f, args)
    y, transpose = jax.vjp(of_chosen, *chosen)
    return y, lambda dy: fill(transpose(dy), None)


def gradient(f: Function) -> Callable[..., tuple]:
    """The function that gives the cotangents of all arguments of a scalar `f`."""

    def cotangents_of(*args):
        y, cotangents = with_cotangents(f, *args)
        return cotangents(jnp.ones_like(y))

    return cotangents_of


def cotangents_of_names(f: Function, *args: Any) -> tuple[Any, dict[str, Any]]:
    """A scalar `f(*args)`, and its derivative with respect to every value that `f` has named.

    A value is named by `jax.ad_checkpoint.checkpoint_name(z, "Z2")`, where `bpref.verify.named` finds it. Each
    derivative is that of a perturbation added to the value right there, all else as it was: dJ/dZ2 in the
    derivation's sense.
    """
    shapes: dict[str, Any] = {}

    def collect(name, z):
        shapes[name] = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return z

    jax.eval_shape(with_names(f, collect), *args)

    def perturbed(perturbations):
        return with_names(f, lambda name, z: z + perturbations[name])(*args)

    return jax.value_and_grad(perturbed)({name: jnp.zeros(v.shape, v.dtype) for name, v in shapes.items()})


def cotangents_by_name(
    f: Function, args: tuple, dy: Any, shifts: dict[str, Any], hand: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the cotangents of named values are, and what each would be if those after it were `hand`'s.

    Args:
      f: a function that names its values.
      args: its arguments, JAX arrays.
      dy: the cotangent of its output.
      shifts: what is added to each of the named values that are asked for, of its shape and dtype.
      hand: somebody's cotangents of some of these.

    Returns:
      The values; their cotangents; and for each name of `hand` one step of back-propagation: the derivative of
      `<dy, y>` and of `<hand[w], w>` for every w, along the paths that lead through no named value.
    """

    def shifted(shifts):
        values = {}

        def at_name(name, z):
            if name not in shifts:
                return z
            values[name] = z + shifts[name].astype(z.dtype)
            return values[name]

        y = with_names(f, at_name)(*args)
        return y, values

    (y, values), of_shifts = with_cotangents(shifted, shifts)
    nothing = jax.tree.map(jnp.zeros_like, values)
    used = {name: values[name] for name in hand}
    outputs, of_values = with_cotangents(lambda used: cut_at_names(f)(used, *args), used)
    return values, of_shifts((as_cotangent(dy, y), nothing))[0], of_values(as_cotangent((hand, dy), outputs))[0]


def as_cotangent(dy: Any, y: Any) -> Any:
    """Arrays of the tree of `y` as its cotangent: in its dtypes, integers with JAX's `float0`, whatever is there."""

    def one(v, dv):
        return dv.astype(v.dtype) if is_differentiable(v) else np.zeros(v.shape, jax.dtypes.float0)

    return jax.tree.map(one, y, dy)


def bytes_kept_by_autodiff(f: Function, params: Any, x: Any) -> int:
    """The bytes that `jax.vjp` of `f(params, x)` keeps for its reverse sweep, counted as `bytes_kept` does."""

    def residuals(params, x):
        of_chosen, chosen, _ = _restricted(f, (params, x))
        return jax.vjp(of_chosen, *chosen)[1]

    return bytes_kept(residuals, params, x)


def bytes_kept(cache_of: Function, params: Any, x: Any) -> int:
    """The bytes of the arrays in `cache_of(params, x)`: each array once, no parameters, no constants.

    A parameter, also in another layout, is given to the backward anyway; what depends on no input is a constant.
    """
    program = jax.make_jaxpr(lambda params, x: jax.tree.leaves(cache_of(params, x)))(params, x).jaxpr
    of_params = set(program.invars[: len(jax.tree.leaves(params))])
    of_input = set(program.invars)
    for equation in program.eqns:
        operands = {v for v in equation.invars if not _is_literal(v)}
        if operands & of_input:
            of_input.update(equation.outvars)
        if equation.primitive.name in ("transpose", "reshape") and operands <= of_params:
            of_params.update(equation.outvars)
    kept = {v for v in program.outvars if not _is_literal(v)} & of_input - of_params
    return sum(v.aval.size * v.aval.dtype.itemsize for v in kept)


def _is_literal(v: Any) -> bool:
    """Whether an operand in a program is a constant written into it, and not a variable."""
    return hasattr(v, "val")


def _restricted(f: Function, args: tuple) -> tuple[Function, list, Callable[[Any, Any], Any]]:
    """`f` of its differentiable leaves alone, those leaves, and how to put such a list back into `args`' tree."""
    leaves, tree = jax.tree.flatten(args)
    where = [i for i, v in enumerate(leaves) if is_differentiable(v)]

    def fill(chosen, others):
        filled = list(leaves) if others is args else [others] * len(leaves)
        for i, v in zip(where, chosen, strict=True):
            filled[i] = v
        return jax.tree.unflatten(tree, filled)

    return lambda *chosen: f(*fill(chosen, args)), [leaves[i] for i in where], fill
