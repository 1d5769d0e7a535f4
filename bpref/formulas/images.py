"""What every layer of images asks of its input before anything is computed."""

from typing import Any

from bpref.dtypes import require_floating


def require_images(who: str, argument: str, x: Any) -> None:
    """Raise unless x is (N, H, W, C) and floating-point, with at least one pixel in an image."""
    require_floating(who, argument, x)
    if len(x.shape) != 4:
        raise ValueError(f"{who}: {argument} has shape {x.shape}, expected (N, H, W, C)")
    if 0 in x.shape[1:3]:
        raise ValueError(f"{who}: {argument} has shape {x.shape}, expected at least one pixel in (H, W)")
