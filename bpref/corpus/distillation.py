"""KL(teacher || student) of softened probabilities, a mean over n rows, times T^2: student and teacher logits (n, k).

With `p = softmax(teacher / T)`, `q = softmax(student / T)`: `dstudent = dy T (q - p) / n`,
`dteacher = dy T p (log(p / q) - KL) / n`, KL being that of the row.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent

T = 2.0


def forward(student, teacher):
    log_q, log_p = jax.nn.log_softmax(student / T), jax.nn.log_softmax(teacher / T)
    return T**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(1).mean()


def backward(args: tuple, dy: Array, scale: float = T, reverse: bool = False) -> tuple:
    """`reverse`: the student's gradient of KL(student || teacher)."""
    log_q, log_p = (jax.nn.log_softmax(v / T) for v in args)
    p, q, apart = jnp.exp(log_p), jnp.exp(log_q), log_p - log_q
    dteacher = p * (apart - (p * apart).sum(1, keepdims=True))
    dstudent = q * ((q * apart).sum(1, keepdims=True) - apart) if reverse else q - p
    return dy * scale * dstudent / len(p), dy * scale * dteacher / len(p)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal((5, 7)).astype(dtype) for _ in range(2))


DERIVATION = Derivation(
    name="distillation",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the student's gradient of the reverse divergence",
            partial(backward, reverse=True),
            ("student",),
            "unexplained",
            "a habit: F.kl_div takes the student first; what beta = 0 and 1 are is asked in huggingface/trl#6780",
        ),
        Wrong(
            "T^2 forgotten",
            partial(backward, scale=1 / T),
            ("student", "teacher"),
            "factor",
            "a habit: Hinton's T^2 is written into the loss and not into its hand-written gradient",
        ),
        Wrong(
            "the 1 / T of the logits forgotten",
            partial(backward, scale=T**2),
            ("student", "teacher"),
            "factor",
            "a habit: q - p is known by heart, and the logits were divided before",
        ),
        Wrong(
            "the teacher is taken to be constant",
            with_cotangent(backward, 1, jnp.zeros_like),
            ("teacher",),
            "zero",
            "a habit: it mostly is; in mutual and self-distillation it is not",
        ),
        Wrong(
            "p - q",
            with_cotangent(backward, 0, jnp.negative),
            ("student",),
            "sign",
            "a habit: target minus prediction",
        ),
    ),
)
