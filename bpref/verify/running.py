"""How a traced program is run: a small one in float64 equation by equation in NumPy, any other compiled by XLA."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from bpref.verify.interpret import CannotInterpret, Interpreted, OnResult
from bpref.verify.jitter import jittered, rounded_in_numpy

Run = Callable[..., Any]
"""`(*inputs) -> outputs`, trees of NumPy arrays, as the program was traced."""

QUICK_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@cache
def quick_compilation() -> dict[str, Any]:
    """Options for the same arithmetic in slower code, those of them that this version of XLA knows.

    An examination runs each program a few times, and compiling it is the cost: they save four fifths of it.
    """

    def is_known(name: str, value: Any) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in QUICK_OPTIONS.items() if is_known(name, value)}


def when_run(traced: Any, part: Callable[[Any], Any]) -> tuple[Run, Run, Run]:
    """A program compiled when it is first run, in the mode of JAX that it was traced in, as the caller sees to.

    In the place of three, as `in_float64`: itself, itself, and a `part` of its outputs.
    """
    executable = cache(lambda: _compiled(traced))

    def run(*inputs):
        return jax.device_get(executable()(*inputs))

    return run, run, lambda *inputs: part(run(*inputs))


def in_float64(traced: Any, part: Callable[[Any], Any] = lambda outputs: outputs) -> tuple[Run, Run, Run]:
    """A float64 program as it is, with every operation rounded at random, and a `part` of its outputs alone."""
    tree = jax.tree.structure(traced.out_info)
    try:
        steps = Interpreted(traced.jaxpr)
    except CannotInterpret:
        executable, at_random = _compiled(traced), cache(lambda: _compiled(_jittered(traced)))

        def run(*inputs):
            return jax.device_get(executable(*inputs))

        return (
            run,
            lambda *inputs: jax.tree.unflatten(tree, jax.device_get(at_random()(*jax.tree.leaves(inputs)))),
            lambda *inputs: part(run(*inputs)),
        )
    places, part_tree = jax.tree.flatten(part(jax.tree.unflatten(tree, range(tree.num_leaves))))
    return (
        _interpreted(steps, tree),
        _interpreted(steps, tree, rounded_in_numpy),
        _interpreted(steps.only(places), part_tree),
    )


def _interpreted(steps: Interpreted, tree: Any, on_result: OnResult | None = None) -> Run:
    def run(*inputs):
        flat = jax.tree.leaves(inputs)
        if on_result is not None:
            flat = [on_result(v, i, "") for i, v in enumerate(flat)]
        with np.errstate(all="ignore"):
            return jax.tree.unflatten(tree, steps.run(flat, on_result))

    return run


def _compiled(traced: Any) -> Any:
    return traced.lower().compile(compiler_options=quick_compilation())


def _jittered(traced: Any) -> Any:
    inputs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in traced.jaxpr.in_avals]
    return jax.jit(jittered(jaxpr_as_fun(traced.jaxpr))).trace(*inputs)
