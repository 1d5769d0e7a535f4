"""The arrays of a tree by name, as files, options and rules of layouts call them: `blocks.attention.W_o`, `0.b`."""

import jax
from jax import Array
from jax.tree_util import KeyPath
from jaxtyping import PyTree


def name_of(path: KeyPath) -> str:
    """A path of `jax.tree_util` as one name."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def flat_names(params: PyTree) -> dict[str, Array]:
    """The arrays of a tree by their place in it, such as `0.W` and `0.b`."""
    return {name_of(path): p for path, p in jax.tree_util.tree_flatten_with_path(params)[0]}
