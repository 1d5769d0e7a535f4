"""direction: a tree beside the gradient, whose product with a matrix of second derivatives is asked for."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def require_direction(who: str, v: PyTree, dparams: PyTree) -> None:
    """Raise `ValueError` unless v has the tree, shapes and dtypes of dparams, which may be specifications."""
    expected, came = jax.tree.structure(dparams), jax.tree.structure(v)
    if came != expected:
        raise ValueError(f"{who}: v has the tree {came}, expected that of dparams, {expected}")
    for (path, d), u in zip(jax.tree_util.tree_flatten_with_path(dparams)[0], jax.tree.leaves(v), strict=True):
        types = [f"{w.dtype}{list(w.shape)}" for w in (jnp.asarray(u), d)]
        if types[0] != types[1]:
            raise ValueError(f"{who}: v{jax.tree_util.keystr(path)} is {types[0]}, expected {types[1]} as in dparams")
