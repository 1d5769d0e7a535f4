"""SwiGLU with limits, of one packed projection x (n, 2 d): `y = (u + 1) g s`, `s = sigmoid(a g)`.

`g = min(x_1, limit)` and `u = clip(x_2, -limit, limit)` of the two halves. `dg = dy (u + 1) (s + a g s (1 - s))` and
`du = dy g s`, each 0 where its limit was passed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent

LIMIT, A = 1.25, 1.75


def forward(x):
    g, u = jnp.split(x, 2, axis=-1)
    g, u = jnp.minimum(g, LIMIT), jnp.clip(u, -LIMIT, LIMIT)
    return (u + 1) * g * jax.nn.sigmoid(A * g)


def backward(args: tuple, dy: Array, masked: bool = True, lowest: float = -jnp.inf, a: float = A) -> tuple:
    """`lowest`: below it the gate has no gradient; `a`: the factor in the slope of the sigmoid."""
    x_1, x_2 = jnp.split(args[0], 2, axis=-1)
    g, u = jnp.minimum(x_1, LIMIT), jnp.clip(x_2, -LIMIT, LIMIT)
    s = jax.nn.sigmoid(A * g)
    dg, du = dy * (u + 1) * (s + a * g * s * (1 - s)), dy * g * s
    if masked:
        dg, du = jnp.where((lowest < x_1) & (x_1 < LIMIT), dg, 0), jnp.where(jnp.abs(x_2) < LIMIT, du, 0)
    return (jnp.concatenate([dg, du], axis=-1),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    x = rng.standard_normal((6, 10))
    near = np.abs(np.abs(x) - LIMIT) < 0.05
    return (np.where(near, 0.9 * x, x).astype(dtype),)


DERIVATION = Derivation(
    name="clamped_swiglu",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "what has passed a limit has a gradient",
            partial(backward, masked=False),
            ("x",),
            "sparse",
            "a habit: the clamped halves are kept, and the limits are not asked about again",
        ),
        Wrong(
            "the two halves are exchanged",
            with_cotangent(backward, 0, lambda dx: jnp.roll(dx, dx.shape[-1] // 2, -1)),
            ("x",),
            "shifted",
            "a habit: gate and up, or up and gate; checkpoints and kernels disagree",
        ),
        Wrong(
            "the gate is limited from below too",
            partial(backward, lowest=-LIMIT),
            ("x",),
            "sparse",
            "a habit: one mask for both halves; anthony-chaudhary/fak#4837 has to say 'gate upper-only, up symmetric'",
        ),
        Wrong(
            "the slope of sigmoid(g), without the a",
            partial(backward, a=1.0),
            ("x",),
            "factor",
            "a habit: silu's derivative, s + g s (1 - s), with another s",
        ),
    ),
)
