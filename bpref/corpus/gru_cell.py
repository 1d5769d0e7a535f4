"""A GRU cell, one step: x (n, d), h (n, k), W (d, 3k), U (k, 3k), b (3k,); the columns hold the gates r, z, c.

`r, z = sigmoid(..)`, `c = tanh(x Wc + bc + r (h Uc))`, `y = (1 - z) c + z h`: the reset gate after the product.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong


def gates(x: Array, h: Array, W: Array, U: Array, b: Array) -> tuple:
    """r, z, c and `h Uc`."""
    of_x, of_h = jnp.split(x @ W + b[None, :], 3, axis=-1), jnp.split(h @ U, 3, axis=-1)
    r, z = (jax.nn.sigmoid(of_x[i] + of_h[i]) for i in (0, 1))
    return r, z, jnp.tanh(of_x[2] + r * of_h[2]), of_h[2]


def forward(x, h, W, U, b):
    _, z, c, _ = gates(x, h, W, U, b)
    return (1 - z) * c + z * h


def backward(
    args: tuple, dy: Array, reset: int = 1, update: int = 1, skip: int = 1, slope: bool = True, order: str = "rzc"
) -> tuple:
    """Signs of the paths through r, through z, and from h straight to y, 0 to leave one out; `slope`: that of c's tanh.

    `order` is that of the gates' columns in the returned dW, dU and db.
    """
    x, h, W, U, b = args
    r, z, c, of_h = gates(x, h, W, U, b)
    dc = dy * (1 - z) * ((1 - c**2) if slope else 1)
    dr = reset * dc * of_h * r * (1 - r)
    dz = update * dy * (h - c) * z * (1 - z)
    dx = jnp.concatenate([dr, dz, dc], -1) @ W.T
    dh = jnp.concatenate([dr, dz, dc * r], -1) @ U.T + skip * dy * z
    of_x, of_h = {"r": dr, "z": dz, "c": dc}, {"r": dr, "z": dz, "c": dc * r}
    dx_side, dh_side = (jnp.concatenate([d[gate] for gate in order], -1) for d in (of_x, of_h))
    return dx, dh, x.T @ dx_side, h.T @ dh_side, dx_side.sum(0)


def averaged(args: tuple, dy: Array) -> tuple:
    dx, dh, *of_parameters = backward(args, dy)
    return dx, dh, *(d / dy.shape[0] for d in of_parameters)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((5, 3), (5, 4), (3, 12), (4, 12), (12,)))


DERIVATION = Derivation(
    name="gru_cell",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the path through the reset gate forgotten",
            partial(backward, reset=0),
            ("x", "h", "W", "U", "b"),
            "missing_term",
            "habit: r is seen as a mask on h, not as a function of x and h",
        ),
        Wrong(
            "the path through the update gate with the wrong sign",
            partial(backward, update=-1),
            ("x", "h", "W", "U", "b"),
            "missing_term",
            "habit: papers and libraries disagree on whether z keeps the state or replaces it",
        ),
        Wrong(
            "the straight path from h to y forgotten",
            partial(backward, skip=0),
            ("h",),
            "missing_term",
            "habit: the last of four contributions to dh",
        ),
        Wrong(
            "the columns of r and z swapped in dW, dU and db",
            partial(backward, order="zrc"),
            ("W", "U", "b"),
            "shifted",
            "habit: Keras stores z, r, h and PyTorch r, z, n",
        ),
        Wrong(
            "the candidate's tanh forgotten",
            partial(backward, slope=False),
            ("x", "h", "W", "U", "b"),
            "slope",
            "habit: the gates' sigmoids are remembered, and the candidate is no gate",
        ),
        Wrong(
            "dW, dU and db averaged over the batch",
            averaged,
            ("W", "U", "b"),
            "mean_for_sum",
            "habit: the 1/N of the loss once more; hunkim/DeepLearningZeroToAll#173 asks for it in every product",
        ),
    ),
)
