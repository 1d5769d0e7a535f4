"""flops: how many operations on numbers a function does, counted in the program that it is traced to.

A product of matrices, or a convolution, of m numbers out of sums of n terms takes 2 m n; what puts numbers into another
order or shape takes none; anything else one for each number that it puts out. A loop's body counts as often as it is
known to run; of branches the longest counts.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr
from jaxtyping import PyTree

from bpref.programs import programs_in

REARRANGED = frozenset({"broadcast_in_dim", "copy", "expand_dims", "reshape", "rev", "squeeze", "transpose"})
"""Operations that compute no number."""


def flops(f: Callable[..., PyTree], *args: PyTree) -> int:
    """Of `f(*args)`; nothing is computed, and args may be specifications."""
    return flops_of(jax.make_jaxpr(f)(*args).jaxpr)


def flops_of(program: Jaxpr) -> int:
    """Of a jaxpr."""
    return sum(map(_of_equation, program.eqns))


def _of_equation(eqn: Any) -> int:
    inside = [flops_of(p.jaxpr) for p in programs_in(eqn)]
    if inside:
        return eqn.params.get("length", 1) * (max(inside) if "branches" in eqn.params else sum(inside))
    if eqn.primitive.name in REARRANGED:
        return 0
    size = sum(math.prod(v.aval.shape) for v in eqn.outvars)
    if eqn.primitive.name == "dot_general":
        left = eqn.invars[0].aval.shape
        return 2 * size * math.prod(left[axis] for axis in eqn.params["dimension_numbers"][0][0])
    if eqn.primitive.name == "conv_general_dilated":
        W = eqn.invars[1].aval.shape
        return 2 * size * math.prod(W) // max(1, W[eqn.params["dimension_numbers"].rhs_spec[0]])
    return size
