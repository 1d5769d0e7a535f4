"""What a layer asks of its hyperparameters, when it is made: each check raises `ValueError`, which NaN never passes.

Python's numbers and NumPy's scalars are numbers alike; booleans, strings and arrays are none. What a check returns is
the number as Python has it: the dtype of a scalar of NumPy would be promoted with that of x.
"""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import PyTree


def require_positive(who: str, name: str, v: object) -> float:
    """`v` as Python has it; raise unless it is a positive number."""
    if not is_number(v) or not 0 < v < math.inf:
        raise ValueError(f"{who}: {name} is {v!r}, expected a positive number")
    return plain(v)


def require_positive_or_none(who: str, name: str, v: object) -> float | None:
    """`v` as Python has it; raise unless it is `None` or a positive number."""
    if v is not None and (not is_number(v) or not 0 < v < math.inf):
        raise ValueError(f"{who}: {name} is {v!r}, expected a positive number or None")
    return plain(v)


def require_non_negative(who: str, name: str, v: object) -> float:
    """`v` as Python has it; raise unless it is a number of at least 0."""
    if not is_number(v) or not 0 <= v < math.inf:
        raise ValueError(f"{who}: {name} is {v!r}, expected a number of at least 0")
    return plain(v)


def require_finite(who: str, name: str, v: object) -> float:
    """`v` as Python has it; raise unless it is a number, neither infinite nor NaN."""
    if not is_number(v) or not math.isfinite(v):
        raise ValueError(f"{who}: {name} is {v!r}, expected a finite number")
    return plain(v)


def require_share(who: str, name: str, v: object) -> float:
    """`v` as Python has it; raise unless it is a number from 0 to 1."""
    if not is_number(v) or not 0 <= v <= 1:
        raise ValueError(f"{who}: {name} is {v!r}, expected a number from 0 to 1")
    return plain(v)


def require_size(who: str, name: str, n: object) -> int:
    """`n` as Python has it; raise unless it, such as the size of an axis, is a positive integer."""
    if not is_integer(n) or n < 1:
        raise ValueError(f"{who}: {name} is {n!r}, expected a positive integer")
    return plain(n)


def require_sizes(who: str, **sizes: object) -> tuple[int, ...]:
    """The same of several, in order."""
    return tuple(require_size(who, name, n) for name, n in sizes.items())


def require_axes(who: str, axes: object) -> tuple[int, ...]:
    """`axes` as Python has them; raise unless they are the sizes of some axes, or of none."""
    if not isinstance(axes, tuple | list) or not all(is_integer(n) and n > 0 for n in axes):
        raise ValueError(f"{who}: axes is {axes!r}, expected a tuple of positive integers")
    return tuple(map(plain, axes))


def require_count(who: str, name: str, n: object) -> int:
    """`n` as Python has it; raise unless it, such as an index, is an integer of at least 0."""
    if not is_integer(n) or n < 0:
        raise ValueError(f"{who}: {name} is {n!r}, expected an integer of at least 0")
    return plain(n)


def require_integer_or_none(who: str, name: str, n: object) -> int | None:
    """`n` as Python has it; raise unless it, such as a label that does not count, is `None` or an integer."""
    if n is not None and not is_integer(n):
        raise ValueError(f"{who}: {name} is {n!r}, expected an integer or None")
    return plain(n)


def require_choice(who: str, name: str, v: object, choices: Iterable[str]) -> str:
    """`v`; raise unless it is one of the choices."""
    if not isinstance(v, str) or v not in choices:
        raise ValueError(f"{who}: {name} is {v!r}, expected one of {', '.join(choices)}")
    return v


def require_flags(who: str, **flags: object) -> None:
    """Raise unless every one of `flags` is True or False: a string that is no empty one counts as true elsewhere."""
    for name, v in flags.items():
        if not isinstance(v, (bool, np.bool_)):
            raise ValueError(f"{who}: {name} is {v!r}, expected True or False")


def require_head(
    who: str,
    vocabulary: int,
    bias: bool,
    temperature: float = 1.0,
    ignored: int | None = None,
    soft_cap: float | None = None,
    block: int = 1,
) -> tuple[int, bool, float, int | None, float | None, int]:
    """Those of a linear layer whose logits a loss makes by itself, as Python has them."""
    require_flags(who, bias=bias)
    vocabulary, block = require_sizes(who, vocabulary=vocabulary, block=block)
    temperature = require_positive(who, "temperature", temperature)
    ignored = require_integer_or_none(who, "ignored", ignored)
    soft_cap = require_positive_or_none(who, "soft_cap", soft_cap)
    return vocabulary, bias, temperature, ignored, soft_cap, block


V = TypeVar("V")


def plain(v: V) -> V:
    """A scalar of NumPy as a number of Python, whose type is weak; anything else as it is."""
    return v.item() if isinstance(v, np.generic) else v  # type: ignore[return-value]  # NumPy does not say of what type item() is


def is_number(v: object) -> TypeGuard[float]:
    """Whether `v` is a real number, of a dtype such as bfloat16 too; a boolean is none."""
    if isinstance(v, Real):
        return not isinstance(v, bool)
    return isinstance(v, np.generic) and jnp.issubdtype(v.dtype, jnp.floating)


def as_numbers(v: PyTree) -> Array | np.ndarray | None:
    """`v`, a number or an array of them, in float64; `None` for what is neither. What JAX traces stays traced."""
    traced = any(map(is_traced, jax.tree.leaves(v)))
    try:
        found = jnp.asarray(v) if traced else np.asarray(v)
    except (TypeError, ValueError):
        return None
    if not (jnp.issubdtype(found.dtype, jnp.integer) or jnp.issubdtype(found.dtype, jnp.floating)):
        return None
    return found.astype(jnp.promote_types(found.dtype, jnp.float32) if traced else np.float64)


def is_traced(v: object) -> bool:
    """Whether `v` has no values yet."""
    return isinstance(v, Tracer)


def fails(condition: ArrayLike) -> bool:
    """Whether an array of booleans is known to hold a False: one without values is taken at its word."""
    return not is_traced(condition) and not np.all(condition)


def is_integer(n: object) -> TypeGuard[int]:
    """Whether `n` is an integer; a boolean is none."""
    return isinstance(n, Integral) and not isinstance(n, bool)
