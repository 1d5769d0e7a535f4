"""The rules of precision that every layer follows: what is rejected, and where narrow numbers are widened."""

from numbers import Number
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree


def described(x: object) -> str:
    """What came in place of something else: `None`, `a list`, `an int`, `an array`, `a torch.Tensor`."""
    if is_array(x):
        return "an array"
    name = type(x).__name__
    if hasattr(x, "dtype"):
        name = f"{type(x).__module__.split('.')[0]}.{name}"
    return "None" if x is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def came(x: object) -> str:
    """What came in place of a tuple: as `described`, and of how many if it has no name."""
    return f"{described(x)} of {len(x)}" if isinstance(x, tuple | list) and type(x) in (tuple, list) else described(x)


def is_array(x: object) -> TypeGuard[Array]:
    """Whether `x` is an array or its specification: anything with a shape and a dtype that JAX knows."""
    if isinstance(x, (np.ndarray, jax.Array, jax.ShapeDtypeStruct)):
        return True
    dtype = getattr(x, "dtype", None)
    if dtype is None or not hasattr(x, "shape"):
        return False
    try:
        jnp.issubdtype(dtype, jnp.floating)
    except TypeError:  # another library's data type
        return False
    return True


def require_array(who: str, argument: str, x: object) -> None:
    """Raise `TypeError` unless `x` is an array or its specification, and not of another library."""
    if is_array(x):
        return
    advice = " of JAX or NumPy: convert it by jax.dlpack.from_dlpack" if hasattr(x, "dtype") else ""
    raise TypeError(f"{who}: {argument} is {described(x)}, expected an array{advice}")


def as_array(who: str, name: str, v: ArrayLike | None) -> Array:
    """`v`, an array or numbers, as an array; raises `TypeError` where it is neither."""
    try:
        if v is not None:
            return jnp.asarray(v)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{who}: {name} is {described(v)}, expected an array")


def require_arrays(who: str, **trees: PyTree) -> None:
    """Raise `TypeError` unless every leaf of every tree is an array, its specification, or a number."""
    for root, tree in trees.items():
        for path, v in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if not isinstance(v, Number):
                require_array(who, root + jax.tree_util.keystr(path), v)


def require_type(who: str, argument: str, v: object, expected: type) -> None:
    """Raise `TypeError` unless `v` is one of the named tuples `expected`."""
    if not isinstance(v, expected):
        raise TypeError(f"{who}: {argument} is {described(v)}, expected {expected.__name__}")


def require_floating(who: str, argument: str, x: Array) -> None:
    """Raise `TypeError` unless `x` holds real floating-point numbers (anything with a `dtype`)."""
    require_array(who, argument, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{who}: {argument} has dtype {x.dtype}, expected a floating-point dtype such as float32")


def require_integer(who: str, argument: str, x: Array) -> None:
    """Raise `TypeError` unless `x` holds integers."""
    require_array(who, argument, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{who}: {argument} has dtype {x.dtype}, expected an integer dtype such as int32")


def widen_integers(x: ArrayLike) -> Array:
    """Integers with a sign and of at least 32 bits: in them the size of an axis, a sum and -1 have room.

    What an unsigned dtype holds beyond these becomes the largest of them, which is beyond every axis too.
    """
    x = jnp.asarray(x)
    wide = jnp.dtype(jnp.int64 if x.dtype.itemsize == 8 else jnp.int32)
    if jnp.iinfo(x.dtype).max > jnp.iinfo(wide).max:
        x = jnp.minimum(x, jnp.iinfo(wide).max)
    return cast(x, wide)


def floating_dtype(who: str, argument: str, dtype: Any) -> np.dtype:
    """What `dtype`, a name, a type or a dtype of PyTorch's too, stands for.

    Raises:
      TypeError: it is no dtype of real floating-point numbers.
    """
    try:
        found = jnp.dtype(str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype)
    except TypeError:
        found = None
    if dtype is None or found is None or not jnp.issubdtype(found, jnp.floating):  # NumPy takes None for float64
        shown = dtype.__name__ if isinstance(dtype, type) else repr(dtype)
        raise TypeError(
            f'{who}: {argument} is {shown}, expected a floating-point dtype such as "float32" or jnp.bfloat16'
        )
    return found


def wide_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype in which values of `dtype` are computed with and summed: at least float32."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def cast(x: Array, dtype: DTypeLike) -> Array:
    """`x` in `dtype`; the same array, and nothing to trace, when it already is."""
    return x if x.dtype == dtype else x.astype(dtype)


def widen(x: Array) -> Array:
    """`x` in at least float32."""
    return cast(x, wide_dtype(x.dtype))
