"""What a layer asks of its hyperparameters, when it is made: each check raises `ValueError`, which NaN never passes."""

import math
from typing import Any


def require_positive(who: str, name: str, v: float) -> None:
    """Raise unless `v` is a positive number."""
    if not 0 < v < math.inf:
        raise ValueError(f"{who}: {name} is {v!r}, expected a positive number")


def require_non_negative(who: str, name: str, v: float) -> None:
    """Raise unless `v` is a number of at least 0."""
    if not 0 <= v < math.inf:
        raise ValueError(f"{who}: {name} is {v!r}, expected a number of at least 0")


def require_share(who: str, name: str, v: float) -> None:
    """Raise unless `v` is a number from 0 to 1."""
    if not 0 <= v <= 1:
        raise ValueError(f"{who}: {name} is {v!r}, expected a number from 0 to 1")


def require_size(who: str, name: str, n: Any) -> None:
    """Raise unless `n`, such as the size of an axis, is a positive integer."""
    if not is_integer(n) or n < 1:
        raise ValueError(f"{who}: {name} is {n!r}, expected a positive integer")


def require_count(who: str, name: str, n: Any) -> None:
    """Raise unless `n`, such as an index, is an integer of at least 0."""
    if not is_integer(n) or n < 0:
        raise ValueError(f"{who}: {name} is {n!r}, expected an integer of at least 0")


def is_integer(n: Any) -> bool:
    """Whether `n` is an integer; a boolean is none."""
    return isinstance(n, int) and not isinstance(n, bool)
