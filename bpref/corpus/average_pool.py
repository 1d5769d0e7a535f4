"""Average pooling along time, windows of 3 at stride 2, one padded step at either end that is not counted.

y_j = sum of x over window j / the number of real steps in it; each of those steps gets dy_j / that number.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent

WINDOW, STRIDE, PADDING = 3, 2, 1


def forward(x: Array) -> Array:
    """`(B, T, C) -> (B, (T - 1) // 2 + 1, C)`."""
    return _sum_windows(x) / _sum_windows(jnp.ones_like(x))


def backward(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (_to_padded(dy / _sum_windows(jnp.ones_like(x)), x.shape)[:, PADDING:-PADDING],)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """Time is long enough for the steps at the ends to be few."""
    return (rng.normal(size=(2, 23, 3)).astype(dtype),)


def _sum_windows(x: Array) -> Array:
    padded = jnp.pad(x, ((0, 0), (PADDING, PADDING), (0, 0)))
    starts = padded.shape[1] - WINDOW + 1
    return jnp.sum(jnp.stack([padded[:, i : i + starts : STRIDE] for i in range(WINDOW)]), axis=0)


def _to_padded(d: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of `_sum_windows` before the padding is cut off."""
    padded = jnp.zeros((shape[0], shape[1] + 2 * PADDING, shape[2]), d.dtype)
    for i in range(WINDOW):
        padded = padded.at[:, i : i + STRIDE * d.shape[1] : STRIDE].add(d)
    return padded


def _divide_by_the_window(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (_to_padded(dy / WINDOW, x.shape)[:, PADDING:-PADDING],)


def _keep_the_padding(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (_to_padded(dy / _sum_windows(jnp.ones_like(x)), x.shape)[:, : -2 * PADDING],)


def _windows_apart(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (jnp.repeat(dy / WINDOW, STRIDE, axis=1)[:, : x.shape[1]],)


DERIVATION = Derivation(
    "average_pool",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "windows at the ends are divided by the full size of a window",
            _divide_by_the_window,
            ("x",),
            "sparse",
            "pytorch/pytorch#198119 and tracel-ai/burn#5604: the forward counts real steps, the backward the window",
        ),
        Wrong(
            "the padding is cut off at the wrong end",
            _keep_the_padding,
            ("x",),
            "shifted",
            "a habit: the padded gradient is returned from its first step on",
        ),
        Wrong(
            "windows are taken to lie side by side",
            _windows_apart,
            ("x",),
            "unexplained",
            "a habit: dy is repeated stride times, which is right only where the stride is the window",
        ),
        Wrong(
            "returned in half precision",
            with_cotangent(backward, 0, lambda dx: dx.astype(jnp.float16)),
            ("x",),
            "dtype",
            "a habit of kernels for mixed precision: the buffer of the gradient has the compute dtype",
        ),
    ),
)
