"""How every kernel here is launched: which form a platform has, and in what sizes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import PyTree

from bpref.dtypes import wide_dtype
from bpref.loops import made_to_vary, varies_along
from bpref.tangents import with_tangents_of

R = TypeVar("R")

IMPLEMENTATIONS = ("auto", "xla", "pallas")

PLATFORMS = ("cpu", "tpu", "cuda")
"""Where the kernels run: interpreted, by Mosaic, by Triton."""


def by_platform(f: Callable[..., PyTree], *args: PyTree, platforms: Sequence[str] = PLATFORMS) -> PyTree:
    """`f(platform, *args)`, of the platform that the program is compiled for."""
    return lax.platform_dependent(*args, **{platform: partial(f, platform) for platform in platforms})


def instead_of(
    plain: Callable[..., R],
    kernel: Callable[..., R],
    *args: PyTree,
    is_empty: bool,
    platforms: Sequence[str] = PLATFORMS,
) -> R:
    """`kernel(platform, *args)`, with the tangents of `plain(*args)`, the same function; `plain` where it is empty."""
    if is_empty:
        return plain(*args)
    return with_tangents_of(plain, lambda *args: by_platform(kernel, *args, platforms=platforms))(*args)


class Ref(Protocol):
    """What a kernel reads, and writes in place: a block of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, at: object) -> Array: ...
    def __setitem__(self, at: object, v: Array) -> None: ...


class Block(NamedTuple):
    """What one run of a kernel has of an array, or writes of one of this shape and dtype.

    Attributes:
      of: the array; of an output its shape and dtype.
      shape: of the block; `None` for an axis of which it is one entry, and has not.
      which: the block's number along each axis, of the run's along those of the grid.
    """

    of: PyTree
    shape: tuple[int | None, ...]
    which: Callable[..., tuple[Array | int, ...]]


def launch(
    platform: str,
    body: Callable[..., None],
    name: str,
    grid: tuple[int, ...],
    inputs: Sequence[Block],
    outputs: Sequence[Block],
    kept: Sequence[jax.ShapeDtypeStruct] = (),
    parallel: int = 0,
) -> list[Array]:
    """What `body` writes; it is called with references to its block of each input and output, and to what is kept.

    Args:
      grid: how many runs there are along each of its axes; on a TPU one after the other, the last axis first.
      kept: what stays where it is from one run to the next, on a TPU.
      parallel: along how many of the grid's first axes they may be in any order.
    """
    from jax.experimental import pallas as pl

    axes = frozenset[str]().union(*(varies_along(block.of) for block in inputs))
    given = [made_to_vary(block.of, axes) for block in inputs]
    varying = jax.typeof(given[0]).mat
    return pl.pallas_call(
        body,
        [jax.ShapeDtypeStruct(out.of.shape, out.of.dtype, manual_axis_type=varying) for out in outputs],
        grid=grid,
        in_specs=[pl.BlockSpec(block.shape, block.which) for block in inputs],
        out_specs=[pl.BlockSpec(block.shape, block.which) for block in outputs],
        scratch_shapes=[_kept(spec) for spec in kept],
        interpret=platform == "cpu",
        name=name,
        compiler_params=_options(platform, parallel, len(grid)),
    )(*given)


def _kept(spec: jax.ShapeDtypeStruct) -> Any:
    from jax.experimental.pallas import tpu

    return tpu.VMEM(spec.shape, spec.dtype)


ON_CHIP = 64 * 2**20
"""Bytes of a TPU's vector memory that a kernel may take: half of what a v5e to v6e has."""

LANES = 128
"""A TPU's registers are as wide: what has fewer features takes as much room."""

OF_A_TPU = ("float32", "bfloat16")


def on_one_tpu() -> bool:
    """Whether a kernel may be launched as it is: among several devices XLA does not divide it."""
    return jax.default_backend() == "tpu" and len(jax.devices()) == 1 and jax.sharding.get_abstract_mesh().empty


def _options(platform: str, parallel: int, axes: int) -> Any:
    if platform == "tpu":
        from jax.experimental.pallas import tpu

        order: Any = ("parallel",) * parallel + ("arbitrary",) * (axes - parallel)
        return tpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=ON_CHIP)
    if platform == "cuda":
        from jax.experimental.pallas import triton

        return triton.CompilerParams(num_warps=4, num_stages=2)
    return None


def product(a: Array, b: Array, of_a: int, of_b: int) -> Array:
    """Of two matrices, over one axis of each, summed in at least float32."""
    # What is narrow is multiplied without rounding as it is, and Mosaic refuses to be asked for more.
    precision = lax.Precision.DEFAULT if jnp.finfo(a.dtype).bits < 32 else None
    over = ((of_a,), (of_b,)), ((), ())
    return lax.dot_general(a, b, over, precision=precision, preferred_element_type=wide_dtype(a.dtype))


def power_of_two(n: int, least: int = 16) -> int:
    """The first that is not less than n, nor than `least`."""
    return max(least, 1 << (n - 1).bit_length())


def numbered(block: Array, size: int) -> object:
    """Rows block * size and following of what a reference refers to."""
    from jax.experimental import pallas as pl

    return pl.ds(pl.multiple_of(block * size, size), size)
