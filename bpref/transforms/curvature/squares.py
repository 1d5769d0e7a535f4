"""squares: the squares of the examples' gradients, added up, without the gradients where a formula is known.

With g_i what example i adds to dP, `sum_i g_i^2`, number by number. For Z = A W^T + b of rows dW_i is an outer product,
whose square is one again:

    sum_i dW_i^2 = (dZ^2)^T A^2        sum_i db_i^2 = sum_i dZ_i^2

Of sequences, and of a convolution, of whose windows A_i is made, dW_i = dZ_i^T A_i is made and squared for one example
after the other. All other leaves are squared as they
come of `per_example_gradients`, so many at a time as weigh no more than the cache.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref import loops
from bpref.dtypes import widen
from bpref.layer import Layer
from bpref.rules.convolution.convolution import ConvolutionCache, ConvolutionParams
from bpref.rules.linear.linear import LinearCache, LinearParams
from bpref.transforms.per_example import PerExampleCache, as_sequences, transformed


def squares(who: str, leaf: Layer) -> Layer:
    """The leaf whose dparams are `sum_i g_i^2`, in at least float32."""
    each = transformed(who, leaf, squared, SQUARES)

    def backward(params, cache, dy):
        of_each, dx = each.backward(params, cache, dy)
        return summed(of_each) if isinstance(cache, PerExampleCache) else of_each, dx

    return each._replace(backward=backward)


def squared(g: PyTree) -> PyTree:
    return jax.tree.map(lambda v: jnp.abs(widen(v)) ** 2, g)


def summed(of_each: PyTree) -> PyTree:
    """The sum over the examples, which are in front."""
    return jax.tree.map(lambda v: jnp.sum(v, 0), of_each)


def _linear(leaf: Layer, params: LinearParams, cache: LinearCache, dZ: Array) -> LinearParams:
    """Of `linear`, the sum under an axis of one."""
    A, dZ = (as_sequences(widen(v)) for v in (cache.A, dZ))
    db = None if params.b is None else jnp.sum(jnp.sum(dZ, 1) ** 2, 0)[None]
    if A.shape[1] == 1:
        return LinearParams(jnp.einsum("ntk,ntj->kj", dZ**2, A**2)[None], db)

    def add(total, example):
        A, dZ = example
        return total + (dZ.T @ A) ** 2, None

    total, _ = loops.scan(add, jnp.zeros((dZ.shape[-1], A.shape[-1]), dZ.dtype), (A, dZ))
    return LinearParams(total[None], db)


def _convolution(leaf: Layer, params: ConvolutionParams, cache: ConvolutionCache, dy: Array) -> ConvolutionParams:
    """Of `convolution`, the sum under an axis of one."""
    opened = leaf.opened
    assert opened is not None

    def of_product(x, dy):
        dW = opened(params, ConvolutionCache(x), dy)[0].W
        return widen(dW.dZ), dW.A

    db = None if params.b is None else jnp.sum(jnp.sum(as_sequences(widen(dy)), 1) ** 2, 0)[None]
    if math.prod(dy.shape[1:-1]) == 1:
        dZ, A = of_product(cache.x, dy)
        total = jnp.einsum("nrgm,nrgk->gmk", dZ**2, A**2)
    else:
        shapes = jax.eval_shape(of_product, cache.x[:1], dy[:1])

        def add(total, example):
            dZ, A = of_product(*(v[None] for v in example))
            return total + jnp.einsum("nrgm,nrgk->gmk", dZ, A) ** 2, None

        zeros = jnp.zeros((*shapes[0].shape[2:], shapes[1].shape[-1]), shapes[1].dtype)
        total, _ = loops.scan(add, zeros, (cache.x, dy))
    return ConvolutionParams(total.reshape(1, *params.W.shape), db)


SQUARES = {(LinearParams, LinearCache): _linear, (ConvolutionParams, ConvolutionCache): _convolution}
"""As `NORMS` of per_example."""
