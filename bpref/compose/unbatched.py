"""unbatched: one example by itself, around a layer that takes a batch of them.

Forward: y = f(x[None])[0], a batch of one. The adjoint of an axis of length 1 that is added takes it away again, so
that dx = f*(dy[None])[0]. Nothing is cached beyond what f keeps.
"""

import jax
from jaxtyping import PyTree

from bpref.compose.laid_out import laid_out
from bpref.layer import C, Layer, P, X, Y


def unbatched(layer: Layer[P, X, Y, C]) -> Layer[P, X, Y, C]:
    """The layer given one example, `(H, W, C)` for `(N, H, W, C)`; y has no first axis either.

    x and y may be pytrees, each array without the axis of examples. Params and cache are the layer's own, and data that
    come beside x are as the layer takes them. To `per_example_norms` and its like it is a batch of one. For PyTorch's
    `(C, H, W)` it is `unbatched(channels_first(...))`.

    Example:
      >>> network = bpref.unbatched(bpref.convolution(8))
      >>> params = network.init(jax.random.key(0), jnp.ones((6, 4, 3)))
      >>> network.forward(params, jnp.ones((6, 4, 3)))[0].shape
      (6, 4, 8)

    Raises:
      TypeError: `layer` is no Layer.
      ValueError: at the call, y of a batch of one has no first axis of 1, as a mean has none.
    """

    def without_axis(tree: PyTree) -> PyTree:
        for v in jax.tree.leaves(tree):
            if v.shape[:1] != (1,):
                raise ValueError(f"unbatched: {layer.name} gives {v.dtype}{list(v.shape)}, expected (1, ...)")
        return jax.tree.map(lambda v: v[0], tree)

    return laid_out("unbatched", layer, _with_axis, without_axis, lambda x: x, unbatched)


def _with_axis(tree: PyTree) -> PyTree:
    """A first axis of 1 for each array; shapes alone where shapes are given."""

    def one(v):
        return jax.eval_shape(one, v) if isinstance(v, jax.ShapeDtypeStruct) else v[None]

    return jax.tree.map(one, tree)
