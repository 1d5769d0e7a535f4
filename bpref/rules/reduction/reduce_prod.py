"""reduce_prod: the product over some axes, with a derivative that is exact for any number of zeros.

Forward, with i over the n values of the reduced axes:

    y = prod_i x_i                                                        x's shape without the reduced axes

Differential, by the product rule: delta y = sum_i (prod over j != i of x_j) delta x_i, and

    dx_i = dy prod over j != i of x_j                                     x's shape

With one zero among the x the cotangent is that zero's alone; with two or more all of it is 0.

The textbook writes y / x_i for the product of the others, which is 0 / 0 at a zero, and wrong once the product of all
has left the range of numbers that the product of the others is still in. Here nothing is divided. Values are
multiplied in pairs, the pairs in pairs, and so on; going back down, the others of a value are its partner and the
others of its pair:

    a_i, b_i -> c_i = a_i b_i -> ...        others(a_i) = b_i others(c_i)       others(b_i) = a_i others(c_i)

which is n + n/2 + n/4 + ... products up and as many twice down, each of them of x alone: dy enters at the very end, or
rather at the top, since others(y) = 1 may as well be dy.

Cached: x. Every pair is made of it again; together they would be as large.

Numerical care: a relative error of about log2(n) roundings, none of them of a difference. Half precision is multiplied
in float32. Overflow and underflow are met only where a product of some of the others is itself out of range.
"""

import math

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.caches import InputCache
from bpref.formulas.joined import concatenated
from bpref.formulas.norm.reduced import Axis, numbered, require_axes, restored
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


def reduce_prod(axis: Axis = None, keepdims: bool = False) -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = the product of x over some axes.

    Args:
      axis: one axis, several, or None for all of them.
      keepdims: whether y keeps the reduced axes, with size 1.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. A product of nothing is 1.

    Raises:
      ValueError: x has no such axis, or an axis is named twice.
      TypeError: x is not floating-point.
    """
    who = "reduce_prod"
    require_flags(who, keepdims=keepdims)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        return cast(jnp.prod(widen(x), axes, keepdims=keepdims), x.dtype), InputCache(x)

    def backward(params, cache, dy):
        x = cache.x
        axes = numbered(axis, x.ndim)
        kept = tuple(a for a in range(x.ndim) if a not in axes)
        order = (*axes, *kept)
        in_rows = lax.transpose(widen(x), order)
        factors = in_rows.reshape(math.prod(x.shape[a] for a in axes), *(x.shape[a] for a in kept))
        of_all = lax.squeeze(restored(widen(dy), axes, keepdims), axes)[None]
        dx = _times_others(factors, of_all).reshape(in_rows.shape)
        return (), cast(lax.transpose(dx, tuple(order.index(a) for a in range(x.ndim))), x.dtype)

    return Layer(no_params, forward, backward, who)


def _times_others(x: Array, dy: Array) -> Array:
    """dy times, for each entry along the first axis, the product of all others along it."""
    n = x.shape[0]
    if n <= 1:
        return jnp.broadcast_to(dy, x.shape)
    half = n // 2
    a, b, odd = x[:half], x[half : 2 * half], x[2 * half :]
    others = _times_others(lax.concatenate([a * b, odd], 0), dy)
    of_pairs = others[:half]
    return concatenated(b * of_pairs, a * of_pairs, others[half:], axis=0)


def reference(params: tuple[()], x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return jnp.prod(x, axis, keepdims=keepdims)


def _of(axes: str, *points: float) -> Real:
    return Real(axes, -2.0, 2.0, points)


RULE = Rule(
    "reduce_prod",
    reduce_prod,
    reference,
    cases=(
        Case("last axis, one zero", _of("N d", 0.0), {"axis": -1}, timed={"N": 4096, "d": 256}),
        Case("several axes, kept", _of("N T d"), {"axis": (1, 2), "keepdims": True}),
        Case("all, two zeros", _of("d", 0.0, 0.0)),
    ),
    cite="Griewank and Walther, 'Evaluating derivatives' (2008), section 3.3: Speelpenning's product",
)
