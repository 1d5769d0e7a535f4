"""A layer whose positions come one chunk after another: what it has to remember of those before is its state.

With s_n what is remembered of the first n positions, of whatever size t a chunk is,

    y_n, ..., y_n+t-1 = f(x_n, ..., x_n+t-1; s_n)         s_n+t likewise         s_0 = start

are the positions n to n + t - 1 of y of the whole sequence. Nothing is differentiated: what is generated is not trained
on while it is generated.
"""

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from bpref.dtypes import cast, described
from bpref.layer import Layer, With


def decoder(
    leaf: Layer,
    start: Callable[[PyTree, PyTree], PyTree],
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
) -> Layer:
    """The leaf with what it remembers as its state; its params are the leaf's.

    Args:
      leaf: the layer as it is trained, whose init and name are the decoder's.
      start: `(params, x) -> state`, that before the first position, by the shapes of both alone.
      step: `(params, x, state) -> (y, state)`, of the next chunk.
    """

    def begin(key, x):
        x = x.x if isinstance(x, With) else x
        params = leaf.init(key, x)
        return params, start(params, x)

    def forward(params, x):
        if not isinstance(x, With):
            raise TypeError(f"{leaf.name}: x is {described(x)}, expected bpref.With(x, state)")
        expected = jax.eval_shape(start, params, x.x)
        if _shapes(x.state) != _shapes(expected):
            raise ValueError(
                f"{leaf.name}: state is {_shapes(x.state)[0]}, expected {_shapes(expected)[0]}, as bpref.begin gives"
            )
        y, after = step(params, x.x, x.state)
        return (y, jax.tree.map(lambda new, old: cast(new, old.dtype), after, x.state)), ()

    def backward(params, cache, dy):
        raise TypeError(f"{leaf.name}: it is decoding, and has no backward; expected the network before bpref.decoding")

    return Layer(lambda key, x: begin(key, x)[0], forward, backward, leaf.name, begin=begin)


def require_no_later(who: str, causal: bool) -> None:
    """Raise `ValueError` where a position sees later ones."""
    if not causal:
        raise ValueError(f"{who}: a position sees later ones, which are yet to come; expected causal attention")


def decoder_of(leaf: Layer, length: int) -> Layer:
    """What a leaf that has a decoding is, for so many positions; of what another one is made of."""
    assert leaf.decoding is not None, leaf.name
    return leaf.decoding(leaf, length)


def _shapes(state: PyTree) -> tuple[tuple, object]:
    leaves, tree = jax.tree.flatten(state)
    return tuple(getattr(v, "shape", ()) for v in leaves), tree
