"""sequence_cross_entropy: how many nats the labels are from the softmax of the logits.

The mean is that of all terms, one for each real token: what `reduction="none"` gives.

Forward, with logits z (B, T, C), a label y for each token, and m_bt, 1 for a token that is real and 0 for padding:

    l_bt = -sum_c q_btc log softmax(z_bt)_c,   q_btc = (1 - s) [c = y_bt] + s / C           s: `smoothing`, (B, T)
    J    = sum_bt m_bt l_bt / max(1, sum_bt m_bt)                                                           J: ()

and with `per_example` the same of each example by itself, J_b = sum_t m_bt l_bt / max(1, sum_t m_bt): (B,). The first
weighs every token alike, the second every example. Nothing but padding has J = 0.

Of "sum" N is 1 in what follows, of "batch_mean" B, and "none" gives m_bt l_bt, with a dJ for each (B, T).

Differential: delta l = sum_c (p_c - q_c) delta z_c, with p = softmax(z). With N what the sum is divided by,

    dz_btc = dJ m_bt (p_btc - q_btc) / N                                                                 (B, T, C)

and exactly 0 at padding, whatever its logits and labels are, NaN among them. Labels, mask and lengths have none.

It is built of `softmax_cross_entropy`, which says how p_y - 1 is made without cancelling: padding is given a label that
it ignores, and `per_example` maps it over the examples.

Cached: the logits, and the labels with padding marked. The softmax is made again.

Numerical care: that of `softmax_cross_entropy`. A real token's label outside [0, C) makes J and that token's gradient
NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import require_flags, require_share
from bpref.cotangents import Root
from bpref.dtypes import wide_dtype, widen_integers
from bpref.formulas.lengths import used, within
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Boolean, Case, Integer, Interval, Real, Rule, called_as
from bpref.rules.loss.softmax_cross_entropy import Classification, softmax_cross_entropy

PADDING = -(2**31)
"""The label of what is no token."""


class Tokens(NamedTuple):
    logits: Float[Array, "B T C>0"]
    labels: Int[Array, "B T"]
    real: Bool[Array, "B T"] | Int[Array, " B"]


def sequence_cross_entropy(
    smoothing: float = 0.0, per_example: bool = False, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, Classification]:
    """J = mean over the real tokens of -sum_c q_c log softmax(z)_c.

    Args:
      smoothing: s in [0, 1]; the label's share becomes 1 - s, and every class has s / C more.
      per_example: whether J is each example's mean, or sum, not that over the tokens of all.
      reduction: "mean" of the terms of all real tokens, their "sum", "none" for the terms themselves, 0 at padding, or
        "batch_mean", their sum divided by B.

    Returns:
      A layer with params `()`, x `(logits, labels, real)`: `(B, T, C)`, integers `(B, T)`, and which tokens are real:
      booleans `(B, T)`, or lengths, integers `(B,)`. y is J, `()`, `(B,)` or `(B, T)`, in at least
      float32; 0 of no tokens.

    Raises:
      ValueError: smoothing is not in [0, 1]; the reduction is none of these, or no mean or sum `per_example`; shapes do
        not fit; C is 0.
      TypeError: x is no such tuple; the logits are not floating-point; labels are not integers; `real` is neither
        boolean nor integer.
    """
    who = "sequence_cross_entropy"
    require_flags(who, per_example=per_example)
    smoothing = require_share(who, "smoothing", smoothing)
    J_of = require_reduction(who, reduction)
    if per_example and reduction not in ("mean", "sum"):
        raise ValueError(f"{who}: reduction is {reduction!r}, expected mean or sum: J is that of each example")
    of_all = softmax_cross_entropy(smoothing, ignored=PADDING, reduction=reduction)
    forward_of, backward_of = of_all.forward, of_all.backward
    if per_example:
        forward_of = jax.vmap(forward_of, in_axes=((), 0))
        backward_of = jax.vmap(backward_of, in_axes=((), 0, 0))

    def forward(params, x: Tokens):
        logits, labels, real = x
        if real.ndim == 1:
            real = used(within(real, labels.shape[1]), labels.shape[1])
        labels = jnp.where(real, jnp.maximum(widen_integers(labels), -1), PADDING)
        if labels.size == 0:
            shape = labels.shape[: 1 if per_example else 0] if J_of.is_scalar else labels.shape
            J = jnp.zeros(shape, wide_dtype(logits.dtype))
        else:
            J = forward_of((), (logits, labels))[0]
        return J, Classification(logits, labels)

    def backward(params, cache, dJ):
        if cache.target.size == 0:
            return (), (jnp.zeros_like(cache.logits), None, None)
        _, (dlogits, _) = backward_of((), cache, dJ)
        return (), (dlogits, None, None)

    def as_of_all(f):
        return lambda cache, at: (f(cache, at)[0], None, None)

    r, root = of_all.root, None
    if r is not None and not per_example:
        root = Root(r.width, as_of_all(r.column), as_of_all(r.drawn))
    return Layer(no_params, forward, backward, who, root=root)


@called_as(sequence_cross_entropy)
def reference(params: tuple[()], x: tuple[Array, ...], smoothing, per_example, reduction) -> Array:
    import optax

    logits, labels, real = x
    T, C = logits.shape[1:]
    if real.dtype != bool:
        real = jnp.arange(T, dtype=real.dtype)[None, :] < real[:, None]
    q = optax.smooth_labels(jax.nn.one_hot(labels, C, dtype=logits.dtype), smoothing)
    terms = jnp.where(real, optax.softmax_cross_entropy(logits, q), 0)
    counts = real.astype(terms.dtype)
    if not per_example:
        return naive_reduction(terms, reduction, counts)
    total = jnp.sum(terms, 1)
    return total if reduction == "sum" else total / jnp.maximum(1, jnp.sum(counts, 1))


_X = Real("B T C"), Integer("B T", 0, "C")

RULE = Rule(
    "sequence_cross_entropy",
    sequence_cross_entropy,
    reference,
    cases=(
        Case(
            "lengths",
            (*_X, Integer("B", 0, "T", points=(99, 0))),
            never_empty=("C",),
            timed={"B": 8, "T": 64, "C": 4096},
        ),
        Case("mask, smoothing", (*_X, Boolean("B T")), {"smoothing": Interval(0.0, 0.5, 0.1)}, ("C",)),
        Case("each token", (*_X, Boolean("B T")), {"reduction": "none"}, ("C",)),
        Case("per example", (*_X, Integer("B", 0, "T", points=(99, 0))), {"per_example": True}, ("C",)),
    ),
    cite="Sutskever, Vinyals, Le, 'Sequence to sequence learning with neural networks', arXiv:1409.3215, equation 1; "
    "smoothing: arXiv:1512.00567, section 7",
    covers=("masked_cross_entropy",),
)
