"""A residual stream and its RMS norm: `s = x + residual`, `y = gamma s r`, `r = 1 / sqrt(mean(s^2) + eps)`; y and s.

With `dxhat = gamma dy`: `dx = dresidual = r (dxhat - s r^2 mean(dxhat s)) + ds`, `dgamma = sum(dy s r)` over the rows.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent

EPS, BLOCK = 1e-6, 4


def forward(x, residual, gamma):
    s = x + residual
    return gamma[None, :] * s / jnp.sqrt((s**2).mean(-1, keepdims=True) + EPS), s


def backward(
    args: tuple, dys: tuple[Array, Array], stream: bool = True, overwritten: bool = False, rows: int = 0, shift: int = 0
) -> tuple:
    """`rows`: of dgamma's sum, all where 0; `shift`: how many rows away the projection is read."""
    x, residual, gamma = args
    dy, ds = dys
    s = x + residual
    r = 1 / jnp.sqrt((s**2).mean(-1, keepdims=True) + EPS)
    dxhat = dy * gamma[None, :]
    dx = r * (dxhat - s * r**2 * jnp.roll((dxhat * s).mean(-1, keepdims=True), shift, 0))
    per_row = (dx if overwritten else dy) * s * r
    dx = dx + ds if stream else dx
    return dx, dx, (per_row[:rows] if rows else per_row).sum(0)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((6, 5), (6, 5), (5,)))


DERIVATION = Derivation(
    name="add_rms_norm",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the cotangent of the stream is not added",
            partial(backward, stream=False),
            ("x", "residual"),
            "missing_term",
            "a habit: the norm's backward is taken as it is, and the second output is thought to be a cache",
        ),
        Wrong(
            "dgamma is made of dy after dx was written over it",
            partial(backward, overwritten=True),
            ("gamma",),
            "unexplained",
            "unslothai/unsloth#4550: dX aliases the incoming dY, and what runs after the kernel reads the wrong tensor",
        ),
        Wrong(
            "dgamma of the first block of rows alone",
            partial(backward, rows=BLOCK),
            ("gamma",),
            "missing_sum",
            "a habit: one program for each block of rows, and the grid has one program",
        ),
        Wrong(
            "the projection of another row",
            partial(backward, shift=1),
            ("x", "residual"),
            "unexplained",
            "BobMcDear/attorch#17: a term of each row is broadcast along the columns, so that rows read others' terms",
        ),
        Wrong(
            "the residual gets no cotangent",
            lambda args, dys: (backward(args, dys)[0], None, backward(args, dys)[2]),
            ("residual",),
            "structure",
            "a habit: x and the residual share one gradient, which is returned once",
        ),
        Wrong(
            "dgamma of offset 1 + gamma, which scales dx too",
            with_cotangent(backward, 2, lambda dgamma: 2 * dgamma),
            ("gamma",),
            "factor",
            "a habit: Gemma's norm is (1 + gamma) s r; one code for both counts the row twice",
        ),
    ),
)
