"""kimi_delta_attention: the delta rule on a state that fades, by a factor for each feature of the key and each step.

Forward, for each head, with q, k and the logarithms g of what remains of shape (T, D), v (T, E) and beta (T,):

    S'_t = diag(exp(g_t)) S_{t-1}                                         (D, E)
    c_t  = v_t - S'_t^T k_t                 what the state lacks          (T, E)
    S_t  = S'_t + k_t u_t^T,    u_t = beta_t c_t                          (D, E)
    y_t  = S_t^T q_t                                                      (T, E)

so that S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T. A g that is the same for all features of
a head is `delta_rule`. S_0 is 0 unless it is given, and S_T is given out if it is asked for: what one piece of a
sequence hands on to the next. Where one of several packed sequences begins, g_t is -inf, whatever is given.

Given u it is `gated_linear_attention` with the values u, and c follows from v by a triangular system. In a chunk of L
steps, S the state before it, Lambda_tsi = exp(sum of g_ui over s < u <= t), and f, e and w what is left of each feature
from the start, to the end, and of the whole,

    P_ts = sum_i q_ti Lambda_tsi k_si       s <= t, else 0
    N_ts = sum_i k_ti Lambda_tsi k_si       s < t, else 0
    c    = (I + N diag(beta))^-1 (v - (f k) S)                            (L, E)
    y    = P u + (f q) S                                                  (L, E)
    S after = diag(w) S + (e k)^T u                                       (D, E)

Differential, with dS the cotangent of S after, and u_hat what an error turned into, in time's other direction:

    du    = P^T dy + (e k) dS                                             what y and S after give to u
    delta c + N delta (beta c) + (delta N) u = delta v - delta ((f k) S)
    u_hat = (I + N^T diag(beta))^-1 du      from  u_hat = du - N^T (beta u_hat)
    dc    = beta u_hat                      the cotangent of v - (f k) S  (L, E)

The cotangent of P is dy u^T, that of N is -dc u^T; what they give to q, k and g is made by halves of the chunk, see
`bpref/formulas/recurrence/feature_decays.py`, and called here by P and N. The factor of each perturbation:

    dv = dc                 dbeta_t = c_t . u_hat_t                       (L, E), (L,)
    dq = f * dy S^T                                  + P's                (L, D)
    dk = e * u dS^T - f * dc S^T                     + P's + N's          (L, D)
    dS before = diag(w) dS + (f q)^T dy - (f k)^T dc                      (D, E)

and dg_u has sum_{t>=u} of q * (f * dy S^T) - k * (f * dc S^T), sum_{s<u} of k * (e * u dS^T), and w times the row sums
of S * dS, beside what P and N give. dS after the last chunk is the cotangent of the S_T that is given out, or 0; dS
before the first is dS_0.

Cached: x as it came. States and errors are made again, chunk by chunk.

Numerical care: no exponential of a positive sum where gates are at most 1: the usual form, with exp(b_t) and exp(-b_s)
of the sums b from the chunk's start, overflows where they are small. dg counts every pair where it crosses u, once.
A gate of 0 (g = -inf) is exact, and dg is 0 there. The triangular matrix is inverted by products of blocks, nothing is
divided by beta. All is at least float32. Keys are to be of length 1 (`l2_normalize`), for beta from 0 to 2, as in
`delta_rule`.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.attention.heads_to_try import GATES, SHORT_KEYS, STATE, TIMED_WITH_STATE, TWO, TWO_GROUPED, packed
from bpref.formulas.attention.plain_heads import DeltaHeads, require_delta
from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import dot, sees, transpose
from bpref.formulas.recurrence.decays import per_row, per_step
from bpref.formulas.recurrence.feature_decays import (
    from_start,
    kept,
    overlaps,
    pull_overlaps,
    sum_before,
    sum_from,
    to_end,
)
from bpref.formulas.recurrence.state_by_chunks import Chunk, OneChunk, state_by_chunks
from bpref.formulas.recurrence.steps import Passed
from bpref.formulas.recurrence.unit_triangular import inverse_of_unit
from bpref.layer import Layer
from bpref.naive.states import corrected, naive_states
from bpref.rule import Case, Real, Rule, called_as, specs


def kimi_delta_attention(chunk: int = 32, final: bool = False) -> Layer[tuple[()], DeltaHeads, PyTree, DeltaHeads]:
    """y_t = S_t^T q_t, with S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T.

    Args:
      chunk: L, a power of 2, the number of steps that are solved for together; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `()`, x `DeltaHeads(Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E), q_segments:
      (*b, T) or None), beta: (*b, T, K), log_gate: (*b, T, K, D), state: (*b, K, D, E) or None)`, N a multiple of K,
      and y `(*b, T, N, E)`, or if `final` `Passed(y, state: (*b, K, D, E))`. Queries are not scaled, keys are not
      normalized. The cache is x.

      A step whose segment is another than that of the step before it begins with a state of 0.

    Raises:
      ValueError: `chunk` is not a power of 2; shapes do not fit; x has a mask, bias, kv_segments or key, or no gates.
      TypeError: x is no `DeltaHeads`; its arrays are not floating-point numbers of one dtype.
    """
    require, one = partial(require_delta, per_feature=True), OneChunk(_forward, _backward)
    return state_by_chunks("kimi_delta_attention", DeltaHeads, chunk, final, require, one, is_halved=True)


def _read(q: Array, k: Array) -> Array:
    """What reads the state at each step: its queries, then its key, (G, rows + L, D)."""
    G, L, D = k.shape
    rows = q.shape[1]
    return jnp.reshape(jnp.concatenate((jnp.reshape(q, (G, L, rows // L, D)), k[:, :, None]), 2), (G, rows + L, D))


def _unread(x: Array, L: int) -> tuple[Array, Array]:
    """The way back, rows apart: those of queries and those of keys."""
    G, rows, D = x.shape
    x = jnp.reshape(x, (G, L, rows // L, D))
    return jnp.reshape(x[:, :, :-1], (G, rows - L, D)), x[:, :, -1]


def _forward(S: Array, chunk: Chunk) -> tuple[Array, Array, Array]:
    """Kept are the errors c."""
    q, k, v, beta, g = chunk
    L = k.shape[1]
    f = from_start(g)
    P, N = _unread(overlaps(_read(q, k), k, g), L)
    c = times(inverse_of_unit(_earlier(N) * transpose(beta)), v - times(f * k, S))
    u = beta * c
    y = times(P, u) + times(per_row(f, q.shape[1]) * q, S)
    return kept(f, S) + times(transpose(to_end(g) * k), u), y, c


def _backward(dS: Array, chunk: Chunk, S: Array, c: Array, dy: Array) -> tuple[Array, Chunk]:
    q, k, _, beta, g = chunk
    L = k.shape[1]
    f, e = from_start(g), to_end(g)
    f_row = per_row(f, q.shape[1])
    read = _read(q, k)
    P, N = _unread(overlaps(read, k, g), L)
    u = beta * c
    du = times(transpose(P), dy) + times(e * k, dS)
    u_hat = times(transpose(inverse_of_unit(beta * _earlier(N))), du)
    dc = beta * u_hat
    dP, dN = times(dy, transpose(u)), _earlier(-times(dc, transpose(u)))
    dread, dk, dg = pull_overlaps(_read(dP, dN), read, k, g)
    dq, dk_read = _unread(dread, L)
    dq_before, dk_before = f_row * times(dy, transpose(S)), -f * times(dc, transpose(S))
    dk_after = e * times(u, transpose(dS))
    before = per_step(q * dq_before, L) + k * dk_before
    dg = dg + sum_from(before) + sum_before(k * dk_after) + f[:, -1:] * jnp.sum(S * dS, -1)[:, None]
    dk = dk + dk_read + dk_before + dk_after
    dS = kept(f, dS) + times(transpose(f_row * q), dy) - times(transpose(f * k), dc)
    return dS, (dq + dq_before, dk, dc, dot(c, u_hat), dg)


def _earlier(N: Array) -> Array:
    """N where s < t, else 0."""
    L = N.shape[-1]
    return jnp.where(sees(L, L, strictly=True), N, 0)


@called_as(kimi_delta_attention)
def reference(params: tuple[()], x: DeltaHeads, final, **_) -> Array | Passed:
    def step(S, k_t, v_t, beta_t, g_t):
        return corrected(jnp.exp(g_t)[..., None] * S, k_t, v_t, beta_t)

    assert x.log_gate is not None
    return naive_states(step, x.heads, (x.beta[..., None], x.log_gate), x.state, final)


_BETA = Real("B T K", 0.0, 1.0, points=(1.0, 0.0))

RULE = Rule(
    "kimi_delta_attention",
    kimi_delta_attention,
    reference,
    cases=(
        Case("grouped", specs(DeltaHeads, SHORT_KEYS, _BETA, GATES), {"chunk": 4}, fixed=TWO_GROUPED),
        Case(
            "longer chunks",
            specs(DeltaHeads, SHORT_KEYS, _BETA, GATES),
            {"chunk": 16},
            fixed=TWO,
            timed=TIMED_WITH_STATE,
        ),
        Case(
            "from state to state, packed",
            specs(DeltaHeads, packed(SHORT_KEYS), _BETA, Real("B T K D", -2.0, 0.0), STATE),
            {"chunk": 2, "final": True},
            fixed=TWO_GROUPED,
        ),
    ),
    cite="Kimi Team, 'Kimi Linear: an expressive, efficient attention architecture' (2025), arXiv:2510.26692, "
    "section 3 (equation number not checked)",
    covers=("kda", "channel-wise gated delta rule"),
)
