"""What every layer that works along one axis asks of its input before anything is computed."""

from typing import Any

from bpref.dtypes import require_floating


def require_axis(who: str, x: Any, axis: int, symbol: str = "C") -> int:
    """Which axis of x is meant, counted from the last: -1 is the last.

    Args:
      who: the layer, for messages.
      x: anything with a shape and a dtype.
      axis: counted from the first, or if negative from the last.
      symbol: what the derivation calls the size of that axis.

    Raises:
      TypeError: x is not floating-point.
      ValueError: x has no such axis, or nothing along it.
    """
    require_floating(who, "x", x)
    ndim = len(x.shape)
    if not -ndim <= axis < ndim:
        raise ValueError(f"{who}: x has shape {x.shape}, which has no axis {axis}")
    if x.shape[axis] == 0:
        raise ValueError(f"{who}: x has shape {x.shape}, expected at least one element {symbol} in axis {axis}")
    return axis if axis < 0 else axis - ndim
