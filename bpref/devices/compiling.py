"""compile_for: a program compiled for a device that is not there, and what its compiler says of it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bpref.compose.flops import flops_of
from bpref.devices.program_text import traffic
from bpref.devices.targets import Target, target
from bpref.dtypes import described, require_arrays


class Compiled(NamedTuple):
    """What is known of a program without running it; bytes are those of one device.

    Attributes:
      temp: what the compiler allocates beside inputs and outputs, in bytes.
      arguments, outputs: the bytes of these.
      accessed: bytes read from and written to the device's memory, loops as often as they run.
      flops: operations on numbers of the program as it was written, of all devices together; see `fit_memory`.
      cycles: the compiler's own estimate, its operations one after the other; `None` where it gives none, as for GPUs.
      collectives: how many of each operation between devices are run, by name.
      loops_once: how many loops are counted once, since how often they run is not known.
      sent: the bytes that a device sends to others, by rings.
    """

    temp: int
    arguments: int
    outputs: int
    accessed: int
    flops: int
    cycles: int | None
    collectives: Mapping[str, int]
    loops_once: int
    sent: int = 0


def devices_of(name: str) -> tuple[object, ...]:
    """The devices of a target, to make a mesh of: `jax.sharding.Mesh(devices_of("tpu-v5e:4x4"), ("data",))`.

    None of them need be there. On a machine that has a TPU, use that first (`jax.devices()`): libtpu is loaded once.

    Args:
      name: such as "tpu-v5e" or "h100", one chip; or with a topology, "tpu-v5p:4x4x4", "h100:8" (cards) or "h100:2x8"
        (hosts by cards).

    Example:
      >>> len(bpref.devices_of("tpu-v5e:4x4"))
      16

    Raises:
      ValueError: there is no such device or topology; the message says what there is.
      ImportError: its compiler is not installed: `pip install "bpref[aot-tpu]"` or `"bpref[aot-cuda]"`.
    """
    return target(name).devices


def compile_for(name: str, f: Callable[..., PyTree], *args: PyTree) -> Compiled:
    """Compile `f(*args)` for a device, and say what it takes there. Nothing is run, and no such device is needed.

    Args:
      name: the target, as of `devices_of`.
      f: a function of arrays, without any state.
      *args: trees of arrays or `jax.ShapeDtypeStruct`s; one that has a sharding, over the target's devices, is laid out
        so, all others are whole on each device.

    Raises:
      ValueError, ImportError: as of `devices_of`; there is no array in `args`.
      TypeError: `f` is no function; something in `args` is no array.
      MemoryError: it does not fit into the device's memory.

    Example:
      >>> x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
      >>> bpref.compile_for("tpu-v5e", lambda x, y: x @ y, x, x).accessed
      6291456
    """
    who = "compile_for"
    if not callable(f):
        raise TypeError(f"{who}: f is {described(f)}, expected a function")
    require_arrays(who, args=args)
    if not jax.tree.leaves(args):
        raise ValueError(f"{who}: there is no array in args, expected one at least")
    chosen = target(name)
    traced = jax.jit(f).trace(*_placed(chosen, args))
    try:
        program = traced.lower().compile(compiler_options=chosen.options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{who}: {name}: {' '.join(str(error).split())}") from None
    memory = program.memory_analysis()
    temp, arguments, outputs = (getattr(memory, f"{what}_size_in_bytes") for what in ("temp", "argument", "output"))
    seen = traffic(str(program.as_text()))
    flops = flops_of(traced.jaxpr.jaxpr)
    sent = dict(seen.collectives), seen.loops_once, seen.sent
    return Compiled(temp, arguments, outputs, seen.bytes, flops, seen.cycles or None, *sent)


def _placed(chosen: Target, args: tuple[PyTree, ...]) -> PyTree:
    """Specifications of the arguments, each with a sharding."""
    whole = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(chosen.devices), ("devices",)), jax.sharding.PartitionSpec()
    )

    def placed(v):
        own = v.sharding if isinstance(v, jax.ShapeDtypeStruct) else None
        like = jax.eval_shape(lambda v: v, v)
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=own or whole, weak_type=like.weak_type)

    return jax.tree.map(placed, args)
