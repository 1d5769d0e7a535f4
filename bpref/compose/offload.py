"""offload: keep the cache in the host's memory between forward and backward.

The cache of f is what the backward needs, and nothing else needs it until then: so it goes to the host's memory as soon
as it is there, and comes back before f's backward. The device's memory holds none of it in between, at the price of its
bytes going each way, which may happen while other layers compute.

The same numbers come back, and the gradient is the same to the last bit. Inside of `scan` each turn's cache goes and
comes by itself; outside of loops XLA may have several back before they are needed. Where a device has no memory of the
host's at its side nothing is moved; where it is the host, as a CPU is, XLA drops the moves.
"""

from typing import NamedTuple

import jax
from jax import lax
from jaxtyping import PyTree

from bpref.layer import Layer, P, X, Y, require_layer


class OffloadCache(NamedTuple):
    host: PyTree


def offload(layer: Layer[P, X, Y, PyTree]) -> Layer[P, X, Y, OffloadCache]:
    """The same function and gradient, its cache in the host's memory in between. `TypeError` for what is no Layer.

    Example:
      >>> block = bpref.residual(bpref.rms_norm(), bpref.linear(2))
      >>> network = bpref.scan(bpref.offload(block), 8)
    """
    require_layer("offload", "layer", layer)

    def forward(params, x):
        y, cache = layer.forward(params, x)
        return y, OffloadCache(_moved(cache, jax.memory.Space.Host))

    def backward(params, cache, dy):
        kept, dy = lax.optimization_barrier((cache.host, dy))  # else all caches may come back at once
        return layer.backward(params, _moved(kept, jax.memory.Space.Device), dy)

    return Layer(layer.init, forward, backward, "offload", (layer,), offload, ("",), layer.begin)


def _moved(cache: PyTree, to: object) -> PyTree:
    return jax.device_put(cache, to) if _has_host_memory() else cache


def _has_host_memory() -> bool:
    """Whether the devices that are computed on have memory of the host's beside their own."""
    return any("host" in memory.kind for memory in jax.devices()[0].addressable_memories())
