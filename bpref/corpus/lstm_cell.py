"""An LSTM cell, one step: x (n, d), h and c (n, k), W (d, 4k), U (k, 4k), b (4k,); the columns hold i, f, g, o.

`i, f, o = sigmoid(..)`, `g = tanh(..)`, `c' = f c + i g`, `h' = o tanh(c')`; the output is the pair (h', c'), and so
is its cotangent.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong


def gates(x: Array, h: Array, W: Array, U: Array, b: Array) -> tuple:
    i, f, g, o = jnp.split(x @ W + h @ U + b[None, :], 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def forward(x, h, c, W, U, b):
    i, f, g, o = gates(x, h, W, U, b)
    c_next = f * c + i * g
    return o * jnp.tanh(c_next), c_next


def backward(
    args: tuple,
    dy: tuple[Array, Array],
    from_later: bool = True,
    slope: bool = True,
    g_is_sigmoid: bool = False,
    through_f: bool = True,
    order: str = "ifgo",
) -> tuple:
    """`from_later`: whether the cotangent of c' is read; `slope`: that of tanh(c'); `through_f`: dc is times f.

    `order` is that of the gates' columns in the returned dW, dU and db.
    """
    x, h, c, W, U, b = args
    dh_next, dc_next = dy
    i, f, g, o = gates(x, h, W, U, b)
    a = jnp.tanh(f * c + i * g)
    dc = dh_next * o * ((1 - a**2) if slope else 1)
    if from_later:
        dc = dc + dc_next
    of_gate = {
        "i": dc * g * i * (1 - i),
        "f": dc * c * f * (1 - f),
        "g": dc * i * (g * (1 - g) if g_is_sigmoid else 1 - g**2),
        "o": dh_next * a * o * (1 - o),
    }
    dz = jnp.concatenate([of_gate[name] for name in "ifgo"], -1)
    returned = jnp.concatenate([of_gate[name] for name in order], -1)
    return dz @ W.T, dz @ U.T, dc * f if through_f else dc, x.T @ returned, h.T @ returned, returned.sum(0)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    shapes = ((5, 2), (5, 3), (5, 3), (2, 12), (3, 12), (12,))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


DERIVATION = Derivation(
    name="lstm_cell",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the cotangent of c' not read: the cell gets its gradient from h' alone",
            partial(backward, from_later=False),
            ("x", "h", "c", "W", "U", "b"),
            "missing_term",
            "habit: the cell's own line through time, the very thing that an LSTM is for, left out",
        ),
        Wrong(
            "the slope of tanh(c') forgotten",
            partial(backward, slope=False),
            ("x", "h", "c", "W", "U", "b"),
            "slope",
            "habit: h' = o tanh(c') read as o c'",
        ),
        Wrong(
            "the candidate's slope g (1 - g), as of the gates",
            partial(backward, g_is_sigmoid=True),
            ("x", "h", "W", "U", "b"),
            "slope",
            "habit: one line for the slope of all four blocks of columns",
        ),
        Wrong(
            "dc not multiplied by the forget gate",
            partial(backward, through_f=False),
            ("c",),
            "unexplained",
            "habit: the gradient of c' handed on as that of c",
        ),
        Wrong(
            "the columns of i and f swapped in dW, dU and db",
            partial(backward, order="figo"),
            ("W", "U", "b"),
            "shifted",
            "ooples/AiDotNet.Tensors#907: gates saved in one order and decoded in another",
        ),
    ),
)
