"""Tokens of one device in slots of all experts, and the slots' way to the devices that hold the experts, and back.

Of P devices each has E experts, those from p E on, and sends each of the P E experts C rows, some of them zeros:

    (P E, C, d)  --all_to_all-->  (E, P C, d)     what the device's own experts get, from device 0, then from 1 ...

The inverse is the adjoint: each row goes from one device to another, and none is added to another.
"""

from functools import partial

from jax import Array, lax
from jaxtyping import Float, Int

from bpref.formulas.mixture.grouped_rows import Blocks, capacity_blocks, placed


def slots_of(chosen: Int[Array, "N k"], experts: int, capacity: int) -> Blocks:
    """`placed` in C slots of each expert, all of which there are, whether tokens are as many or not."""
    return placed(chosen, experts, partial(capacity_blocks, capacity=capacity))


def to_experts(rows: Float[Array, "PE C d"], axis: str) -> Float[Array, "E PC d"]:
    return lax.all_to_all(rows, axis, split_axis=0, concat_axis=1, tiled=True)


def from_experts(rows: Float[Array, "E PC d"], axis: str) -> Float[Array, "PE C d"]:
    return lax.all_to_all(rows, axis, split_axis=1, concat_axis=0, tiled=True)
