"""stages: what all pipelines do, of the layers in a stage, of micro-batches and of what goes from device to device."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.compose.parts import is_like
from bpref.compose.scan import scan
from bpref.dtypes import wide_dtype
from bpref.layer import Layer, leaves


def require_separable(who: str, layer: Layer) -> None:
    """Raise unless micro-batches can go through the layer one by one."""
    for _, leaf in leaves(layer):
        if leaf.couples:
            raise ValueError(f"{who}: {leaf.name} takes {leaf.couples} of all examples at once, not in parts")


def stage_of(who: str, layer: Layer, length: int, axis: str) -> Layer:
    """The layers of one device, of `length` in series."""
    devices = lax.axis_size(axis)
    if length % devices:
        raise ValueError(f"{who}: length is {length}, expected a multiple of {devices} devices along {axis!r}")
    return scan(layer, length // devices)


def sums(who: str, layer: Layer, dparams: PyTree, params: PyTree) -> PyTree:
    """Zeros, to which what a backward gives for each micro-batch, of this form, is added; in at least float32."""
    if layer.renews or not is_like(dparams, params):
        raise ValueError(f"{who}: leaves put in the place of dparams what is none; expected what adds up over parts")
    return jax.tree.map(lambda d: jnp.zeros(d.shape, wide_dtype(d.dtype)), dparams)


def divided(who: str, M: int, x: PyTree) -> PyTree:
    """x in micro-batches, along a new first axis."""

    def parts(v):
        if not v.ndim or v.shape[0] % M:
            raise ValueError(f"{who}: x has shape {v.shape}, expected {M} micro-batches along its first axis")
        return v.reshape(M, v.shape[0] // M, *v.shape[1:])

    return jax.tree.map(parts, x)


def entry(stack: PyTree, i: Array | int) -> PyTree:
    """That of number i along the first axis, or the nearest there is."""
    return jax.tree.map(lambda v: v[jnp.clip(i, 0, len(v) - 1)], stack)


def where(which: Array, a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: jnp.where(which, u, v), a, b)


def sent(axis: str, step: int, v: PyTree) -> PyTree:
    """To the next device, or the one before, round the ring, where what comes to either end is not read."""
    P = lax.axis_size(axis)
    return lax.ppermute(v, axis, [(p, (p + step) % P) for p in range(P)])


def of_one(axis: str, is_it: Array, micro: PyTree) -> PyTree:
    """The micro-batches that one device has made, joined, on all."""

    def joined(v):
        return lax.psum(jnp.where(is_it, v, 0), axis).reshape(-1, *v.shape[2:])

    return jax.tree.map(joined, micro)
