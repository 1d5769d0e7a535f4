"""What a convolution and its transpose ask of their channels, outputs and groups."""

from jax import Array

from bpref.checks.hyperparameters import is_integer, plain, require_size


def require_groups(who: str, features: int, groups: int) -> tuple[int, int]:
    """Both as Python has them; raise `ValueError` unless the outputs can be shared out in groups."""
    groups = require_size(who, "groups", groups)
    if not is_integer(features) or features < 1 or features % groups:
        raise ValueError(f"{who}: features is {features!r}, expected a positive multiple of groups {groups}")
    return plain(features), groups


def channels_in_groups(who: str, x: Array, groups: int) -> int:
    """C, the number of channels of x; raises `ValueError` unless they can be shared out in groups."""
    C = x.shape[-1]
    if C % groups:
        raise ValueError(f"{who}: x has {C} channels in its last axis, expected a positive multiple of groups {groups}")
    return C
