"""cast_params: parameters stored in one dtype, used in another.

Forward: f(cast(P), x). Rounding to a narrower dtype has no derivative worth having; the convention of
mixed-precision training is to pass the cotangent straight through it, so dP is f's own dP, cast back to P's
dtype. The update then happens in the wide dtype, where small steps are not lost.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.dtypes import cast, floating_dtype
from bpref.layer import Layer, require_layer


def cast_params(dtype: DTypeLike, stored: DTypeLike = jnp.float32) -> Callable[[Layer], Layer]:
    """A leaf transformation, for `map_leaves`: parameters kept in `stored`, computed with in `dtype`.

    Args:
      dtype: what the layer computes in, such as bfloat16; its input must come in this dtype.
      stored: what floating-point parameters and their cotangents are held in.

    Example:
      >>> network = bpref.map_leaves(bpref.cast_params(jnp.bfloat16), bpref.linear(3))
      >>> params = network.init(jax.random.key(0), X.astype(jnp.bfloat16))
      >>> y, dparams, _ = bpref.backpropagate(network, params, X.astype(jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16))
      >>> y.dtype, dparams.W.dtype
      (dtype(bfloat16), dtype('float32'))

    Raises:
      TypeError: either is no dtype of real floating-point numbers.
    """
    dtype, stored = floating_dtype("cast_params", "dtype", dtype), floating_dtype("cast_params", "stored", stored)

    def transform(leaf: Layer) -> Layer:
        require_layer("cast_params", "leaf", leaf)

        def widened(x):
            return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, _recast(v.dtype, dtype, stored)), x)

        def forward(params, x):
            return leaf.forward(_cast(params, stored, dtype), x)

        def backward(params, cache, dy):
            dparams, dx = leaf.backward(_cast(params, stored, dtype), cache, dy)
            return _cast(dparams, dtype, stored), dx

        of_stateful, decoding = leaf.begin, leaf.decoding
        begin = None if of_stateful is None else lambda key, x: of_stateful(key, widened(x))
        return leaf._replace(
            init=lambda key, x: leaf.init(key, widened(x)),
            forward=forward,
            backward=backward,
            begin=begin,
            evaluating=None if leaf.evaluating is None else transform(leaf.evaluating),
            decoding=decoding and (lambda _, length: transform(decoding(leaf, length))),
        )

    return transform


def _cast(tree: PyTree, source: DTypeLike, target: DTypeLike) -> PyTree:
    """Arrays of the dtype `source` in `target`; any other, as when all is verified in float64, as it is."""
    return jax.tree.map(lambda v: cast(v, target) if v.dtype == source else v, tree)


def _recast(dtype: DTypeLike, narrow: DTypeLike, wide: DTypeLike) -> DTypeLike:
    return wide if dtype == jnp.dtype(narrow) else dtype
