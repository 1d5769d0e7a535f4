"""A mesh of devices by its text, `data=4,model=2`: what its axes are called, and how many devices lie along each."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from bpref.nearest import require_known

DATA, SEQUENCE, MODEL, EXPERT = AXES = ("data", "sequence", "model", "expert")
"""Along `data` and `expert` lie examples, along `sequence` their positions, along `model` the features of one product;
parameters may lie along `data` (fully sharded), `model` and `expert`."""


class NotDivided(ValueError):
    """What is to be divided along a mesh cannot be."""


def mesh_of(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that the text describes, of all devices that there are.

    Args:
      text: axes and how many devices lie along each, as `data=4,model=2`; axes are data, sequence, model and expert.
      devices: those to take, in the place of `jax.devices()`; of `bpref.devices_of` they need not be there.

    Raises:
      ValueError: the text is none of a mesh, an axis is unknown or given twice, or their product is not the number of
        devices.

    Example:
      >>> bpref.mesh_of("data=1", jax.devices()[:1]).shape["data"]
      1
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (s.strip() for s in part.partition("="))
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh {text!r}: {part!r} is no axis, expected such as data=4 or data=4,model=2")
        require_known("axis of a mesh", axis, AXES)
        if axis in sizes:
            raise ValueError(f"mesh {text!r}: {axis} is given twice")
        sizes[axis] = int(size)
    product = math.prod(sizes.values())
    if product != len(devices):
        there = f"there is {len(devices)}" if len(devices) == 1 else f"there are {len(devices)}"
        raise ValueError(f"mesh {text!r} is of {product} devices, and {there}")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)
