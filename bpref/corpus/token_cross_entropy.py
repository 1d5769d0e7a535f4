"""Cross-entropy of each token, with label smoothing e and a z-loss: logits (n, k), labels (n,), y (n,).

`y = -(1 - e) log p_label - e mean(log p) + w lse^2`: `dz = dy (p (1 + 2 w lse) - (1 - e) onehot - e / k)`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_incoming

SMOOTHING, Z_WEIGHT = 0.25, 0.125


def forward(logits, labels):
    log_p, lse = jax.nn.log_softmax(logits), jax.nn.logsumexp(logits, axis=1)
    of_label = jnp.take_along_axis(log_p, jnp.asarray(labels)[:, None], axis=1)[:, 0]
    return -(1 - SMOOTHING) * of_label - SMOOTHING * log_p.mean(1) + Z_WEIGHT * lse**2


def backward(args: tuple, dy: Array, z_slope: float = 2, uniform: bool = True) -> tuple:
    """`z_slope`: the 2 of lse^2; `uniform`: whether the smoothing's part is there."""
    logits, labels = args
    p, lse = jax.nn.softmax(logits), jax.nn.logsumexp(logits, axis=1, keepdims=True)
    onehot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    dz = (1 - SMOOTHING) * (p - onehot) + z_slope * Z_WEIGHT * lse * p
    dz = dz + SMOOTHING * (p - 1 / logits.shape[1]) if uniform else dz
    return dy[:, None] * dz, None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return rng.normal(size=(5, 7)).astype(dtype), rng.integers(0, 7, 5).astype(np.int32)


DERIVATION = Derivation(
    "token_cross_entropy",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "every token is scaled by the first token's dy",
            with_incoming(backward, lambda dy: jnp.broadcast_to(dy[:1], dy.shape)),
            ("logits",),
            "another_dy",
            "linkedin/Liger-Kernel#1298: a kernel loads grad_output as a scalar, where it has one for each token",
        ),
        Wrong(
            "every token is scaled by the mean of dy",
            with_incoming(backward, lambda dy: jnp.broadcast_to(dy.mean(), dy.shape)),
            ("logits",),
            "another_dy",
            "a habit: unslothai/unsloth#569 proposes one constant, dy being filled with 1 / n wherever a mean follows",
        ),
        Wrong(
            "dy is not read",
            with_incoming(backward, jnp.ones_like),
            ("logits",),
            "ignores_dy",
            "a habit: a test that ends in .sum().backward() hands ones back",
        ),
        Wrong(
            "the z-loss has no gradient",
            partial(backward, z_slope=0),
            ("logits",),
            "missing_term",
            "a habit: it was added to the forward's loss, for logging, later than the gradient was written",
        ),
        Wrong(
            "the 2 of the z-loss's square is forgotten",
            partial(backward, z_slope=1),
            ("logits",),
            "factor",
            "a habit: in half of the squares that are differentiated a 1/2 takes it away",
        ),
        Wrong(
            "label smoothing without its uniform part",
            partial(backward, uniform=False),
            ("logits",),
            "missing_term",
            "a habit: p - onehot is scaled by 1 - e, and e is thought to be done with",
        ),
    ),
)
