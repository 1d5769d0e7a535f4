"""Where a value first stopped being a finite number."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.layer import Layer, With, leaf_paths, map_leaves
from bpref.train.step import is_a_pair


def non_finite_of(x: PyTree) -> str:
    """Which part of what an objective is given, `(X, y)` or `With` it, is not finite; empty where all is."""
    batch = x.x if isinstance(x, With) else x
    return next((f"{name} of the batch" for name, v in zip("Xy", batch, strict=True) if not _is_finite(v)), "")


def first_non_finite(J: Layer, params: PyTree, x: PyTree) -> str:
    """The first place, in the order of computation, with a NaN or an infinity: forward first, then backward.

    Args:
      J: an objective that does not update in its backward.
      params, x: the values to compute it at; `With` the state where J has one.

    Returns:
      Such as "the output of 2 linear"; leaves have their path in the network. If nothing is there, the
      values are finite and their squares are not: "the gradient's norm".
    """
    network, loss = J.parts if is_a_pair(J) else (J, None)
    paths = iter([*leaf_paths(network), *([] if loss is None else [loss.name])])
    places: list[str] = []

    def look(values: PyTree, place: str) -> None:
        if not _is_finite(values):
            places.append(place)

    def watched(leaf: Layer) -> Layer:
        path = next(paths)

        def forward(params, x):
            look(params, f"the parameters of {path}")
            y, cache = leaf.forward(params, x)
            look(y, f"the output of {path}")
            return y, cache

        def backward(params, cache, dy):
            dparams, dx = leaf.backward(params, cache, dy)
            look((dparams, dx), f"the gradient of {path}")
            return dparams, dx

        return leaf._replace(forward=forward, backward=backward)

    watching = map_leaves(watched, J)
    with jax.disable_jit(), np.errstate(all="ignore"):
        y, cache = watching.forward(params, x)
        one = jnp.ones_like(y if J.begin is None else y[0])
        watching.backward(params, cache, one if J.begin is None else (one, x.data))
    return places[0] if places else "the gradient's norm"


def _is_finite(values: PyTree) -> bool:
    return all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves(values) if jnp.issubdtype(v.dtype, jnp.floating))
