"""Pushing forward what is derived by hand: with the oracle, the only files that differentiate.

The tangent of a sweep is how its results change with its inputs. By hand it would be a second derivation of every
rule; so JAX makes it, by `jax.jvp` and nothing else: no backward is made by autodiff.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
from jaxtyping import PyTree

P = ParamSpec("P")
R = TypeVar("R")


def pushed_forward(
    f: Callable[..., PyTree], primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]
) -> tuple[PyTree, PyTree]:
    """f(*primals), and its tangent along `tangents`."""
    return jax.jvp(f, primals, tangents)


def with_tangents_of(plain: Callable[P, R], f: Callable[P, R]) -> Callable[P, R]:
    """`f`, which JAX cannot differentiate, such as a kernel; its tangents are those of `plain`, the same function.

    Only whoever differentiates a backward once more asks for them: nothing of `plain` is traced until then.
    """
    return _with_tangents_of(plain, jax.custom_jvp(wraps(plain)(f)))


def by_decision(f: Callable[..., R], surrogate: Callable[..., R]) -> Callable[..., R]:
    """`f`, with the tangents of another function, as estimators have it: what rounds is passed as if it did not.

    To the checker too its derivative is then the surrogate's. Nothing of that is computed until somebody asks.
    """

    @jax.custom_jvp
    def decided(*args):
        return f(*args)

    return _with_tangents_of(surrogate, decided)


BY_DECISION = f"decided at {__file__}:"
"""What JAX's programs say of the source of such a function, before the line."""


def _with_tangents_of(plain: Callable, f: jax.custom_jvp) -> Callable:
    @f.defjvp
    def push(primals, tangents):
        return f(*primals), pushed_forward(plain, primals, tangents)[1]

    return f
