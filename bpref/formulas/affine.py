"""What the layers of the form Z = A W^T + b share: their checks, their first weights, and products that add up wide."""

from typing import Any, overload

import jax
from jax import Array, lax

from bpref.dtypes import cast, wide_dtype, widen


def lecun_uniform(key: Any, shape: tuple[int, ...], fan_in: int, dtype: Any) -> Array:
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
