"""reversible: a stack of couplings of two streams that keeps nothing but the output of the last one.

Forward, from x1[0], x2[0], for l = 1 ... L, where P[l] and Q[l] are f's and g's params:

    x1[l] = x1[l-1] + f(P[l], x2[l-1])
    x2[l] = x2[l-1] + g(Q[l], x1[l])

Each sum has one operand that is still there afterwards, so that the other can be found again, in reverse order:

    x2[l-1] = x2[l] - g(Q[l], x1[l])
    x1[l-1] = x1[l] - f(P[l], x2[l-1])

Differential: x1[l] acts by itself and through g, x2[l-1] by itself and through f. With g* and f* their backwards,

    dx1[l-1] = dx1[l] + g*(dx2[l])
    dx2[l-1] = dx2[l] + f*(dx1[l-1])

Cached: x1[L] and x2[L], however large L is, for one more forward of f and g at each of them. Both loops are a
`lax.scan`, the reverse one carrying the streams and their cotangents together.

Numerical care: what is found again differs from what was there by the rounding of L sums of each stream, and the
gradient is taken at what is found. That is a few ulps of the streams in float32. In half precision it is two digits:
let the streams be float32 there, and f and g cast what they are given.
"""

from typing import Any, NamedTuple

import jax
from jax import lax

from bpref.compose.parts import parts_of
from bpref.compose.residual import require_same_shapes
from bpref.layer import Layer
from bpref.loops import scan


class ReversibleCache(NamedTuple):
    y: Any


def reversible(f: Layer, g: Layer, length: int = 1) -> Layer:
    """`length` couplings `y1 = x1 + f(x2), y2 = x2 + g(y1)` in series, each with its own params; the cache is y.

    Args:
      f, g: layers whose output has their input's tree, shapes and dtypes, and that give the same when run again.
      length: the number of couplings L.

    Returns:
      A layer with params `(f's, g's)`, stacked along a new first axis of L, x the pair `(x1, x2)` and y of the same.

    Raises:
      TypeError: f or g is no layer, or has state; x is no pair.
      ValueError: `length` is not a positive integer; f or g changes its input's shapes.
    """
    parts_of("reversible", (f, g), {})
    if f.begin is not None or g.begin is not None:
        raise TypeError("reversible: a layer in it has state, and runs again in the backward; expected layers without")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"reversible: length is {length!r}, expected a positive integer")

    def plus(layer, p, x, to):
        """`to` plus the layer's output, and the layer's cache."""
        y, cache = layer.forward(p, x)
        require_same_shapes("reversible", layer, to, y)
        return jax.tree.map(lax.add, to, y), cache

    def less(layer, p, x, y):
        """What the layer's output was added to, and its cache."""
        z, cache = layer.forward(p, x)
        return jax.tree.map(lax.sub, y, z), cache

    def init(key, x):
        _require_pair(x)
        x1, x2 = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), tuple(x))
        of_f, of_g = (jax.random.split(k, length) for k in jax.random.split(key))
        return jax.vmap(lambda k: f.init(k, x2))(of_f), jax.vmap(lambda k: g.init(k, x1))(of_g)

    def forward(params, x):
        _require_pair(x)

        def body(x, slices):
            p, q = slices
            y1, _ = plus(f, p, x[1], x[0])
            y2, _ = plus(g, q, y1, x[1])
            return (y1, y2), None

        y, _ = scan(body, tuple(x), params, length)
        return y, ReversibleCache(y)

    def backward(params, cache, dy):
        def body(carry, slices):
            (y1, y2), (dy1, dy2) = carry
            p, q = slices
            x2, of_g = less(g, q, y1, y2)
            dq, d = g.backward(q, of_g, dy2)
            dx1 = jax.tree.map(lax.add, dy1, d)
            x1, of_f = less(f, p, x2, y1)
            dp, d = f.backward(p, of_f, dx1)
            dx2 = jax.tree.map(lax.add, dy2, d)
            return ((x1, x2), (dx1, dx2)), (dp, dq)

        (_, dx), dparams = scan(body, (cache.y, tuple(dy)), params, length, reverse=True)
        return dparams, dx

    return Layer(init, forward, backward, "reversible", (f, g), lambda f, g: reversible(f, g, length))


def _require_pair(x: Any) -> None:
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        came = f"a {type(x).__name__} of {len(x)}" if isinstance(x, (tuple, list)) else f"of type {type(x).__name__}"
        raise TypeError(f"reversible: x is {came}, expected a pair (x1, x2)")
