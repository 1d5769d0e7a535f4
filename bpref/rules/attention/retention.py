"""retention: linear attention whose past fades, by one factor for each head and step.

Forward, for each head, with q, k of shape (T, D), v (T, E) and the logarithm g (T,) of the factor that remains:

    S_t = exp(g_t) S_{t-1} + k_t v_t^T                                    (D, E)
    y_t = S_t^T q_t = sum_{s<=t} Lambda_ts (q_t . k_s) v_s + f_t S_0^T q_t                      (T, E)
    Lambda_ts = exp(sum of g_u over s < u <= t)      f_t = exp(sum of g_u over u <= t)

S_0 is 0 unless it is given, and S_T is given out if it is asked for: what one piece of a sequence hands on to the next.
Of packed sequences each begins with nothing but its own first step: there g_t is -inf, whatever is given.

A g that is the same at all steps makes it RetNet's retention; one that is computed from the input, Mamba-2's state
space dual form, with C, B and Delta x for q, k and v.

Differential. With dS_t the cotangent of S_t, in which dy_t and all later steps take part:

    dJ = sum_t dy_t . (S_t^T delta q_t) + <dS_t, exp(g_t) S_{t-1} delta g_t + delta k_t v_t^T + k_t delta v_t^T>
    dS_t = q_t dy_t^T + exp(g_{t+1}) dS_{t+1}      dS_0 = exp(g_1) dS_1

where at T the cotangent of the S_T that is given out, or 0, stands for the last term. With S_0 = 0 and that 0,

    dq_t = S_t dy_t         = sum_{s<=t} Lambda_ts (dy_t . v_s) k_s       (T, D)
    dk_s = dS_s v_s         = sum_{t>=s} Lambda_ts (dy_t . v_s) q_t       (T, D)
    dv_s = dS_s^T k_s       = sum_{t>=s} Lambda_ts (q_t . k_s) dy_t       (T, E)
    dg_u = exp(g_u) <S_{u-1}, dS_u>
         = sum_{s<u<=t} Lambda_ts (q_t . k_s) (dy_t . v_s)                (T,)

By chunks of L steps, from S before the chunk and the cotangent dS of the S after it, with A = q k^T, P = Lambda * A and
R = Lambda * (dy v^T); f, e and w are what remains from the chunk's start, to its end, and of the whole:

    y  = P v + f q S                      S after  = w S + (e k)^T v
    dq = R k + f dy S^T                   dk = R^T q + e v dS^T
    dv = P^T dy + e k dS                  dS before = w dS + (f q)^T dy

and dg_u collects what crosses u: of R * A pairs s < u <= t; of q . (f dy S^T) steps t >= u; of k . (e v dS^T) steps
s < u; and w <S, dS>. The usual form, the sum over t >= u of q_t . dq_t - k_t . dk_t, counts all pairs on one side of u
twice and takes them off again: it loses dg to round-off where gates are small.

Cached: q, k, v and g as they came. The states before each chunk are made again, one product for each, and so are the
factors between its steps: a fifth of the bytes that autodiff of the forward keeps.

Numerical care: states and products are at least float32. No exponential of a difference of sums, see
`bpref/formulas/recurrence/decays.py`, and products of many features are summed in blocks. Gates of 0 (g = -inf) and of
1 are exact, their dg too: it is 0 at a gate of 0, being the derivative by the logarithm, and where a segment begins.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.attention.heads_to_try import GATES, STATE, TIMED_WITH_STATE, TWO, TWO_GROUPED, WITHIN, packed
from bpref.formulas.attention.plain_heads import GatedHeads, require_gated
from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import dot, transpose
from bpref.formulas.recurrence.decays import decays, decays_to_end, per_row, per_step, pull_decays
from bpref.formulas.recurrence.state_by_chunks import Chunk, OneChunk, state_by_chunks
from bpref.formulas.recurrence.steps import Passed
from bpref.layer import Layer
from bpref.naive.states import added, naive_states
from bpref.rule import Case, Real, Rule, called_as, specs


def retention(chunk: int = 64, final: bool = False) -> Layer[tuple[()], GatedHeads, PyTree, GatedHeads]:
    """y_t = S_t^T q_t, with S_t = exp(g_t) S_{t-1} + k_t v_t^T.

    Args:
      chunk: L, the number of steps that are compared directly; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `()`, x `GatedHeads(Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E), q_segments:
      (*b, T) or None), log_gate: (*b, T, K), state: (*b, K, D, E) or None)`, N a multiple of K, and y `(*b, T, N, E)`,
      or if `final` `Passed(y, state: (*b, K, D, E))`. Queries are not scaled. The cache is x.

      A step whose segment is another than that of the step before it begins with a state of 0.

    Raises:
      ValueError: `chunk` is not a positive integer; shapes do not fit; x has a mask, bias, kv_segments or key.
      TypeError: x is no `GatedHeads`; its arrays are not floating-point numbers of one dtype.
    """
    one = OneChunk(_forward, _backward, _kept)
    return state_by_chunks("retention", GatedHeads, chunk, final, require_gated, one)


def _forward(S: Array, chunk: Chunk) -> tuple[Array, Array, None]:
    q, k, v, g = chunk
    rows = q.shape[1]
    between, f, e, w = decays(g)
    y = times(per_row(between, rows) * times(q, transpose(k)), v) + per_row(f, rows) * times(q, S)
    return w * S + times(transpose(e * k), v), y, None


def _kept(S: Array, chunk: Chunk) -> tuple[Array, None]:
    """The next state, which takes no factors between the steps."""
    _, k, v, g = chunk
    e, w = decays_to_end(g)
    return w * S + times(transpose(e * k), v), None


def _backward(dS: Array, chunk: Chunk, S: Array, kept: None, dy: Array) -> tuple[Array, Chunk]:
    q, k, v, g = chunk
    rows, L = q.shape[1], k.shape[1]
    between, f, e, w = decays(g)
    between, f_row = per_row(between, rows), per_row(f, rows)
    A, R = times(q, transpose(k)), between * times(dy, transpose(v))
    dq_before = f_row * times(dy, transpose(S))
    dk_after = e * times(v, transpose(dS))
    dv = times(transpose(between * A), dy) + e * times(k, dS)
    dg = pull_decays(
        per_step(R * A, L),
        per_step(dot(q, dq_before), L),
        dot(k, dk_after),
        w * jnp.sum(S * dS, (1, 2), keepdims=True),
    )
    dq, dk = times(R, k) + dq_before, times(transpose(R), q) + dk_after
    return w * dS + times(transpose(f_row * q), dy), (dq, dk, dv, dg)


@called_as(retention)
def reference(params: tuple[()], x: GatedHeads, final, **_) -> Array | Passed:
    def step(S, k_t, v_t, g_t):
        return added(jnp.exp(g_t)[..., None] * S, k_t, v_t)

    return naive_states(step, x.heads, (x.log_gate[..., None],), x.state, final)


_GATE = Real("B T K", -2.0, 0.0)

RULE = Rule(
    "retention",
    retention,
    reference,
    cases=(
        Case(
            "grouped", specs(GatedHeads, WITHIN, _GATE._replace(points=GATES.points)), {"chunk": 5}, fixed=TWO_GROUPED
        ),
        Case("one chunk", specs(GatedHeads, WITHIN, _GATE), fixed=TWO, timed=TIMED_WITH_STATE),
        Case(
            "from state to state, packed",
            specs(GatedHeads, packed(WITHIN), _GATE, STATE),
            {"chunk": 3, "final": True},
            fixed=TWO_GROUPED,
        ),
    ),
    cite="Sun et al., 'Retentive network' (2023), arXiv:2307.08621, equations 5 to 7; "
    "Dao and Gu, 'Transformers are SSMs' (2024), arXiv:2405.21060, section 6",
    covers=("retnet", "decayed linear attention", "scalar-gated linear attention"),
)
