"""A dense layer: `y = x W^T + b`, with x (n, d), W (d, d) square, b (d,)."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(x, W, b):
    return x @ W.T + b[None, :]


def backward(args: tuple, dy: Array, W_as_given: bool = True) -> tuple:
    x, W, _ = args
    return dy @ (W if W_as_given else W.T), dy.T @ x, dy.sum(0)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((6, 4), (4, 4), (4,)))


def without_sum(args: tuple, dy: Array) -> tuple:
    dx, dW, _ = backward(args, dy)
    return dx, dW, dy


def averaged(args: tuple, dy: Array) -> tuple:
    dx, dW, db = backward(args, dy)
    return dx, dW / dy.shape[0], db / dy.shape[0]


DERIVATION = Derivation(
    name="dense",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "dW is x^T dy, the layout of W (inputs, outputs)",
            with_cotangent(backward, 1, lambda dW: dW.T),
            ("W",),
            "transposed",
            "habit: textbooks write y = x W, libraries y = x W^T; where W is square no shape objects",
        ),
        Wrong(
            "dx multiplies by W^T where W belongs",
            partial(backward, W_as_given=False),
            ("x",),
            "unexplained",
            "habit: the same two layouts, mixed up in dx",
        ),
        Wrong(
            "dW and db divided by the batch size, though dy holds the 1/N already",
            averaged,
            ("W", "b"),
            "mean_for_sum",
            "apache/mxnet#2427 asks for this division in dW; kvfrans/notes#5 corrects it in db",
        ),
        Wrong("db not summed over the batch", without_sum, ("b",), "missing_sum", "mlpack/mlpack#3679"),
        Wrong(
            "db summed over the features too",
            with_cotangent(backward, 2, lambda db: jnp.full_like(db, db.sum())),
            ("b",),
            "unexplained",
            "rasbt/stat453-deep-learning-ss21#5: torch.sum with no axis, broadcast over all the biases",
        ),
    ),
)
