"""generalized_delta_rule: attention whose state fades, and reads itself by one vector to write what it read by another.

Forward, for each head, with q, k, a, b and the logarithms g of what remains of shape (T, D), and v of shape (T, E):

    r_t = S_{t-1}^T a_t                     what is read                  (T, E)
    S_t = diag(exp(g_t)) S_{t-1} + b_t r_t^T + k_t v_t^T                  (D, E)
    y_t = S_t^T q_t                                                       (T, E)

so that S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T. RWKV-7's is a = -k' and b = k' times its learning rate,
element by element, for a k' of length 1; b = 0 is `gated_linear_attention`. S_0 is 0 unless it is given, and S_T is
given out if it is asked for: what one piece of a sequence hands on to the next. Where one of several packed sequences
begins, g_t is -inf and a_t is 0, whatever is given.

In a chunk of L steps, S the state before it, Lambda_tsi = exp(sum of g_ui over s < u <= t), f, e and w what is left of
each feature from the start, to the end, and of the whole, and f' that before the step's own gate,

    P_ts = sum_i q_ti Lambda_tsi b_si       P'_ts = sum_i q_ti Lambda_tsi k_si            s <= t, else 0
    A_ts = sum_i a_ti Lambda_t-1,si b_si    A'_ts = sum_i a_ti Lambda_t-1,si k_si         s < t, else 0
    r = (I - A)^-1 ((f' a) S + A' v)                                      (L, E)
    y = P r + P' v + (f q) S                                              (L, E)
    S after = diag(w) S + (e b)^T r + (e k)^T v                           (D, E)

Differential, with dS the cotangent of S after, and r_hat that of what the triangular system is solved for:

    dr    = P^T dy + (e b) dS                                             what y and S after give to r
    r_hat = (I - A^T)^-1 dr                 from  delta r - A delta r - (delta A) r = delta ((f' a) S + A' v)
    dP = dy r^T      dP' = dy v^T      dA = r_hat r^T      dA' = r_hat v^T

What these four give to q, a, b, k and g is made by halves of the chunk, see
`bpref/formulas/recurrence/feature_decays.py`. The factor of each perturbation:

    dv = P'^T dy + A'^T r_hat + (e k) dS                                  (L, E)
    dq = f * dy S^T + P's and P''s          da = f' * r_hat S^T + A's and A''s            (L, D)
    db = e * r dS^T + P's and A's           dk = e * v dS^T + P''s and A''s               (L, D)
    dS before = diag(w) dS + (f q)^T dy + (f' a)^T r_hat                  (D, E)

and dg_u has sum_{t>=u} of q * (f * dy S^T), sum_{t>u} of a * (f' * r_hat S^T), sum_{s<u} of b * (e * r dS^T) +
k * (e * v dS^T), and w times the row sums of S * dS, beside what the four give. dS after the last chunk is the
cotangent of the S_T that is given out, or 0; dS before the first is dS_0.

Cached: x as it came. States and what they read are made again, chunk by chunk.

Numerical care: no exponential of a positive sum where gates are at most 1, and nothing is divided by a gate: reading
before the gate is a sum that ends one step earlier. dg counts every pair where it crosses u, once. A gate of 0
(g = -inf) is exact, and dg is 0 there. The triangular matrix is inverted by products of blocks. All is at least
float32. The state grows without bound where diag(exp(g)) + b a^T does, in this form and in any.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.attention.heads_to_try import GATES, STATE, TIMED_WITH_STATE, TWO, TWO_GROUPED, WITHIN, packed
from bpref.formulas.attention.plain_heads import SelfReadingHeads, require_plain
from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import transpose
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
from bpref.formulas.recurrence.state_by_chunks import Chunk, OneChunk, gates_forgetting, state_by_chunks
from bpref.formulas.recurrence.states import begins
from bpref.formulas.recurrence.steps import Passed
from bpref.formulas.recurrence.unit_triangular import inverse_of_unit
from bpref.layer import Layer
from bpref.naive.states import added, naive_states
from bpref.rule import Case, Real, Rule, called_as, specs


def generalized_delta_rule(
    chunk: int = 32, final: bool = False
) -> Layer[tuple[()], SelfReadingHeads, PyTree, SelfReadingHeads]:
    """y_t = S_t^T q_t, with S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T.

    Args:
      chunk: L, a power of 2, the number of steps that are solved for together; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `()`, x `SelfReadingHeads(Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E),
      q_segments: (*b, T) or None), log_gate, a, b: (*b, T, K, D), state: (*b, K, D, E) or None)`, N a multiple of K,
      and y `(*b, T, N, E)`, or if `final` `Passed(y, state: (*b, K, D, E))`. Queries are not scaled, nothing is
      normalized. The cache is x.

      A step whose segment is another than that of the step before it begins with a state of 0.

    Raises:
      ValueError: `chunk` is not a power of 2; shapes do not fit; x has a mask, bias, kv_segments or key.
      TypeError: x is no `SelfReadingHeads`; its arrays are not floating-point numbers of one dtype.
    """

    def reading(a, x):
        """a, or its cotangent, 0 where a segment begins."""
        ids = x.heads.q_segments
        return a if ids is None else jnp.where(begins(ids)[..., None, None], 0, a)

    return state_by_chunks(
        "generalized_delta_rule",
        SelfReadingHeads,
        chunk,
        final,
        lambda who, x: require_plain(who, x.heads),
        OneChunk(_forward, _backward),
        lambda x: gates_forgetting(x)._replace(a=reading(x.a, x)),
        lambda x, d: d._replace(a=reading(d.a, x)),
        is_halved=True,
    )


def _paired(b: Array, k: Array, axis: int) -> Array:
    """What is written at each step, b or what is of it, then k, in turn along an axis of steps."""
    both = jnp.stack((b, k), axis + 1)
    return jnp.reshape(both, (*b.shape[:axis], 2 * b.shape[axis], *b.shape[axis + 1 :]))


def _unpaired(z: Array, axis: int) -> tuple[Array, Array]:
    """The way back."""
    z = jnp.reshape(z, (*z.shape[:axis], z.shape[axis] // 2, 2, *z.shape[axis + 1 :]))
    b, k = jnp.split(z, 2, axis + 1)
    return jnp.squeeze(b, axis + 1), jnp.squeeze(k, axis + 1)


def _forward(S: Array, chunk: Chunk) -> tuple[Array, Array, Array]:
    """Kept is r."""
    q, k, v, g, a, b = chunk
    written = _paired(b, k, 1)
    of_q = overlaps(q, written, g)
    A, A_v = _unpaired(overlaps(a, written, g, early=True), 2)
    r = times(inverse_of_unit(-A), times(from_start(g, early=True) * a, S) + times(A_v, v))
    rv = _paired(r, v, 1)
    f, e = from_start(g), to_end(g)
    y = times(of_q, rv) + times(per_row(f, q.shape[1]) * q, S)
    return kept(f, S) + times(transpose(per_row(e, rv.shape[1]) * written), rv), y, r


def _backward(dS: Array, chunk: Chunk, S: Array, r: Array, dy: Array) -> tuple[Array, Chunk]:
    q, k, v, g, a, b = chunk
    L = k.shape[1]
    f, f_early, e = from_start(g), from_start(g, early=True), to_end(g)
    f_row, e_row = per_row(f, q.shape[1]), per_row(e, 2 * L)
    written, rv = _paired(b, k, 1), _paired(r, v, 1)
    of_q, of_a = overlaps(q, written, g), overlaps(a, written, g, early=True)
    A, A_v = _unpaired(of_a, 2)
    dr, dv = _unpaired(times(transpose(of_q), dy) + times(e_row * written, dS), 1)
    r_hat = times(transpose(inverse_of_unit(-A)), dr)
    dv = dv + times(transpose(A_v), r_hat)
    dq, dwritten_q, dg_q = pull_overlaps(times(dy, transpose(rv)), q, written, g)
    da, dwritten_a, dg_a = pull_overlaps(times(r_hat, transpose(rv)), a, written, g, early=True)
    dq_before, da_before = f_row * times(dy, transpose(S)), f_early * times(r_hat, transpose(S))
    dwritten = e_row * times(rv, transpose(dS))
    dg = dg_q + dg_a + sum_from(per_step(q * dq_before, L)) + sum_from(a * da_before, early=True)
    dg = dg + sum_before(per_step(written * dwritten, L)) + f[:, -1:] * jnp.sum(S * dS, -1)[:, None]
    db, dk = _unpaired(dwritten + dwritten_q + dwritten_a, 1)
    dS = kept(f, dS) + times(transpose(f_row * q), dy) + times(transpose(f_early * a), r_hat)
    return dS, (dq + dq_before, dk, dv, dg, da + da_before, db)


@called_as(generalized_delta_rule)
def reference(params: tuple[()], x: SelfReadingHeads, final, **_) -> Array | Passed:
    def step(S, k_t, v_t, g_t, a_t, b_t):
        r_t = jnp.einsum("...d,...de->...e", a_t, S)
        return added(added(jnp.exp(g_t)[..., None] * S, b_t, r_t), k_t, v_t)

    return naive_states(step, x.heads, (x.log_gate, x.a, x.b), x.state, final)


_A = Real("B T K D", -0.5, 0.5)

RULE = Rule(
    "generalized_delta_rule",
    generalized_delta_rule,
    reference,
    cases=(
        Case("grouped", specs(SelfReadingHeads, WITHIN, GATES, _A, _A), {"chunk": 4}, fixed=TWO_GROUPED),
        Case(
            "longer chunks",
            specs(SelfReadingHeads, WITHIN, GATES, _A, _A),
            {"chunk": 16},
            fixed=TWO,
            timed=TIMED_WITH_STATE,
        ),
        Case(
            "from state to state, packed",
            specs(SelfReadingHeads, packed(WITHIN), Real("B T K D", -2.0, 0.0), _A, _A, STATE),
            {"chunk": 2, "final": True},
            fixed=TWO_GROUPED,
        ),
    ),
    cite="Peng et al., 'RWKV-7 \"Goose\" with expressive dynamic state evolution' (2025), arXiv:2503.14456, section 3 "
    "(equation number not checked)",
    covers=("rwkv-7", "rwkv7", "dplr"),
)
