"""nt_xent: each of 2N views picks the other view of its example among all views but itself (SimCLR).

The mean is that of all terms, one for each view: what `reduction="none"` gives.

Forward, with two views a and b of N examples, stacked to w = [a; b] of 2N rows, u the rows divided by their lengths, T
the `temperature`, and the partner k' of row k being k + N or k - N:

    S_kj = u_k . u_j                                                      (2N, 2N)
    l_k  = log sum over j != k of exp(S_kj / T)                           (2N,)
    J    = 1/(2N) sum_k (l_k - S_kk' / T)                                   J: ()

Differential, with p_kj = exp(S_kj / T - l_k) for j != k, and p_kk = 0:

    delta J = 1/(2N T) sum_kj (p_kj - [j = k']) delta S_kj,    delta S_kj = delta u_k . u_j + u_k . delta u_j

The sweep starts with dJ. u stands on both sides of S. The factor of each perturbation, with g_k = dJ / (2N), or another
`reduction`'s (`bpref.formulas.loss.terms`):

    dS_kj = g_k (p_kj - [j = k']) / T                                     (2N, 2N)
    du_k  = sum_j (dS_kj + dS_jk) u_j                                     (2N, d)
    da, db are the halves of dw, from du as `unit_vectors` has it         (N, d)

Cached: a and b, and l in two parts, largest and sum. Similarities and softmax, 4 N^2 numbers each, are made again
with one product, which XLA merges with the first under one jit.

Numerical care: l_k - S_kk' / T and p_kk' - 1 cancel once partners are found; neither is formed (`contrast`). Half
precision is widened before rows are divided by their lengths, and S stays in float32. A row of length 0 has direction
0: its similarities are 0, and its cotangent is taken as 0. There is no other kink.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.loss.contrast import LogSumExp, Views, log_sum_exp, nats, pull
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.norm.unit_vectors import from_unit, unit
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as


class NtXentCache(NamedTuple):
    a: Float[Array, "N d"]
    b: Float[Array, "N d"]
    l: LogSumExp


def nt_xent(
    temperature: float = 0.5, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, NtXentCache]:
    """J = mean over 2N views of -log of the probability of their partner, by a softmax of cosines / temperature.

    Args:
      temperature: what cosines are divided by.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, 2N.

    Returns:
      A layer with params `()`, x `(a, b)`, both `(N, d)`, and y the scalar J, or the terms (2N,), a's before b's, in at
      least float32. With N = 1 nothing is left to choose from: J and the gradient are 0.

    Raises:
      ValueError: temperature is not positive; the reduction is none of these; a is no matrix with at least one row and
        column; the shapes differ.
      TypeError: x is no pair; a is not floating-point; the dtypes differ.
    """
    who = "nt_xent"
    temperature = require_positive(who, "temperature", temperature)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Views):
        a, b = x
        u, _ = directions(a, b)
        S, of_partner, partner = similarities(u)
        l = log_sum_exp(S, of_partner, partner, 1, temperature)
        return J_of.of(nats(l, of_partner, temperature)[:, 0]), NtXentCache(a, b, l)

    def backward(params, cache, dJ):
        u, per_length = directions(cache.a, cache.b)
        g = J_of.at_terms(dJ, (len(u),), below=1) / temperature
        dS = g * pull(*similarities(u), cache.l, temperature)
        dw = from_unit(u, per_length, (dS + dS.T) @ u)
        da, db = jnp.split(cast(dw, cache.a.dtype), 2)
        return (), (da, db)

    def directions(a, b):
        return unit(widen(jnp.concatenate([a, b])))

    def similarities(u):
        """S, where nothing is similar to itself; S at the partners; and where these are."""
        N = len(u) // 2
        itself = jnp.eye(2 * N, dtype=bool)
        S = jnp.where(itself, -jnp.inf, u @ u.T)
        of_partner = jnp.concatenate([jnp.diagonal(S, N), jnp.diagonal(S, -N)])
        return S, of_partner[:, None], jnp.roll(itself, N, axis=1)

    return Layer(no_params, forward, backward, who, couples="the negatives")


@called_as(nt_xent)
def reference(params: tuple[()], x: tuple[Array, Array], temperature, reduction) -> Array:
    w = jnp.concatenate(x)
    square = jnp.sum(w**2, axis=-1, keepdims=True)
    u = jnp.where(square == 0, 0, w / jnp.sqrt(jnp.where(square == 0, 1, square)))
    logits = jnp.where(jnp.eye(len(u), dtype=bool), -jnp.inf, u @ u.T / temperature)
    partner = jnp.roll(jnp.arange(len(u)), len(u) // 2)
    terms = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=1), partner[:, None], axis=1)[:, 0]
    return naive_reduction(terms, reduction)


RULE = Rule(
    "nt_xent",
    nt_xent,
    reference,
    cases=(
        Case(
            "two views",
            (Real("N d"), Real("N d")),
            {"temperature": Interval(0.05, 2.0, 0.5)},
            ("N", "d"),
            timed={"N": 256, "d": 128},
        ),
        Case("each view", (Real("N d"), Real("N d")), {"reduction": "none"}, ("N", "d")),
    ),
    cite="SimCLR, arXiv:2002.05709, equation 1",
    covers=("simclr",),
)
