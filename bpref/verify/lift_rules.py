"""A custom derivative rule over float64: its body, and its own forward, backward or tangents, each made wide."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn


def lift_rule(equation: JaxprEqn, inputs: Sequence[Any], recurse: Callable) -> list:
    """The outputs of a `custom_jvp` or `custom_vjp` call over wide inputs, with the rule that differentiates it."""
    lifted = _with_tangents if equation.primitive.name == "custom_jvp_call" else _with_cotangents
    return lifted(equation, recurse)(*inputs)


def _with_tangents(equation: JaxprEqn, recurse: Callable) -> Callable:
    _, tangents_of = equation.primitive.get_bind_params(equation.params)["subfuns"]
    body, avals = equation.params["call_jaxpr"], [v.aval for v in equation.invars]

    @jax.custom_jvp
    def rule(*xs):
        return recurse(body, xs)

    @rule.defjvp
    def _(primals, tangents):
        def flat(*values):
            both = tangents_of.call_wrapped(*values)
            return both[: len(both) // 2], _plain(both[len(both) // 2 :])

        call = _retraced(flat, [*avals, *(_tangent(a) for a in avals)], recurse)
        outputs, moved = call(*primals, *tangents)
        # the rule's `None` for an output without tangent
        return outputs, [_zeros(a) if t is None else t for t, a in zip(moved, body.out_avals, strict=True)]

    return rule


def _with_cotangents(equation: JaxprEqn, recurse: Callable) -> Callable:
    bound = equation.primitive.get_bind_params(equation.params)
    _, forward_of, backward_of = bound["subfuns"]
    body, avals = equation.params["call_jaxpr"], [v.aval for v in equation.invars]
    # JAX asks for no derivative with respect to what the rule has closed over, and raises if it is
    moving = [i >= equation.params["num_consts"] for i in range(len(avals))]
    traced_at: list = []

    def forward_flat(*xs):
        outputs = forward_of.call_wrapped(*(v for pair in zip(xs, moving, strict=True) for v in pair))
        _, of_residuals, from_inputs = bound["out_trees"]()
        own = iter(outputs)
        residuals = [next(own) if i is None else xs[i] for i in from_inputs]
        assert len(residuals) == of_residuals.num_leaves
        traced_at[:] = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in map(jnp.asarray, residuals)]
        return residuals, list(own)

    @jax.custom_vjp
    def rule(*xs):
        return recurse(body, xs)

    def forward(*xs):
        residuals, outputs = _retraced(forward_flat, avals, recurse)(*xs)
        return outputs, residuals

    def backward(residuals, cotangents):
        at = [*traced_at, *(_tangent(a) for a in body.out_avals)]
        call = _retraced(lambda *values: (_plain(_without_logs(backward_of.call_wrapped(*values))), ()), at, recurse)
        return tuple(call(*residuals, *cotangents)[0])

    rule.defvjp(forward, backward)
    return rule


def _retraced(fun: Callable, avals: Sequence[Any], recurse: Callable) -> Callable:
    """`fun`, a pair of lists with `None` among them, traced at `avals` and evaluated anew over wide values.

    An integer's tangent (float0) is no array to trace at, and is closed over.
    """

    def call(*values):
        where = [i for i, a in enumerate(avals) if a.dtype != jax.dtypes.float0]

        def of_arrays(*arrays):
            at = dict(zip(where, arrays, strict=True))
            return fun(*(at[i] if i in at else values[i] for i in range(len(avals))))

        program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*(_struct(avals[i]) for i in where))
        return jax.tree.unflatten(jax.tree.structure(shapes), recurse(program, [values[i] for i in where]))

    return call


def _without_logs(returned: Any) -> Sequence[Any]:
    """A backward's cotangents; since JAX 0.11 they come with what it logs."""
    has_logs = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], list)
    return returned[0] if has_logs else returned


def _plain(values: Sequence[Any]) -> list:
    """Tangents as arrays; JAX's symbolic zeros, and those of integers, as `None`."""
    return [v if isinstance(v, jax.Array | np.ndarray) and v.dtype != jax.dtypes.float0 else None for v in values]


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _tangent(aval: Any) -> jax.ShapeDtypeStruct:
    inexact = jnp.issubdtype(aval.dtype, jnp.inexact)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype if inexact else jax.dtypes.float0)


def _zeros(aval: Any) -> Any:
    """The zero tangent of a wide output."""
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return np.zeros(aval.shape, jax.dtypes.float0)
    wide = jnp.complex128 if jnp.issubdtype(aval.dtype, jnp.complexfloating) else jnp.float64
    return jnp.zeros(aval.shape, wide)
