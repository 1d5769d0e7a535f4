"""A bilinear layer: y_no = sum_ij left_ni weight_oij right_nj; each cotangent is that sum with dy for one factor."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent, with_swapped


def forward(left: Array, weight: Array, right: Array) -> Array:
    """`(N, D), (O, D, D), (N, D) -> (N, O)`."""
    return jnp.einsum("ni,oij,nj->no", left, weight, right)


def backward(args: tuple, dy: Array) -> tuple:
    left, weight, right = args
    return (
        jnp.einsum("no,oij,nj->ni", dy, weight, right),
        jnp.einsum("no,ni,nj->oij", dy, left, right),
        jnp.einsum("no,ni,oij->nj", dy, left, weight),
    )


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """Both sides have the same size, so that exchanging them changes no shape."""
    return tuple(rng.normal(size=shape).astype(dtype) for shape in [(6, 4), (5, 4, 4), (6, 4)])


def _ignore_dy(args: tuple, dy: Array) -> tuple:
    left, _, right = backward(args, jnp.ones_like(dy))
    return left, backward(args, dy)[1], right


def _keep_the_last_example(args: tuple, dy: Array) -> tuple:
    left, weight, right = args
    dleft, _, dright = backward(args, dy)
    return dleft, backward((left[-1:], weight, right[-1:]), dy[-1:])[1], dright


DERIVATION = Derivation(
    "bilinear",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the cotangents of left and right are exchanged",
            with_swapped(backward, 0, 2),
            ("left", "right"),
            "swapped",
            "a habit: the derivative by the left begins with the right",
        ),
        Wrong(
            "the inputs' gradients do not depend on dy",
            _ignore_dy,
            ("left", "right"),
            "ignores_dy",
            "torch/nn#658: updateGradInput leaves gradOutput out",
        ),
        Wrong(
            "dweight is summed over the outputs",
            with_cotangent(backward, 1, lambda d: jnp.sum(d, axis=0)),
            ("weight",),
            "structure",
            "pytorch/pytorch#1571: the gradient of a (in1, in2, out) weight has the shape (in1, in2)",
        ),
        Wrong(
            "dweight keeps the last example only",
            _keep_the_last_example,
            ("weight",),
            "missing_sum",
            "a habit: assignment where accumulation is meant, in a loop over examples",
        ),
        Wrong(
            "dweight has left and right exchanged",
            with_cotangent(backward, 1, lambda d: jnp.swapaxes(d, 1, 2)),
            ("weight",),
            "transposed",
            "a habit: the outer product of right and left instead of left and right",
        ),
    ),
)
