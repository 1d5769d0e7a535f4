"""What a layer of several arrays asks of its input, a tuple, before anything is computed."""

from typing import Any

from jax import Array

from bpref.dtypes import as_array, came


def as_arrays(who: str, names: tuple[str, ...], x: Any) -> tuple[Array, ...]:
    """`x` as that many arrays; raises `TypeError` unless it is a tuple of them."""
    if not isinstance(x, (tuple, list)) or len(x) != len(names):
        raise TypeError(f"{who}: x is {came(x)}, expected a tuple ({', '.join(names)})")
    return tuple(as_array(who, name, v) for name, v in zip(names, x, strict=True))


def require_shape(who: str, name: str, v: Array, expected: tuple[int, ...], because: str) -> None:
    """Raise `ValueError` unless `v` has the expected shape; nothing is broadcast."""
    if v.shape != expected:
        raise ValueError(f"{who}: {name} has shape {v.shape}, expected {expected}, {because}")


def require_dtype_of(who: str, name: str, v: Array, first_name: str, first: Array) -> None:
    """Raise `TypeError` unless both have one dtype."""
    if v.dtype != first.dtype:
        raise TypeError(f"{who}: {name} has dtype {v.dtype}, {first_name} has {first.dtype}; cast one to the other's")


def require_like(who: str, name: str, v: Array, first_name: str, first: Array) -> None:
    """Raise `ValueError` unless both have one shape, `TypeError` unless they have one dtype."""
    require_shape(who, name, v, first.shape, f"as {first_name} has")
    require_dtype_of(who, name, v, first_name, first)
