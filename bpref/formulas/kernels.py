"""What a convolution and its transpose ask of their channels, outputs, groups and kernel W."""

from typing import Any

from bpref.dtypes import require_floating
from bpref.formulas.hyperparameters import is_integer, require_size


def require_groups(who: str, features: Any, groups: Any) -> None:
    """Raise `ValueError` unless the outputs can be shared out in groups."""
    require_size(who, "groups", groups)
    if not is_integer(features) or features < 1 or features % groups:
        raise ValueError(f"{who}: features is {features!r}, expected a positive multiple of groups {groups}")


def channels_in_groups(who: str, x: Any, groups: int) -> int:
    """C, the number of channels of x; raises `ValueError` unless they can be shared out in groups."""
    C = x.shape[-1]
    if C == 0 or C % groups:
        raise ValueError(f"{who}: x has {C} channels in its last axis, expected a positive multiple of groups {groups}")
    return C


def require_kernel(who: str, x: Any, W: Any, channels: int) -> None:
    """Raise unless x is floating-point, of W's dtype, and has the number of channels that W expects."""
    require_floating(who, "x", x)
    if x.dtype != W.dtype:
        raise TypeError(f"{who}: x has dtype {x.dtype}, W has {W.dtype}; cast one to the other's")
    if x.shape[-1] != channels:
        raise ValueError(f"{who}: x has {x.shape[-1]} channels in its last axis, W expects {channels} (W: {W.shape})")
