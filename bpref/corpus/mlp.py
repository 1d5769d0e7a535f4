"""Two layers: `z1 = x W1^T + b1`, `a1 = tanh(z1)`, `y = a1 W2^T + b2`; x (n, 3), W1 (4, 3), W2 (2, 4)."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent, with_incoming, without


def forward(x, W1, b1, W2, b2):
    return jnp.tanh(x @ W1.T + b1[None, :]) @ W2.T + b2[None, :]


def backward(args: tuple, dy: Array, slope: bool = True, learning_rate: float = 0.0) -> tuple:
    """`slope`: whether dz1 has tanh'; `learning_rate`: of an update of W2 before da1 reads it."""
    x, W1, b1, W2, _ = args
    a1 = jnp.tanh(x @ W1.T + b1[None, :])
    dW2 = dy.T @ a1
    da1 = dy @ (W2 - learning_rate * dW2)
    dz1 = da1 * (1 - a1**2) if slope else da1
    return dz1 @ W1, dz1.T @ x, dz1.sum(0), dW2, dy.sum(0)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((5, 3), (4, 3), (4,), (2, 4), (2,)))


DERIVATION = Derivation(
    name="mlp",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "every cotangent negated",
            with_incoming(backward, lambda dy: -dy),
            ("x", "W1", "b1", "W2", "b2"),
            "sign",
            "habit: target - y for y - target, which makes the direction of descent out of the gradient",
        ),
        Wrong(
            "dW1 in the layout (inputs, outputs)",
            with_cotangent(backward, 1, lambda dW1: dW1.T),
            ("W1",),
            "transposed",
            "habit: x^T dz1, from a textbook that writes z1 = x W1",
        ),
        Wrong(
            "db1 left at zero",
            with_cotangent(backward, 2, jnp.zeros_like),
            ("b1",),
            "zero",
            "habit: an accumulator made with zeros_like and never added to",
        ),
        Wrong(
            "tanh' forgotten",
            partial(backward, slope=False),
            ("x", "W1", "b1"),
            "slope",
            "habit: da1 handed on as dz1",
        ),
        Wrong(
            "W2 updated before da1 reads it",
            partial(backward, learning_rate=0.1),
            ("x", "W1", "b1"),
            "nonlinear",
            "habit: the update inside of the reverse sweep, one line too early",
        ),
        Wrong(
            "the last cotangent not returned",
            without(backward, 4),
            ("b2",),
            "structure",
            "huawei-noah/AdderNet#21: 'returned an incorrect number of gradients (expected 2, got 1)'",
        ),
    ),
)
