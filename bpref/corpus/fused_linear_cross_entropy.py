"""Cross-entropy of `h W^T` against labels (n,), a mean over those that are not ignored: h (n, d), W (k, d).

With `D = (p - onehot) / n_kept`, its rows of ignored labels 0: `dh = dy D W`, `dW = dy D^T h`. A kernel makes both in
the forward, a chunk of rows at a time, for dy = 1, and has them scaled in the backward.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

IGNORED = -100


def forward(h, W, labels):
    kept = jnp.asarray(labels) != IGNORED
    picked = jnp.take_along_axis(jax.nn.log_softmax(h @ W.T), jnp.where(kept, labels, 0)[:, None], axis=1)[:, 0]
    return -jnp.where(kept, picked, 0).sum() / kept.sum().astype(h.dtype)


def backward(
    args: tuple, dy: Array, scaled: bool = True, all_counted: bool = False, masked: bool = True, rows: int = 0
) -> tuple:
    """`scaled`: dW too is multiplied by dy; `all_counted`: the mean is over all; `masked`: ignored rows of dh are 0;
    `rows`: dW is made of those after.
    """
    h, W, labels = args
    kept = jnp.asarray(labels) != IGNORED
    count = len(h) if all_counted else kept.sum().astype(h.dtype)
    of_all = (jax.nn.softmax(h @ W.T) - jax.nn.one_hot(labels, len(W), dtype=h.dtype)) / count
    D = jnp.where(kept[:, None], of_all, 0)
    dW = D[rows:].T @ h[rows:]
    return dy * (D if masked else of_all) @ W, dy * dW if scaled else dW, None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    ignored = np.concatenate([rng.permutation(7) < 2, [False, False]])
    labels = np.where(ignored, IGNORED, rng.integers(0, 8, 9))
    return rng.normal(size=(9, 4)).astype(dtype), rng.normal(size=(8, 4)).astype(dtype), labels.astype(np.int32)


DERIVATION = Derivation(
    "fused_linear_cross_entropy",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "dW is left as the forward has made it, for dy = 1",
            partial(backward, scaled=False),
            ("W",),
            "ignores_dy",
            "a habit of losses whose gradients are made in the forward: one of them is not scaled, and the last thing "
            "that is computed has dy = 1",
        ),
        Wrong(
            "ignored labels are counted in the mean",
            partial(backward, all_counted=True),
            ("h", "W"),
            "factor",
            "a habit: the mean is over the rows of the chunk, the forward's over the labels that count",
        ),
        Wrong(
            "ignored labels are not masked in dh",
            partial(backward, masked=False),
            ("h",),
            "sparse",
            "a habit: -100 has no one-hot row, and p alone is left; in pytorch/pytorch#73205 the loss lacks this mask",
        ),
        Wrong(
            "dW of the last chunk alone",
            partial(backward, rows=7),
            ("W",),
            "unexplained",
            "a habit: = for += where chunks are accumulated, as linkedin/Liger-Kernel#1222 does with copy_ and add_",
        ),
    ),
)
