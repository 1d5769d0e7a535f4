"""A short causal convolution of each channel: x (b, t, c), w (k, c): `y_t = sum_j w_j x_{t - k + 1 + j} + bias`.

`dx_t = sum_j w_j dy_{t + k - 1 - j}`, `dw_j = sum dy_t x_{t - k + 1 + j}` and `dbias = sum dy`, over b and t.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent

BLOCK = 4


def windows(x: Array, k: int) -> list[Array]:
    """For each tap j, x moved by k - 1 - j steps, zeros before its beginning."""
    t = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (k - 1, 0), (0, 0)))
    return [padded[:, j : j + t] for j in range(k)]


def forward(x, w, bias):
    return sum(w[j][None, None, :] * v for j, v in enumerate(windows(x, len(w)))) + bias[None, None, :]


def backward(args: tuple, dy: Array, reverse: bool = True, rows: int = 0) -> tuple:
    """`reverse`: dx runs against time; `rows`: of dbias' sum over t, all where 0."""
    x, w, _ = args
    later = [jnp.flip(v, 1) for v in windows(jnp.flip(dy, 1), len(w))] if reverse else windows(dy, len(w))
    dx = sum(w[j][None, None, :] * v for j, v in enumerate(later))
    dw = jnp.stack([(dy * v).sum((0, 1)) for v in windows(x, len(w))])
    return dx, dw, (dy[:, :rows] if rows else dy).sum((0, 1))


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((2, 9, 4), (3, 4), (4,)))


DERIVATION = Derivation(
    name="causal_convolution",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "dx runs with time, not against it",
            partial(backward, reverse=False),
            ("x",),
            "unexplained",
            "a habit: the forward's kernel is called on dy with the same taps",
        ),
        Wrong(
            "dw with its taps in reverse",
            with_cotangent(backward, 1, lambda dw: dw[::-1]),
            ("w",),
            "shifted",
            "a habit: correlation in one place, convolution in the other",
        ),
        Wrong(
            "dx of the last, ragged block is not written",
            with_cotangent(backward, 0, lambda dx: dx.at[:, len(dx[0]) // BLOCK * BLOCK :].set(0)),
            ("x",),
            "sparse",
            "a habit: t // block programs are launched; amorehead/jvp_flash_attention#13 refuses such lengths",
        ),
        Wrong(
            "dbias of the first block of steps alone",
            partial(backward, rows=BLOCK),
            ("bias",),
            "missing_sum",
            "a habit: the same, in a sum, where nothing is left at zero to be seen",
        ),
        Wrong(
            "dx one step too late",
            with_cotangent(backward, 0, lambda dx: jnp.pad(dx, ((0, 0), (1, 0), (0, 0)))[:, :-1]),
            ("x",),
            "shifted",
            "KonduitAI/deeplearning4j#90: input gradients with 'an off-by-1 issue'; compare "
            "fla-org/flash-linear-attention#1140",
        ),
    ),
)
