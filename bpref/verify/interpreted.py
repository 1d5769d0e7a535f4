"""Kernels and callbacks where there is no device for them, or they take their own dtypes alone."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import jax

from bpref.verify.rewrite import all_equations

F = TypeVar("F", bound=Callable[..., Any])

OF_CALLBACKS = logging.getLogger("jax._src.callback")
"""Where JAX prints the traceback of a callback that fails, besides raising its error."""


def kernels_interpreted() -> AbstractContextManager:
    """A context in which Pallas kernels are traced with `interpret=True`, on a CPU, which cannot run them otherwise."""
    if "jax.experimental.pallas" not in sys.modules or jax.default_backend() != "cpu":
        return nullcontext()
    from jax.experimental.pallas import tpu

    # It is for kernels of any device; True stands for the interpreter that JAX can batch and compile.
    return tpu.force_tpu_interpret_mode(True)  # type: ignore[arg-type]


def ran_interpreted(f: Callable[..., Any], *specs: Any) -> tuple[str, ...]:
    """A note for a report if a Pallas kernel is in `f(*specs)` and there is no device that it could be compiled for."""
    if isinstance(kernels_interpreted(), nullcontext):
        return ()
    try:
        program = jax.make_jaxpr(f)(*specs)
    except Exception:  # what JAX cannot trace holds no kernel of Pallas
        return ()
    return (INTERPRETED,) if any(e.primitive.name == "pallas_call" for e in all_equations(program)) else ()


INTERPRETED = "a Pallas kernel in it ran interpreted, on a CPU: what a device's compiler makes of it was not seen"


@contextmanager
def callbacks_quiet() -> Iterator[None]:
    """A context in which a callback may be tried in a dtype that it refuses, and nothing is printed."""
    before, OF_CALLBACKS.disabled = OF_CALLBACKS.disabled, True
    try:
        yield
    finally:
        OF_CALLBACKS.disabled = before


def as_if_at_home(f: F) -> F:
    """`f`, run with kernels interpreted and callbacks quiet."""

    @wraps(f)
    def run(*args, **kwargs):
        with kernels_interpreted(), callbacks_quiet():
            return f(*args, **kwargs)

    return run  # type: ignore[return-value]
