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

Cached: x1[L] and x2[L], however large L is, for one more forward of f and g at each of them, and the state that f and g
began with where they have one, so that what runs again drops what it dropped. Both loops are a `lax.scan`, the reverse
one carrying the streams and their cotangents together.

Numerical care: what is found again differs from what was there by the rounding of L sums of each stream, and the
gradient is taken at what is found. That is a few ulps of the streams in float32. In half precision it is two digits:
let the streams be float32 there, and f and g cast what they are given.
"""

from typing import NamedTuple

import jax
from jax import lax
from jaxtyping import PyTree

from bpref.compose.parts import (
    P1,
    P2,
    added,
    as_input,
    at_the_start,
    begun,
    given_state,
    of_value,
    parts_of,
    pull,
    pull_each,
    run,
)
from bpref.compose.residual import require_same_shapes
from bpref.cotangents import with_zeros
from bpref.dtypes import came
from bpref.layer import Layer, With
from bpref.loops import scan


class ReversibleCache(NamedTuple):
    y: PyTree
    state: PyTree = ()


def reversible(
    f: Layer[P1, PyTree, PyTree, PyTree], g: Layer[P2, PyTree, PyTree, PyTree], length: int = 1
) -> Layer[tuple[P1, P2], tuple[PyTree, PyTree], tuple[PyTree, PyTree], ReversibleCache]:
    """`length` couplings `y1 = x1 + f(x2), y2 = x2 + g(y1)` in series, each with its own params.

    The cache is y, and the state that it began with.

    Args:
      f, g: layers whose output has their input's tree, shapes and dtypes, and that give the same when run again.
      length: the number of couplings L.

    Returns:
      A layer with params `(f's, g's)`, stacked along a new first axis of L, x the pair `(x1, x2)` and y of the same.

    Example:
      >>> layer = bpref.reversible(bpref.linear(2), bpref.linear(2), length=3)
      >>> p = layer.init(jax.random.key(0), (X, X))
      >>> p[0].W.shape
      (3, 2, 2)

    Raises:
      TypeError: f or g is no layer; x is no pair.
      ValueError: `length` is not a positive integer; f or g changes its input's shapes.
    """
    parts = parts_of("reversible", (f, g), {})
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"reversible: length is {length!r}, expected a positive integer")

    def plus(layer, p, x, to, beside):
        """`to` plus the layer's output, and the layer's next state."""
        y, _, after = run(layer, p, x, beside)
        require_same_shapes("reversible", layer, to, y)
        return jax.tree.map(lax.add, to, y), after

    def less(layer, p, x, y, beside):
        """What the layer's output was added to, and its cache."""
        z, cache, _ = run(layer, p, x, beside)
        return jax.tree.map(lax.sub, y, z), cache

    def begin_both(key, x):
        x, beside = at_the_start(jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), x))
        _require_pair(x)
        x1, x2 = x
        of_f, of_g = (jax.random.split(k, length) for k in jax.random.split(key))
        p, s = jax.vmap(lambda k: begun(f, k, x2, beside))(of_f)
        q, t = jax.vmap(lambda k: begun(g, k, x1, beside))(of_g)
        return (p, q), (s, t)

    def forward(params, x):
        x, (of_f, of_g) = parts.given("reversible", x)
        _require_pair(x)

        def body(x, slices):
            (p, q), (s, t) = slices
            y1, after_f = plus(f, p, x[1], x[0], of_f._replace(state=s))
            y2, after_g = plus(g, q, y1, x[1], of_g._replace(state=t))
            return (y1, y2), (after_f, after_g)

        states = of_f.state, of_g.state
        y, after = scan(body, tuple(x), (params, states), length)
        return given_state(parts.is_stateful, y, after), ReversibleCache(y, states)

    def backward(params, cache, dy):
        dy, data = of_value(parts.is_stateful, dy)

        def turn(carry, slices):
            (y1, y2), (dy1, dy2) = carry
            (p, q), (s, t) = slices
            x2, of_g = less(g, q, y1, y2, With(None, t, data))
            dq, d, by_g = pull(data, g, q, of_g, dy2)
            dx1 = added(dy1, d)
            x1, of_f = less(f, p, x2, y1, With(None, s, data))
            dp, d, by_f = pull(data, f, p, of_f, dx1)
            dx2 = added(dy2, d)
            return (dp, dq), ((x1, x2), (dx1, dx2)), added(by_g, by_f)

        start = cache.y, tuple(with_zeros(dy, cache.y))
        dparams, (_, dx), of_data = pull_each(turn, start, (params, cache.state), length, data, f.renews and g.renews)
        return dparams, as_input(parts.is_stateful, dx, of_data)

    init, begin = parts.stateful(begin_both)
    return Layer(init, forward, backward, "reversible", (f, g), lambda f, g: reversible(f, g, length), begin=begin)


def _require_pair(x: PyTree) -> None:
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise TypeError(f"reversible: x is {came(x)}, expected a pair (x1, x2)")
