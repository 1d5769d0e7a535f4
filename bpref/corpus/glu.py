"""SwiGLU's product: `y = silu(a) b`, a and b (n, d), `silu(a) = a s`, `s = sigmoid(a)`.

`da = dy b (s + a s (1 - s))`, `db = dy silu(a)`.
"""

from functools import partial

import jax
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_swapped


def forward(a, b):
    return a * jax.nn.sigmoid(a) * b


def backward(args: tuple, dy: Array, of_factor: bool = True, of_gate: bool = True, activated: bool = True) -> tuple:
    """`of_factor`, `of_gate`: the two terms of silu'; `activated`: whether db has silu(a) or a itself."""
    a, b = args
    s = jax.nn.sigmoid(a)
    slope = (s if of_factor else 0) + (a * s * (1 - s) if of_gate else 0)
    return dy * b * slope, dy * (a * s if activated else a)


def with_the_slope_of_sigmoid(args: tuple, dy: Array) -> tuple:
    a, b = args
    s = jax.nn.sigmoid(a)
    return dy * b * s * (1 - s), backward(args, dy)[1]


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal((3, 5)).astype(dtype) for _ in range(2))


DERIVATION = Derivation(
    name="glu",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "da and db in each other's place",
            with_swapped(backward, 0, 1),
            ("a", "b"),
            "swapped",
            "habit: which half is the gate differs between libraries; unslothai/unsloth#3314 suspects it of a kernel",
        ),
        Wrong(
            "silu' = s: the gate taken for a constant",
            partial(backward, of_gate=False),
            ("a",),
            "missing_term",
            "habit: the product rule's second half left out",
        ),
        Wrong(
            "silu' = a s (1 - s): the factor taken for a constant",
            partial(backward, of_factor=False),
            ("a",),
            "missing_term",
            "habit: the product rule's first half left out",
        ),
        Wrong(
            "silu' = s (1 - s), which is sigmoid'",
            with_the_slope_of_sigmoid,
            ("a",),
            "unexplained",
            "habit: GLU's own derivative kept when its gate became silu",
        ),
        Wrong(
            "db = dy a, without the gate",
            partial(backward, activated=False),
            ("b",),
            "unexplained",
            "habit: the cache holds a, and not silu(a)",
        ),
    ),
)
