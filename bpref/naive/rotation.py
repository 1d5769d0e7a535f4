"""The rotation of RoPE as the matrix that it is, and the frequency of one pair at a time."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.dtypes import widen
from bpref.formulas.attention.rotations import Stretch


def frequency(pair: int, features: int, base: float, stretch: Stretch | None) -> float:
    """Radians for each position of a pair; how each way stretches, by wavelengths, in the positions of one turn."""
    if stretch is None:
        return base ** (-2 * pair / features)
    way, factor, length, slow, fast = stretch
    if way == "ntk":
        return (base * factor ** (features / max(features - 2, 1))) ** (-2 * pair / features)
    wavelength = 2 * math.pi * base ** (2 * pair / features)
    stretched = wavelength * factor
    if way == "linear":
        return 2 * math.pi / stretched
    if way == "llama3":
        fast = fast or 4.0
        if wavelength < length / fast:
            return 2 * math.pi / wavelength
        if wavelength > length / slow:
            return 2 * math.pi / stretched
        smooth = (length / wavelength - slow) / (fast - slow)
        return 2 * math.pi * ((1 - smooth) / stretched + smooth / wavelength)
    low, high = (
        features * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (fast or 32.0, slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), features - 1)
    ramp = min(max((pair - low) / max(high - low, 1e-3), 0.0), 1.0)
    return 2 * math.pi * (ramp / stretched + (1 - ramp) / wavelength)


def frequencies(features: int, base: float, stretch: Stretch | None) -> np.ndarray:
    """That of each of features / 2 pairs."""
    return np.array([frequency(pair, features, base, stretch) for pair in range(features // 2)])


def magnitude(stretch: Stretch | None) -> float:
    """What YaRN multiplies rotated features by (arXiv:2309.00071, equation 22)."""
    return 0.1 * math.log(stretch.factor) + 1.0 if stretch is not None and stretch.way == "yarn" else 1.0


def naive_rotation(
    x: Array, base: float, interleaved: bool = False, fraction: float = 1.0, stretch: Stretch | None = None
) -> Array:
    """R_t x_t for x of shape (*b, T, N, D), position t having a D x D matrix R_t."""
    T, _, D = x.shape[-3:]
    turned = round(fraction * D)
    i = np.arange(turned // 2)
    first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + turned // 2)
    angle, size = np.arange(T)[:, None] * frequencies(turned, base, stretch), magnitude(stretch)
    R = np.tile(np.eye(D), (T, 1, 1))
    R[:, first, first] = R[:, second, second] = size * np.cos(angle)
    R[:, second, first] = size * np.sin(angle)
    R[:, first, second] = -size * np.sin(angle)
    wide = widen(x)
    return jnp.einsum("...tnd,ted->...tne", wide, jnp.asarray(R, wide.dtype)).astype(x.dtype)


def turned_at(
    x: Array, positions: Array | None, interleaved: bool, fraction: float, base: float, stretch: Stretch | None
) -> Array:
    """R_t x_t for x of shape (*b, T, N, D) at positions (*b, T), as products of complex numbers of modulus c."""
    rotated = round(fraction * x.shape[-1])
    pairs = x[..., :rotated].reshape(*x.shape[:-1], *((rotated // 2, 2) if interleaved else (2, rotated // 2)))
    z = [widen(pairs[..., i] if interleaved else pairs[..., i, :]) for i in (0, 1)]
    frequency = frequencies(rotated, base, stretch)
    if positions is None:
        angle = jnp.asarray(np.arange(x.shape[-3])[:, None] * frequency, z[0].dtype)
    else:
        angle = positions.astype(z[0].dtype)[..., None] * jnp.broadcast_to(
            jnp.asarray(frequency, z[0].dtype), (*positions.shape, len(frequency))
        )
    turn = magnitude(stretch) * lax.complex(jnp.cos(angle), jnp.sin(angle))
    turned = lax.complex(*z) * jnp.broadcast_to(turn[..., None, :], z[0].shape)
    y = jnp.stack([turned.real, turned.imag], -1 if interleaved else -2).reshape(*x.shape[:-1], rotated)
    return jnp.concatenate([y.astype(x.dtype), x[..., rotated:]], -1)
