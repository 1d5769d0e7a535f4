"""What the layers of the form Z = A W^T + b share: their checks, their first weights, and products that add up wide."""

from typing import Any, overload

import jax
from jax import Array, lax

from bpref.dtypes import cast, require_array, require_floating, wide_dtype, widen
from bpref.formulas.tuples import require_dtype_of


def require_input(who: str, x: Any, argument: str = "x") -> int:
    """The number d of features in the last axis of x, an array or its specification; at `init`.

    Raises:
      TypeError: x is not floating-point.
      ValueError: there is no such axis, or nothing in it.
    """
    require_floating(who, argument, x)
    if len(x.shape) == 0 or x.shape[-1] == 0:
        raise ValueError(f"{who}: {argument} has shape {x.shape}, expected (..., d) with at least one feature d")
    return x.shape[-1]


def require_fit(who: str, W: Any, A: Any, weight: str = "W", argument: str = "x") -> None:
    """Raise unless W is a matrix (m, d), and A of shape (..., d) can be multiplied by its transpose."""
    require_floating(who, argument, A)
    require_weight(who, W, "(m, d)", weight)
    require_dtype_of(who, argument, A, weight, W)
    expected = f"{weight} expects {W.shape[1]}"
    if A.ndim == 0:
        raise ValueError(f"{who}: {argument} is a scalar, {expected} features in its last axis ({weight}: {W.shape})")
    if A.shape[-1] != W.shape[1]:
        raise ValueError(
            f"{who}: {argument} has {A.shape[-1]} features in its last axis, {expected} ({weight}: {W.shape})"
        )


def require_weight(who: str, W: Any, form: str, weight: str = "W") -> None:
    """Raise unless W is an array with as many axes as its form has, such as `(m, d)`."""
    require_array(who, weight, W)
    if len(W.shape) != form.count(",") + 1:
        raise ValueError(f"{who}: {weight} has shape {W.shape}, expected {form}")


def require_rows(who: str, W: Any, rows: int, weight: str = "W") -> None:
    """Raise unless W (m, ...) has as many rows as the layer was made for."""
    if W.shape[0] != rows:
        raise ValueError(
            f"{who}: {weight} has shape {W.shape}, expected {(rows, *W.shape[1:])}, {rows} rows by the layer's features"
        )


def require_bias(who: str, b: Any, W: Any, weight: str = "W", bias: str = "b") -> None:
    """Raise unless b is None, or has an entry for each row of W (m, ...) and W's dtype; nothing is broadcast."""
    if b is None:
        return
    require_array(who, bias, b)
    if b.shape != W.shape[:1]:
        raise ValueError(
            f"{who}: {bias} has shape {b.shape}, expected {W.shape[:1]}, an entry for each row of {weight} "
            f"({weight}: {W.shape})"
        )
    require_dtype_of(who, bias, b, weight, W)


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
