"""What the layers of the form Z = A W^T + b share: their checks, their first weights, and products that add up wide."""

from collections.abc import Callable
from typing import overload

import jax
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.cotangents import Product, Total, is_unmade
from bpref.dtypes import cast, wide_dtype, widen


def unmade(dZ: Array, A: Array) -> PyTree:
    """What dW is made of."""
    return Product(dZ, A)


def total(dZ: Array, b: Array | None) -> PyTree:
    """What db is made of, where there is a b."""
    return None if b is None else Total(dZ)


def made(d: Array | Product | Total) -> Array:
    """dW or db, of what they are made of; any other array as it is."""
    if isinstance(d, Product):
        return cast(transposed_times(d.dZ, d.A), d.A.dtype)
    return bias_cotangent(d.dZ, d.dZ) if isinstance(d, Total) else d


def closed(opened: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The backward, given one whose dparams hold `Product` and `Total` in the places of W and b."""

    def backward(params, cache, dy):
        dparams, dx = opened(params, cache, dy)
        return jax.tree.map(made, dparams, is_leaf=is_unmade), dx

    return backward


def lecun_uniform(key: Array, shape: tuple[int, ...], fan_in: int, dtype: DTypeLike) -> Array:
    """Weights drawn uniformly with variance 1 / fan_in, which keeps the variance of what they multiply."""
    limit = (3 / fan_in) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def product(left: Array, right: Array, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """The matrix product over the contracted axes, in at least float32."""
    return lax.dot_general(left, right, (contract, ((), ())), preferred_element_type=wide_dtype(left.dtype))


def times_transposed(A: Array, W: Array) -> Array:
    """A W^T for A of shape (..., d) and W of shape (m, d), in at least float32."""
    return product(A, W, contract=((A.ndim - 1,), (1,)))


def times(dZ: Array, W: Array) -> Array:
    """dZ W for dZ of shape (..., m) and W of shape (m, d), in at least float32."""
    return product(dZ, W, contract=((dZ.ndim - 1,), (0,)))


def transposed_times(dZ: Array, A: Array) -> Array:
    """dZ^T A, the sum over all examples of their outer products: (..., m), (..., d) -> (m, d), at least float32."""
    examples = tuple(range(A.ndim - 1))
    return product(dZ, A, contract=(examples, examples))


def plus(Z: Array, b: Array | None) -> Array:
    """Z + b for every example, in Z's dtype."""
    return Z if b is None else lax.add(Z, lax.broadcast_in_dim(cast(b, Z.dtype), Z.shape, (Z.ndim - 1,)))


@overload
def bias_cotangent(dZ: Array, b: Array) -> Array: ...
@overload
def bias_cotangent(dZ: Array, b: None) -> None: ...
@overload
def bias_cotangent(dZ: Array, b: Array | None) -> Array | None: ...
def bias_cotangent(dZ: Array, b: Array | None) -> Array | None:
    """db, the sum of dZ over the examples, summed in at least float32."""
    return None if b is None else cast(lax.reduce_sum(widen(dZ), tuple(range(dZ.ndim - 1))), b.dtype)
