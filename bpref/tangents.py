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
    of_f = jax.custom_jvp(wraps(plain)(f))

    @of_f.defjvp
    def push(primals, tangents):
        return of_f(*primals), pushed_forward(plain, primals, tangents)[1]

    return of_f
