"""What a convolution and its transpose ask of their channels, outputs, groups and kernel W."""

from typing import Any

from bpref.checks.hyperparameters import is_integer, plain, require_size
from bpref.dtypes import require_array, require_floating
from bpref.formulas.tuples import require_dtype_of, require_shape


def require_groups(who: str, features: Any, groups: Any) -> tuple[int, int]:
    """Both as Python has them; raise `ValueError` unless the outputs can be shared out in groups."""
    groups = require_size(who, "groups", groups)
    if not is_integer(features) or features < 1 or features % groups:
        raise ValueError(f"{who}: features is {features!r}, expected a positive multiple of groups {groups}")
    return plain(features), groups


def channels_in_groups(who: str, x: Any, groups: int) -> int:
    """C, the number of channels of x; raises `ValueError` unless they can be shared out in groups."""
    C = x.shape[-1]
    if C == 0 or C % groups:
        raise ValueError(f"{who}: x has {C} channels in its last axis, expected a positive multiple of groups {groups}")
    return C


def require_bias_of_features(who: str, b: Any, W: Any, features: int) -> None:
    """Raise unless b is None, or has an entry for each of the outputs and W's dtype; nothing is broadcast."""
    if b is None:
        return
    require_array(who, "b", b)
    require_shape(who, "b", b, (features,), f"an entry for each of {features} features")
    require_dtype_of(who, "b", b, "W", W)


def require_kernel(who: str, x: Any, W: Any, expected: tuple[int, ...], groups: int, transposed: bool = False) -> None:
    """Raise unless W has x's floating-point dtype, and the shape that the layer and the channels C of x expect.

    Args:
      expected: `(F, *window, C/g)`, or `(C, *window, F/g)` of a transposed convolution.
    """
    require_floating(who, "x", x)
    require_array(who, "W", W)
    require_dtype_of(who, "x", x, "W", W)
    form, known = ("(C, *window, F/g)", slice(1, None)) if transposed else ("(F, *window, C/g)", slice(-1))
    if len(W.shape) != len(expected) or W.shape[known] != expected[known]:
        raise ValueError(f"{who}: W has shape {W.shape}, expected {form}: {expected}")
    channels = W.shape[0] if transposed else groups * W.shape[-1]
    if x.shape[-1] != channels:
        raise ValueError(f"{who}: x has {x.shape[-1]} channels in its last axis, W expects {channels} (W: {W.shape})")
