"""A mixture of the two experts of the largest logits: logits (n, e), values (n, e, d), `y = sum_e w_e values_e`.

`w` is the softmax over the chosen two, of equal ones the first, as it comes of `p / sum(p)`, p being softmax over all
with the others at 0.
`dw_e = dy . values_e`, `dlogits = w (dw - sum(w dw))`, `dvalues_e = w_e dy`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.softmax import through_softmax
from bpref.corpus.spoil import with_cotangent


def chosen(logits: Array) -> Array:
    """Whether a logit is one of the two largest of its row, the first ones where several are equal."""
    return jax.nn.one_hot(jax.lax.top_k(logits, 2)[1], logits.shape[1], dtype=bool).any(1)


def forward(logits, values):
    p = jnp.where(chosen(logits), jax.nn.softmax(logits), 0)
    return ((p / p.sum(1, keepdims=True))[..., None] * values).sum(1)


def backward(args: tuple, dy: Array, product: bool = True, weighted: bool = True) -> tuple:
    """`product`: the dot product in softmax's backward; `weighted`: whether w is in dvalues."""
    logits, values = args
    keep = chosen(logits)
    w, dw = jax.nn.softmax(jnp.where(keep, logits, -jnp.inf)), (dy[:, None, :] * values).sum(-1)
    dlogits = through_softmax(w, dw) if product else w * dw
    return dlogits, (w if weighted else keep.astype(w.dtype))[..., None] * dy[:, None, :]


def with_constant_sum(args: tuple, dy: Array) -> tuple:
    """The backward of softmax over all, given that of p divided by a constant."""
    logits, values = args
    p, keep = jax.nn.softmax(logits), chosen(logits)
    total = jnp.where(keep, p, 0).sum(1, keepdims=True)
    dp = jnp.where(keep, (dy[:, None, :] * values).sum(-1) / total, 0)
    return p * (dp - (p * dp).sum(1, keepdims=True)), backward(args, dy)[1]


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return rng.standard_normal((5, 6)).astype(dtype), rng.standard_normal((5, 6, 4)).astype(dtype)


DERIVATION = Derivation(
    name="router",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the sum that weights are divided by is taken to be constant",
            with_constant_sum,
            ("logits",),
            "unexplained",
            "a habit: weights are normalised in place, outside of what the kernel's backward sees",
        ),
        Wrong(
            "the router gets no gradient",
            with_cotangent(backward, 0, jnp.zeros_like),
            ("logits",),
            "zero",
            "jingyaogong/minimind#858: the router is trained by its auxiliary loss alone",
        ),
        Wrong(
            "the experts' gradients without their weights",
            partial(backward, weighted=False),
            ("values",),
            "unexplained",
            "a habit: weights are applied when tokens are put back, and dy is sent out as it came",
        ),
        Wrong(
            "the dot product of softmax's backward forgotten",
            partial(backward, product=False),
            ("logits",),
            "missing_term",
            "a habit: the derivative of a weight by its own logit alone",
        ),
    ),
)
