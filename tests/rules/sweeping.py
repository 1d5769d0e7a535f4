"""A layer's sweeps as one program: called eagerly, every operation is compiled by itself, for most of a test.

That eager and compiled are the same is a law, held for every case of every rule.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from bpref.cotangents import require_cotangent
from bpref.layer import Layer
from bpref.programs import all_equations
from bpref.verify.oracle import with_cotangents
from bpref.verify.programs.quick import quick_compilation
from bpref.verify.programs.running import in_float64
from bpref.verify.rules.draw import Example


def in_one_program(f: Callable) -> Callable:
    """`f` traced once for inputs of one form; run by NumPy where it is small and in float64, else compiled.

    For what is run a few times, and what XLA makes of it is not the question.
    """
    jitted, runs = jax.jit(f), {}

    @wraps(f)
    def run(*inputs):
        traced = jitted.trace(*inputs)
        if traced.jaxpr not in runs:
            runs[traced.jaxpr] = in_float64(traced)[0]
        return runs[traced.jaxpr](*jax.device_get(inputs))

    return run


def compiled(f: Callable) -> Callable:
    """`f` compiled in a hurry."""
    return jax.jit(f, compiler_options=quick_compilation())


def as_users_compile(f: Callable) -> Any:
    """`f` compiled as XLA does where nobody asks for a quick compilation; in the tests every program is one."""
    default = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    return jax.jit(f, compiler_options={name: default[name] for name in quick_compilation() if name in default})


def forward(layer: Layer, params: Any, x: Any) -> Any:
    """y."""
    return in_one_program(lambda *of: layer.forward(*of)[0])(params, x)


def backpropagate(layer: Layer, params: Any, x: Any, dy: Any = None) -> tuple[Any, Any, Any]:
    """`(y, dparams, dx)` as of `bpref.backpropagate`; dy is of ones where it is left out, whatever y's shape is."""

    def sweep(params, x, dy):
        y, cache = layer.forward(params, x)
        if dy is None:
            dy = jax.tree.map(jnp.ones_like, y)
        require_cotangent(layer.name, dy, y)
        return y, *layer.backward(params, cache, dy)

    return in_one_program(sweep)(params, x, dy)


def by_oracle(f: Callable, *inputs: Any, dy: Any = None) -> tuple[Any, Any]:
    """y = f(*inputs) and its cotangents by autodiff; dy is of ones where it is left out."""

    def sweep(inputs, dy):
        y, pull = with_cotangents(f, *inputs)
        return y, pull(jax.tree.map(jnp.ones_like, y) if dy is None else dy)

    return compiled(sweep)(inputs, dy)


def shapes_within(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Of every array that is made, loops' bodies included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from shapes_within(getattr(inner, "jaxpr", inner))


def narrow_program(example: Example, narrow: str) -> tuple[ClosedJaxpr, Any]:
    """The forward and backward of narrow inputs, and the outputs, the cache and the cotangents by their shapes."""
    kinds = {"f": jnp.dtype(narrow), "c": jnp.complex64}
    inputs = jax.tree.map(lambda v: v.astype(kinds.get(v.dtype.kind, v.dtype)), (example.params, example.x))

    def sweep(params, x):
        y, cache = example.layer.forward(params, x)
        return y, cache, example.layer.backward(params, cache, y)

    return jax.make_jaxpr(sweep, return_shape=True)(*inputs)


def wide_values_in(program: ClosedJaxpr) -> list[Any]:
    """The types of a program's values of 64-bit dtypes, but for Python's numbers: weak where they are not promoted."""
    values = (v.aval for e in all_equations(program) for v in e.outvars if hasattr(v.aval, "weak_type"))
    return [v for v in values if v.dtype in ("float64", "complex128") and not v.weak_type]
