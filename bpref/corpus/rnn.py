"""A recurrent network: `a[t] = tanh(x[t] Wx + a[t-1] Wh + b)`; x (t, n, d), a0 (n, h), Wx (d, h), Wh (h, h), b (h,).

y holds every a[t]. Backwards in t, with `da[t] = dy[t] + dz[t+1] Wh^T`: `dz[t] = da[t] (1 - a[t]^2)`.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(x, a0, Wx, Wh, b):
    a, outputs = a0, []
    for t in range(x.shape[0]):
        a = jnp.tanh(x[t] @ Wx + a @ Wh + b[None, :])
        outputs.append(a)
    return jnp.stack(outputs)


def backward(args: tuple, dy: Array, truncated: bool = False, slope_of_z: bool = False, previous: int = 1) -> tuple:
    """`truncated`: no gradient goes from a step to the one before; `previous`: which step's a meets dz in dWh."""
    x, a0, Wx, Wh, b = args
    steps = range(x.shape[0])
    a = [a0, *forward(x, a0, Wx, Wh, b)]
    z = [x[t] @ Wx + a[t] @ Wh + b[None, :] for t in steps]
    dz = [dy[t] for t in steps]
    carried = jnp.zeros_like(a[0])
    for t in reversed(steps):
        da = dy[t] if truncated else dy[t] + carried
        dz[t] = da * (1 - (z[t] if slope_of_z else a[t + 1]) ** 2)
        carried = dz[t] @ Wh.T
    dx = jnp.stack([dz[t] @ Wx.T for t in steps])
    dWx = sum(x[t].T @ dz[t] for t in steps)
    dWh = sum(a[t + 1 - previous].T @ dz[t] for t in steps)
    return dx, carried, dWx, dWh, sum(dz[t].sum(0) for t in steps)


def clipped(args: tuple, dy: Array) -> tuple:
    dx, da0, *of_parameters = backward(args, dy)
    return dx, da0, *(jnp.clip(v, -1, 1) for v in of_parameters)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    shapes = ((5, 3, 2), (3, 4), (2, 4), (4, 4), (4,))
    return tuple((rng.standard_normal(shape) / (2 if shape == (4, 4) else 1)).astype(dtype) for shape in shapes)


DERIVATION = Derivation(
    name="rnn",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "nothing carried from a step to the one before",
            partial(backward, truncated=True),
            ("x", "a0", "Wx", "Wh", "b"),
            "missing_term",
            "habit: truncated back-propagation through time, truncated after one step",
        ),
        Wrong(
            "the slope 1 - z^2 in place of 1 - a^2",
            partial(backward, slope_of_z=True),
            ("x", "a0", "Wx", "Wh", "b"),
            "slope",
            "habit: tanh' written in terms of the output and given the input; community.deeplearning.ai, "
            "'Back Propagation Not Working Accurately' has the two the other way round",
        ),
        Wrong(
            "dWh pairs dz[t] with a[t] in place of a[t-1]",
            partial(backward, previous=0),
            ("Wh",),
            "unexplained",
            "habit: a list with a0 in front and a list without it, indexed alike",
        ),
        Wrong(
            "the parameters' gradients clipped to [-1, 1] inside of the backward",
            clipped,
            ("Wx", "Wh", "b"),
            "clipped",
            "victorzhou.com, 'An Introduction to Recurrent Neural Networks for Beginners': np.clip ends backprop()",
        ),
        Wrong(
            "dx in the order in which the reverse sweep made it",
            with_cotangent(backward, 0, lambda dx: dx[::-1]),
            ("x",),
            "shifted",
            "habit: append in a loop over reversed(range(T)), and no reversal at the end",
        ),
        Wrong(
            "dWh transposed",
            with_cotangent(backward, 3, lambda dWh: dWh.T),
            ("Wh",),
            "transposed",
            "habit: dz^T a in place of a^T dz, which for the one square matrix has the right shape",
        ),
    ),
)
