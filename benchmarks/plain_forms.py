"""The best plain form of a rule whose reference is deliberately naive or slow: what a user of JAX would write.

Each is of the case that is timed, `(params, x) -> y`, and as fast as is known on a CPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from benchmarks import plain_moves, plain_sequences


def sparsemax(params: Any, z: Array) -> Array:
    """Which classes are in the support is sorted out, and not differentiated."""
    falling = -jnp.sort(-lax.stop_gradient(z), -1)
    k = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)[None]
    size = jnp.sum(1 + k * falling > jnp.cumsum(falling, -1), -1, keepdims=True)
    inside = z >= jnp.take_along_axis(falling, size - 1, -1)
    tau = (jnp.sum(jnp.where(inside, z, 0), -1, keepdims=True) - 1) / size.astype(z.dtype)
    return jnp.maximum(z - tau, 0)


def causal_convolution(params: Any, x: Array) -> Array:
    """Depthwise: a few shifted products, whose backward is not XLA's of a convolution in groups."""
    T, window = x.shape[1], params.W.shape[1]
    padded = jnp.pad(x, ((0, 0), (window - 1, 0), (0, 0)))
    return sum(padded[:, k : k + T] * params.W[:, k, 0][None, None] for k in range(window)) + params.b[None, None]


def max_pool(params: Any, x: Array) -> Array:
    """Windows of 2 x 2 that do not overlap, whose backward needs no select-and-scatter."""
    N, H, W, C = x.shape
    x = x[:, : H // 2 * 2, : W // 2 * 2]
    return x.reshape(N, H // 2, 2, W // 2, 2, C).max((2, 4))


def pixel_shuffle(params: Any, x: Array, r: int = 2) -> Array:
    N, H, W, channels = x.shape
    C = channels // r**2
    return x.reshape(N, H, W, C, r, r).transpose(0, 1, 4, 2, 5, 3).reshape(N, H * r, W * r, C)


def straight_through(params: Any, x: Array) -> Array:
    """Five levels from -2 to 2."""
    surrogate = jnp.where(jnp.abs(x) > 2, 2 * jnp.sign(x), x)
    return surrogate + lax.stop_gradient(jnp.clip(jnp.floor(x + 0.5), -2, 2) - surrogate)


def maxout(params: Any, x: Array) -> Array:
    return jnp.maximum(*jnp.split(x, 2, -1))


def l2_normalize(params: Any, x: Array) -> Array:
    return x * lax.rsqrt(jnp.sum(x**2, -1, keepdims=True))


def absolute(params: Any, x: tuple[Array, Array]) -> Array:
    return jnp.mean(jnp.abs(x[0] - x[1]))


def huber(params: Any, x: tuple[Array, Array], delta: float = 2.5) -> Array:
    e = x[0] - x[1]
    size = jnp.abs(e)
    return jnp.mean(jnp.where(size <= delta, 0.5 * e**2, delta * (size - 0.5 * delta)))


def multiclass_hinge(params: Any, x: tuple[Array, Array]) -> Array:
    """The label's own term is the margin, 1."""
    z, label = x
    own = jnp.take_along_axis(z, label[:, None], -1)
    return (jnp.sum(jax.nn.relu(1 - own + z)) - len(z)) / z.size


def _cross_entropy(x: Array, t: Array) -> Array:
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))


def sigmoid_cross_entropy(params: Any, x: tuple[Array, Array]) -> Array:
    return jnp.mean(_cross_entropy(x[0], x[1].astype(x[0].dtype)))


def focal(params: Any, x: tuple[Array, Array], gamma: float = 1.5, alpha: float = 0.25) -> Array:
    z, t = x[0], x[1].astype(x[0].dtype)
    p = jax.nn.sigmoid(z)
    miss = p * (1 - t) + (1 - p) * t
    return jnp.mean((alpha * t + (1 - alpha) * (1 - t)) * miss**gamma * _cross_entropy(z, t))


def vae(params: Any, x: tuple[Array, ...]) -> Array:
    output, target, mu, log_var = x
    divergence = -0.5 * jnp.sum(1 + log_var - mu**2 - jnp.exp(log_var))
    return (jnp.sum(_cross_entropy(output, target)) + divergence) / len(output)


def sequence_cross_entropy(params: Any, x: tuple[Array, ...]) -> Array:
    logits, labels, lengths = x
    real = jnp.arange(labels.shape[1])[None] < lengths[:, None]
    terms = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(jnp.where(real, terms, 0)) / jnp.maximum(1, jnp.sum(real, dtype=terms.dtype))


def token_log_probability(params: Any, x: tuple[Array, Array]) -> Array:
    return -optax.softmax_cross_entropy_with_integer_labels(*x)


def fused_linear_cross_entropy(params: Any, x: tuple[Array, Array]) -> Array:
    h, labels = x
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(h @ params.W.T, labels))


def grouped_matmul(params: Any, x: tuple[Array, Array]) -> Array:
    return lax.ragged_dot(x[0], jnp.swapaxes(params.W, 1, 2), x[1])


def rotary_embedding(params: Any, x: Array) -> Array:
    T, half = x.shape[1], x.shape[-1] // 2
    angle = np.arange(T)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angle), x.dtype)[None, :, None] for f in (np.cos, np.sin))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


PLAIN: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        sparsemax, causal_convolution, max_pool, pixel_shuffle, straight_through, maxout, l2_normalize, absolute, huber,
        multiclass_hinge, sigmoid_cross_entropy, focal, vae, sequence_cross_entropy, token_log_probability,
        fused_linear_cross_entropy, grouped_matmul, rotary_embedding,
    )
} | plain_sequences.PLAIN | plain_moves.PLAIN  # fmt: skip
"""By rule."""
