"""Whether a layer was given the parameters that it draws itself: the same tree, and each array of the same shape."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from bpref.dtypes import described


def require_drawn(who: str, init: Callable[[Array, Any], Any], params: Any, x: Any) -> None:
    """Raise unless every parameter has the shape and dtype that `init` gives it for x; nothing is computed.

    Raises:
      ValueError: a parameter has another shape, is missing, or is one too many.
      TypeError: a parameter is no array, or of another dtype; a tuple of them is not of its own type.
    """
    x = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), x)
    # The functions themselves and no new ones that call them: JAX remembers the shapes that a function gives.
    _require_like(who, "", params, jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), x))


def _require_like(who: str, name: str, v: Any, expected: Any) -> None:
    what, because = f"{who}: {name or 'params'}", "as init gives for this x"
    if isinstance(expected, tuple):
        if type(v) is not type(expected) or len(v) != len(expected):
            raise TypeError(f"{what} is {described(v)}, expected {type(expected).__name__}, {because}")
        fields = getattr(expected, "_fields", range(len(expected)))
        for field, w, e in zip(fields, v, expected, strict=True):
            _require_like(who, f"{name}.{field}" if name else str(field), w, e)
        return
    if v is None and expected is None:
        return
    shape = None if expected is None else expected.shape
    if v is None:
        raise ValueError(f"{what} is None, expected shape {shape}, {because}")
    if not hasattr(v, "dtype"):
        raise TypeError(f"{what} is {described(v)}, expected {'None' if shape is None else 'an array'}, {because}")
    if expected is None or v.shape != shape:
        raise ValueError(f"{what} has shape {v.shape}, expected {shape}, {because}")
    if v.dtype != expected.dtype:
        raise TypeError(f"{what} has dtype {v.dtype}, expected x's, {expected.dtype}; cast one to the other's")
