"""remat: keep the input, make the rest again.

The cache of f is a function of (params, x), and params are given to the backward anyway: so keep x alone, and
run f's forward once more when its cache is needed. Memory falls from f's cache to the size of x, for one
more forward.

Outside a loop XLA sees both forwards in one program and merges them, so that nothing is saved; inside `scan`
the two are in different loops, and it pays. They stay apart where the second one waits for dy: so `apart` has it.
"""

from typing import NamedTuple

from jax import lax
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_flags
from bpref.layer import Layer, P, X, Y, require_layer


class RematCache(NamedTuple):
    x: PyTree


def remat(layer: Layer[P, X, Y, PyTree], apart: bool = False) -> Layer[P, X, Y, RematCache]:
    """The same function with `cache := x`; the backward runs the forward again.

    Args:
      layer: any layer.
      apart: whether the second forward waits for dy, so that XLA does not merge it with the first: for a layer outside
        of all loops, on a GPU or a TPU; a CPU's compiler gains nothing by it.

    Example:
      >>> block = bpref.serial(bpref.linear(3), bpref.tanh())
      >>> p = block.init(jax.random.key(0), X)
      >>> len(jax.tree.leaves(bpref.remat(block).forward(p, X)[1]))
      1

    Raises:
      TypeError: `layer` is no Layer.
      ValueError: `apart` is no flag.
    """
    require_layer("remat", "layer", layer)
    require_flags("remat", apart=apart)

    def forward(params, x):
        kept = x if layer.begin is None else x._replace(data=None)  # the backward is given the data again
        return layer.forward(params, x)[0], RematCache(kept)

    def backward(params, cache, dy):
        x, dy = lax.optimization_barrier((cache.x, dy)) if apart else (cache.x, dy)
        x = x if layer.begin is None else x._replace(data=dy[1])
        return layer.backward(params, layer.forward(params, x)[1], dy)

    return Layer(layer.init, forward, backward, "remat", (layer,), lambda part: remat(part, apart), ("",), layer.begin)
