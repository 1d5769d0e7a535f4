"""Convolution with stride 2 and padding 1: x (n, h, w, c), W (k, l, c, f), b (f,), y (n, h', w', f).

`y[n, p, q] = b + sum_ij xpad[n, 2p + i, 2q + j] W[i, j]`: the cross-correlation that libraries call convolution.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent

PAD, STRIDE = 1, 2
AROUND = ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0))


def window(i: int, j: int, y_shape: tuple, stride: int = STRIDE) -> tuple:
    """The padded pixels that W[i, j] meets, one for each pixel of y."""
    rows, columns = y_shape[1:3]
    return np.s_[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]


def forward(x, W, b):
    xpad = jnp.pad(x, AROUND)
    k, l = W.shape[:2]
    y_shape = (x.shape[0], *((n - s) // STRIDE + 1 for n, s in zip(xpad.shape[1:3], (k, l), strict=True)))
    return sum(xpad[window(i, j, y_shape)] @ W[i, j] for i in range(k) for j in range(l)) + b[None, None, None, :]


def backward(args: tuple, dy: Array, stride: int = STRIDE, flip: bool = False, top: int = PAD) -> tuple:
    """`stride` of the backward's windows, `flip` the kernel in dx, and `top`, the rows cut off above."""
    x, W, _ = args
    xpad = jnp.pad(x, AROUND)
    k, l = W.shape[:2]
    dxpad, dW = jnp.zeros_like(xpad), jnp.zeros_like(W)
    for i in range(k):
        for j in range(l):
            at = window(i, j, dy.shape, stride)
            of_x = W[k - 1 - i, l - 1 - j] if flip else W[i, j]
            dxpad = dxpad.at[at].add(dy @ of_x.T)
            dW = dW.at[i, j].set(jnp.einsum("npqc,npqf->cf", xpad[at], dy))
    h, w = x.shape[1:3]
    return dxpad[:, top : top + h, PAD : PAD + w], dW, dy.sum((0, 1, 2))


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((2, 6, 5, 3), (3, 2, 3, 4), (4,)))


def db_over_batch_only(args: tuple, dy: Array) -> tuple:
    dx, dW, _ = backward(args, dy)
    return dx, dW, dy.sum(0)


DERIVATION = Derivation(
    name="convolution",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the kernel rotated by 180 degrees in dx once too often",
            partial(backward, flip=True),
            ("x",),
            "unexplained",
            "community.deeplearning.ai, 'Should it have a rot180 on filter to calculate dA_prev?'",
        ),
        Wrong(
            "dW rotated by 180 degrees",
            with_cotangent(backward, 1, lambda dW: dW[::-1, ::-1]),
            ("W",),
            "shifted",
            "habit: a true convolution of x with dy, where the forward is a cross-correlation",
        ),
        Wrong(
            "the windows of the backward without the stride",
            partial(backward, stride=1),
            ("x", "W"),
            "unexplained",
            "Kulbear/deep-learning-coursera#34 and enggen/Deep-Learning-Coursera#7",
        ),
        Wrong(
            "the padding cut off one row too late, so that dx is one row too low",
            partial(backward, top=PAD - 1),
            ("x",),
            "shifted",
            "habit: the off-by-one of the padding that HomericIntelligence/Odyssey#3868 wants a test for",
        ),
        Wrong(
            "dx as large as the windows reach, which leaves out the last row",
            with_cotangent(backward, 0, lambda dx: dx[:, :-1]),
            ("x",),
            "structure",
            "torch/DEPRECEATED-torch7-distro#20: 31 x 31 where the input is 32 x 32",
        ),
        Wrong(
            "db summed over the batch, not over the pixels",
            db_over_batch_only,
            ("b",),
            "missing_sum",
            "ooples/AiDotNet.Tensors#234: a bias gradient that only reduces axis 0",
        ),
    ),
)
