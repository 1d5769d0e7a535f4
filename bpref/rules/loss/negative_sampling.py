"""negative_sampling: a centre word knows its context from K words that were drawn at random (word2vec).

The mean is that of all terms, one for each centre: what `reduction="none"` gives.

Forward, with N centres v, contexts u and K negatives w for each, all vectors of d numbers, s(x) = 1 / (1 + exp(-x)):

    a_n  = v_n . u_n,    b_nk = v_n . w_nk                                (N,), (N, K)
    J    = -1/N sum_n (log s(a_n) + sum_k log s(-b_nk))                   J: ()

Differential, with d/dx log s(x) = s(-x) and d/dx log s(-x) = -s(x):

    delta J = 1/N sum_n (-s(-a_n) delta a_n + sum_k s(b_nk) delta b_nk)

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    da_n  = -g_n s(-a_n),    db_nk = g_n s(b_nk)                          (N,), (N, K)
    dv_n  = da_n u_n + sum_k db_nk w_nk                                   (N, d)
    du_n  = da_n v_n                                                      (N, d)
    dw_nk = db_nk v_n                                                     (N, K, d)

The vectors come from tables; the lookup, a layer of its own, adds up what one word gets in several places.

Cached: v, u and w as they came, and the scores a and b, 1 + K numbers for each centre.

Numerical care: -log s(x) = max(-x, 0) + log(1 + exp(-|x|)), with log1p, so that no score overflows and a confident
right answer keeps its small loss. s(-a) is not 1 - s(a), which cancels. Half precision is multiplied and summed in
float32. There is no kink: max and |.| meet at 0 in a smooth sum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.logistic import log1p_exp, logistic
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule


class Words(NamedTuple):
    centre: Float[Array, "N>0 d>0"]
    context: Float[Array, "N d"]
    negatives: Float[Array, "N K d"]


class NegativeSamplingCache(NamedTuple):
    v: Float[Array, "N d"]
    u: Float[Array, "N d"]
    w: Float[Array, "N K d"]
    a: Float[Array, " N"]
    b: Float[Array, "N K"]


def negative_sampling(
    reduction: str = "mean",
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, NegativeSamplingCache]:
    """J = -mean of log s(v . u) + sum_k log s(-v . w_k), s the logistic function.

    Args:
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(centre, context, negatives)` of shapes `(N, d)`, `(N, d)` and `(N, K, d)`, and y the
      scalar J, or the terms (N,), in at least float32. K may be 0.

    Raises:
      ValueError: the reduction is none of these; the centre is no matrix with at least one row and column; the other
        shapes do not fit it.
      TypeError: x is no triple; the centre is not floating-point; the dtypes differ.
    """
    who = "negative_sampling"
    J_of = require_reduction(who, reduction)

    def forward(params, x: Words):
        v, u, w = x
        a = jnp.einsum("nd,nd->n", widen(v), widen(u))
        b = jnp.einsum("nd,nkd->nk", widen(v), widen(w))
        return J_of.of(log1p_exp(-a) + jnp.sum(log1p_exp(b), 1)), NegativeSamplingCache(v, u, w, a, b)

    def backward(params, cache, dJ):
        v, u, w = widen(cache.v), widen(cache.u), widen(cache.w)
        g = J_of.at_terms(dJ, (len(v),), below=1)
        da = -g * logistic(-cache.a)[:, None]
        db = g * logistic(cache.b)
        dv = da * u + jnp.einsum("nk,nkd->nd", db, w)
        return (), tuple(cast(d, cache.v.dtype) for d in (dv, da * v, db[..., None] * v[:, None]))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array, Array], reduction: str = "mean") -> Array:
    centre, context, negatives = x
    positive = jax.nn.log_sigmoid(jnp.einsum("nd,nd->n", centre, context))
    negative = jax.nn.log_sigmoid(-jnp.einsum("nd,nkd->nk", centre, negatives))
    return naive_reduction(-positive - jnp.sum(negative, axis=1), reduction)


RULE = Rule(
    "negative_sampling",
    negative_sampling,
    reference,
    cases=(
        Case("words", (Real("N d"), Real("N d"), Real("N K d")), {}, ("N", "d"), timed={"N": 512, "d": 128, "K": 10}),
        Case("each centre", (Real("N d"), Real("N d"), Real("N K d")), {"reduction": "none"}, ("N", "d")),
    ),
    cite="word2vec, arXiv:1310.4546, equation 4",
    covers=("word2vec", "skip_gram"),
)
