"""Numbers of a narrower floating-point format, in a wider one: how far apart they are at a place, and the nearest.

With m bits behind the point and exponents from e on, two neighbours at x are apart by

    h = 2^(max(floor(log2 |x|), e) - m)

and the numbers of the format are the multiples of h. The power of 2 is found by comparisons with powers of 2 alone: no
bits are looked at and no dtype is cast to, so that it is the same in every dtype that x is computed in.

In microscaling (OCP MX v1.0) each block of 32 numbers v is s times numbers of the format, s a power of 2,

    s = 2^(floor(log2 max |v|) - e_max)         2^e_max the format's largest power of 2
"""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

SMALLEST = -126
"""h is no smaller than 2 to this: float32 has smaller numbers, but processors make zeros of them."""


def spacing(x: Array, dtype: DTypeLike) -> Array:
    """h, for x in at least float32; that of the largest exponent beyond it."""
    of = jnp.finfo(dtype)
    least = max(int(of.minexp), SMALLEST)
    return jnp.maximum(power_below(abs(x), least, int(of.maxexp) - 1) * 2.0 ** -int(of.nmant), 2.0**SMALLEST)


def power_below(size: Array, least: int, most: int) -> Array:
    """2^k, the largest power of 2 that is no larger than `size`, with k from `least` to `most`."""
    power = jnp.full_like(size, 2.0**least)
    for step in _halving(most - least):
        larger = power * 2.0**step
        power = jnp.where(larger <= size, larger, power)
    return power


def to_nearest(x: Array, dtype: DTypeLike) -> Array:
    """The format's nearest number, the even one of two; its largest for all beyond; what is not finite as it is."""
    h, largest = spacing(x, dtype), float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(h * jnp.round(x / h), -largest, largest), x)


def microscaled(x: Array, axis: int, dtype: DTypeLike, size: int = 32) -> Array:
    """The nearest numbers of blocks along an axis, each by its scale; the last block has what is left."""
    n = x.shape[axis]
    blocks = -(-n // size)
    config = [(0, blocks * size - n if i == axis else 0, 0) for i in range(x.ndim)]
    v = jnp.reshape(lax.pad(x, jnp.zeros((), x.dtype), config), (*x.shape[:axis], blocks, size, *x.shape[axis + 1 :]))
    e_max = int(jnp.finfo(dtype).maxexp) - 1
    largest = min(127 + e_max, int(jnp.finfo(x.dtype).maxexp) - 1)
    most = jnp.max(abs(v), axis + 1, keepdims=True)
    s = jnp.broadcast_to(power_below(most, SMALLEST + e_max, largest) * 2.0**-e_max, v.shape)
    of_blocks = jnp.reshape(s * to_nearest(v / s, dtype), (*x.shape[:axis], blocks * size, *x.shape[axis + 1 :]))
    return lax.slice_in_dim(of_blocks, 0, n, axis=axis)


def _halving(n: int) -> list[int]:
    """Steps, none above 64, of which some in this order make every number from 0 to n."""
    steps, step = [], 1 << max(n.bit_length() - 1, 0)
    while step:
        steps += [min(step, 64)] * max(step // 64, 1)
        step //= 2
    return steps
