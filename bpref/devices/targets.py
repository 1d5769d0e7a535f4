"""The devices that can be compiled for, by name. None need be there: their compilers come from the package index.

A TPU's is in libtpu, which knows every generation and topology by name. A GPU's is in JAX's CUDA plugin, which has to
be told what the card is: the facts below are those of openxla/xla, under `xla/backends/gpu/target_config/specs`.
"""

import os
import re
from functools import cache
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from bpref.nearest import meant


class Card(NamedTuple):
    """What the compiler asks of a GPU.

    Attributes:
      name: as its driver says it.
      capability: of CUDA, major and minor.
      cores: streaming multiprocessors.
      memory, bandwidth, l2: bytes, bytes a second, bytes.
      clock: GHz.
      shared, shared_block: bytes of shared memory of a core, and of a block that asks for it.
      fpus: floating-point units of a core.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    memory: int
    bandwidth: int
    l2: int
    clock: float
    shared: int = 233472
    shared_block: int = 232448
    fpus: int = 128


CARDS: dict[str, Card] = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 85100068864, 2039040000000, 41943040, 1.41, 167936, 166912, fpus=64
    ),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 84942979072, 3352320000000, 52428800, 1.98),
    "h200": Card("NVIDIA H200 141GB HBM3e", (9, 0), 132, 151397597184, 4800000000000, 52428800, 1.98),
    "b200": Card("NVIDIA B200", (10, 0), 148, 191514411008, 7672320000000, 132644864, 1.965),
}
"""By target."""

TPUS = {"tpu-v5e": "v5e:2x2", "tpu-v5p": "v5p:2x2x1", "tpu-v6e": "v6e:2x2", "tpu-v7x": "tpu7x:2x2x1"}
"""By target: the smallest topology, that of one host, as libtpu names it."""

EXTRAS = {"tpu": ("aot-tpu", "libtpu"), "cuda": ("aot-cuda", "jax-cuda13-plugin")}
"""By platform: the extra that brings its compiler, and the package that has it."""

OF_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment variables that libtpu reads when it is loaded: it neither looks for a TPU then nor complains of none."""


class Target(NamedTuple):
    """A device, or many that are connected.

    Attributes:
      name: as it was asked for, such as "tpu-v5p:4x4x4".
      platform: "tpu" or "cuda".
      options: what its compiler is told.
      devices: one; or all of the topology, where one was named.
    """

    name: str
    platform: str
    options: dict[str, Any]
    devices: tuple[object, ...]


@cache
def target(name: str) -> Target:
    """The device of this name: "tpu-v5e", "h100", or with a topology "tpu-v5p:4x4x4", "h100:8".

    Without a topology it is one chip. A TPU's is that of its chips, x by y or x by y by z; a GPU's the cards of a host,
    or hosts by cards, "h100:2x8".

    Raises:
      ValueError: there is no such device or topology.
      ImportError: its compiler is not installed; the message says which extra brings it.
    """
    kind, *rest = name.split(":", 1)
    kind = meant("target", kind, [*TPUS, *CARDS])
    shape = rest[0] if rest else None
    if shape is not None and not re.fullmatch(r"\d+(x\d+)*", shape):
        raise ValueError(f"target {name}: the topology is {shape!r}, expected sizes such as 4x4")
    if kind in TPUS:
        devices = _tpu(name, TPUS[kind], shape)
        return Target(name, "tpu", {}, tuple(devices if shape else devices[:1]))
    return Target(name, "cuda", {"xla_gpu_autotune_level": 0}, tuple(_gpu(name, CARDS[kind], shape or "1")))


def _tpu(name: str, smallest: str, shape: str | None) -> list[object]:
    for variable, value in OF_LIBTPU.items():
        os.environ.setdefault(variable, value)
    topology = f"{smallest.split(':')[0]}:{shape}" if shape else smallest
    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"target {name}: {_first_line(error)}; such as {name.split(':')[0]}:4x4") from None
    except RuntimeError as error:
        raise _missing(name, "tpu") from error


def _gpu(name: str, card: Card, shape: str) -> list[object]:
    hosts, cards = (["1", *shape.split("x")])[-2:]
    if shape.count("x") > 1:
        raise ValueError(f"target {name}: the topology is {shape!r}, expected cards, or hosts by cards, such as 2x8")
    # Its libraries, which only running needs, are not looked for: of jax's extra for CUDA the compiler is enough.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        described = {"target_config": facts(card), "topology": f"1x{hosts}x{cards}"}
        return list(topologies.get_topology_desc(card.name, "cuda", **described).devices)
    except NotImplementedError as error:
        raise _missing(name, "cuda") from error


def facts(card: Card) -> str:
    """The card as the text of XLA's `GpuTargetConfigProto`."""
    major, minor = card.capability
    feature = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared}
  shared_memory_per_block_optin: {card.shared_block}
  core_count: {card.cores}
  fpus_per_core: {card.fpus}
  clock_rate_ghz: {card.clock}
  device_memory_size: {card.memory}
  memory_bandwidth: {card.bandwidth}
  l2_cache_size: {card.l2}
  cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "{card.name}"
"""


def _missing(name: str, platform: str) -> ImportError:
    extra, package = EXTRAS[platform]
    return ImportError(f'target {name}: its compiler is not installed ({package}): pip install "bpref[{extra}]"')


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
