"""info_nce: each row of one side picks its partner among all rows of the other, by a softmax over similarities.

The mean is that of all terms, one for each pair: what `reduction="none"` gives.

Forward, with two sides a and b of N rows (row i of one belongs to row i of the other), T the `temperature`, and u, v
the rows themselves or, with `normalize`, divided by their lengths:

    S_ij = u_i . v_j                                                      (N, N)
    l_i  = log sum_j exp(S_ij / T),    m_j = log sum_i exp(S_ij / T)      (N,)
    J    = 1/N sum_i (l_i - S_ii / T)                                     J: ()
    or, with `symmetric`, the mean of both directions: 1/(2N) sum_i (l_i + m_i - 2 S_ii / T)

Differential, with p_ij = exp(S_ij / T - l_i) whose rows sum to 1, and q_ij = exp(S_ij / T - m_j) whose columns do:

    delta J = 1/(N T) sum_ij (p_ij - [i = j]) delta S_ij    or  1/(2N T) sum_ij (p_ij + q_ij - 2 [i = j]) delta S_ij

The sweep starts with dJ. The factor of each perturbation, with g_i = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dS_ij = g_i (p_ij - [i = j]) / T                                      (N, N)
            or  (g_i (p_ij - [i = j]) + g_j (q_ij - [i = j])) / (2 T)
    du_i  = sum_j dS_ij v_j                                               (N, d)
    dv_j  = sum_i dS_ij u_i             S is square, but not symmetric    (N, d)
    da, db from du, dv as `unit_vectors` has it                           (N, d)

Both sides have a cotangent; one that is constant (MoCo's keys) is simply not asked for its own.

Cached: a and b, and l (and m), in two parts each, largest and sum. Similarities and softmax, N^2 numbers
each, are made again with one product, where autodiff keeps N^2 several times; that is what limits the batch. Under one
jit XLA merges the second product with the first; compiled apart from its forward, the backward makes three products
where autodiff makes two.

Numerical care: l_i - S_ii / T and p_ii - 1 cancel once partners are found; neither is formed (`contrast`). Half
precision is widened before rows are divided by their lengths, and S stays in float32. A row of length 0 has direction
0: its similarities are 0, and its cotangent is taken as 0. There is no other kink.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.loss.contrast import LogSumExp, Views, log_sum_exp, nats, pull
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.norm.unit_vectors import from_unit, unit
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as


class InfoNceCache(NamedTuple):
    a: Float[Array, "N d"]
    b: Float[Array, "N d"]
    l: LogSumExp
    m: LogSumExp | None


def info_nce(
    temperature: float = 0.1, normalize: bool = True, symmetric: bool = True, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, InfoNceCache]:
    """J = mean of -log softmax(u v^T / temperature)_ii, over rows, or over rows and columns.

    Args:
      temperature: what similarities are divided by.
      normalize: whether rows are divided by their lengths first, so that similarities are cosines.
      symmetric: whether the columns pick their partners too, as in CLIP, or the rows alone.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(a, b)`, both `(N, d)`, and y the scalar J, or the terms (N,), in at least float32.

    Raises:
      ValueError: temperature is not positive; the reduction is none of these; a is no matrix with at least one row and
        column; the shapes differ.
      TypeError: x is no pair; a is not floating-point; the dtypes differ.
    """
    who = "info_nce"
    require_flags(who, normalize=normalize, symmetric=symmetric)
    temperature = require_positive(who, "temperature", temperature)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Views):
        a, b = x
        S, S_ii, own = similarities(directions(a)[0], directions(b)[0])
        l = log_sum_exp(S, S_ii, own, 1, temperature)
        terms = nats(l, S_ii, temperature)[:, 0]
        m = log_sum_exp(S, S_ii.T, own, 0, temperature) if symmetric else None
        if m is not None:
            terms = 0.5 * (terms + nats(m, S_ii.T, temperature)[0])
        return J_of.of(terms), InfoNceCache(a, b, l, m)

    def backward(params, cache, dJ):
        (u, per_a), (v, per_b) = directions(cache.a), directions(cache.b)
        S, S_ii, own = similarities(u, v)
        g = J_of.at_terms(dJ, (len(u),), below=1) / temperature
        dS = g * pull(S, S_ii, own, cache.l, temperature)
        if cache.m is not None:
            dS = 0.5 * (dS + g.T * pull(S, S_ii.T, own, cache.m, temperature))
        du, dv = dS @ v, dS.T @ u
        if normalize:
            du, dv = from_unit(u, per_a, du), from_unit(v, per_b, dv)
        return (), (cast(du, cache.a.dtype), cast(dv, cache.a.dtype))

    def directions(z: Array) -> tuple[Array, PyTree]:
        return unit(widen(z)) if normalize else (widen(z), None)

    def similarities(u, v):
        S = u @ v.T
        return S, jnp.diagonal(S)[:, None], jnp.eye(len(u), dtype=bool)

    return Layer(no_params, forward, backward, who, couples="the negatives")


@called_as(info_nce)
def reference(params: tuple[()], x: tuple[Array, Array], temperature, normalize, symmetric, reduction) -> Array:
    def direction(z):
        square = jnp.sum(z**2, axis=-1, keepdims=True)
        return jnp.where(square == 0, 0, z / jnp.sqrt(jnp.where(square == 0, 1, square)))

    a, b = map(direction, x) if normalize else x
    logits = a @ b.T / temperature
    rows, columns = (-jnp.diag(jax.nn.log_softmax(logits, axis=axis)) for axis in (1, 0))
    return naive_reduction((rows + columns) / 2 if symmetric else rows, reduction)


_TEMPERATURE = Interval(0.05, 2.0, 0.1)
_X = (Real("N d"), Real("N d"))

RULE = Rule(
    "info_nce",
    info_nce,
    reference,
    cases=(
        Case("symmetric", _X, {"temperature": _TEMPERATURE}, ("N", "d"), timed={"N": 512, "d": 128}),
        Case("one-sided", _X, {"temperature": _TEMPERATURE, "symmetric": False}, ("N", "d")),
        Case(
            "no cosines",
            _X,
            {"temperature": Interval(1.0, 10.0, 5.0), "normalize": False, "reduction": "none"},
            ("N", "d"),
        ),
    ),
    cite="arXiv:1807.03748, equation 4; symmetric: CLIP, arXiv:2103.00020, figure 3",
    covers=("clip", "contrastive", "n_pairs"),
)
