"""gated_linear_attention: linear attention whose past fades, by a factor for each feature of the key and each step.

Forward, for each head, with q, k and the logarithms g of what remains of shape (T, D), and v of shape (T, E):

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T                              (D, E)
    y_t = S_t^T q_t                                                       (T, E)
        = sum_{s<=t} (sum_i q_ti k_si Lambda_tsi) v_s,   Lambda_tsi = exp(sum of g_ui over s < u <= t)

where S_0 is 0. It may be given, and S_T is given out if it is asked for: what one piece of a sequence hands on to the
next. Where one of several packed sequences begins, g_t is -inf, whatever is given.

A g that is the same for all features of a head is `retention`.

Differential. With dS_t the cotangent of S_t:

    dJ = sum_t dy_t . (S_t^T delta q_t)
         + <dS_t, diag(exp(g_t) delta g_t) S_{t-1} + delta k_t v_t^T + k_t delta v_t^T>
    dS_t = q_t dy_t^T + diag(exp(g_{t+1})) dS_{t+1}      dS_0 = diag(exp(g_1)) dS_1

where at T the cotangent of the S_T that is given out, or 0, stands for the last term. With S_0 = 0 and that 0,

    dq_ti = sum_e S_tie dy_te        = sum_{s<=t} (dy_t . v_s) Lambda_tsi k_si               (T, D)
    dk_si = sum_e dS_sie v_se        = sum_{t>=s} (dy_t . v_s) Lambda_tsi q_ti               (T, D)
    dv_se = sum_i k_si dS_sie        = sum_{t>=s} (sum_i q_ti k_si Lambda_tsi) dy_te         (T, E)
    dg_ui = sum over s < u <= t of (dy_t . v_s) q_ti k_si Lambda_tsi                         (T, D)

Lambda has T^2 D values. It factorises at any step m between s and t: Lambda_tsi = f_ti e_si, f from m to t and e from
s to m, both at most 1 where gates are. So, of any two neighbouring stretches of time, all that the first gives to the
second is a product of matrices, with f of the second and e of the first, row by row:

    A = (f q)(e k)^T         y += A v                   second reads first
    R = dy v^T               dq += f * R (e k)          dk += e * R^T (f q)          dv += A^T dy

and of these pairs dg_u has, for u in the second, the sum of q * dq over t >= u; in the first, of k * dk over s < u.
A chunk of L steps is halved, and halved again, log2 L times, until single steps remain, which see themselves undecayed.
Between chunks it is the state that is handed on, with f from the chunk's start, e to its end, and w of the whole:

    y += (f q) S             S after = diag(w) S + (e k)^T v
    dq += f * dy S^T         dk += e * v dS^T           dv += (e k) dS
    dS before = diag(w) dS + (f q)^T dy

and dg_u has sum_{t>=u} of q * (f * dy S^T), sum_{s<u} of k * (e * v dS^T), and w times the row sums of S * dS.

Cached: q, k, v and g as they came. The states before each chunk are made again, one product for each.

Numerical care: the usual form, with exp(b_t) and exp(-b_s) of the sums b from the chunk's start, overflows where gates
are small; here each exponential is of a sum of g over the steps between, which is never positive where g is not. dg
as the sum over t >= u of q_t dq_t - k_t dk_t counts pairs twice and takes them off again, and cancels; here every pair
counts where it crosses u, once. A gate of 0 (g = -inf) is exact, and dg is 0 there. All is at least float32.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.attention.heads_to_try import GATES, STATE, TIMED_WITH_STATE, TWO, TWO_GROUPED, WITHIN, packed
from bpref.formulas.attention.plain_heads import GatedHeads, require_gated
from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import dot, transpose
from bpref.formulas.recurrence.decays import per_row, per_step
from bpref.formulas.recurrence.feature_decays import from_start, halvings, joined, kept, sum_before, sum_from, to_end
from bpref.formulas.recurrence.state_by_chunks import Chunk, OneChunk, state_by_chunks
from bpref.formulas.recurrence.steps import Passed
from bpref.layer import Layer
from bpref.naive.states import added, naive_states
from bpref.rule import Case, Real, Rule, called_as, specs


def gated_linear_attention(chunk: int = 32, final: bool = False) -> Layer[tuple[()], GatedHeads, PyTree, GatedHeads]:
    """y_t = S_t^T q_t, with S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T.

    Args:
      chunk: L, a power of 2, the number of steps that are compared directly; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `()`, x `GatedHeads(Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E), q_segments:
      (*b, T) or None), log_gate: (*b, T, K, D), state: (*b, K, D, E) or None)`, N a multiple of K, and y
      `(*b, T, N, E)`, or if `final` `Passed(y, state: (*b, K, D, E))`. Queries are not scaled. The cache is x.

      A step whose segment is another than that of the step before it begins with a state of 0.

    Raises:
      ValueError: `chunk` is not a power of 2; shapes do not fit; x has a mask, bias, kv_segments or key.
      TypeError: x is no `GatedHeads`; its arrays are not floating-point numbers of one dtype.
    """
    require, one = partial(require_gated, per_feature=True), OneChunk(_forward, _backward, _kept)
    return state_by_chunks("gated_linear_attention", GatedHeads, chunk, final, require, one, is_halved=True)


def _forward(S: Array, chunk: Chunk) -> tuple[Array, Array, None]:
    q, k, v, g = chunk
    f, e = from_start(g), to_end(g)
    y = times(per_row(f, q.shape[1]) * q, S) + _inside(q, k, v, g)
    return kept(f, S) + times(transpose(e * k), v), y, None


def _kept(S: Array, chunk: Chunk) -> tuple[Array, None]:
    _, k, v, g = chunk
    return kept(from_start(g), S) + times(transpose(to_end(g) * k), v), None


def _backward(dS: Array, chunk: Chunk, S: Array, _: None, dy: Array) -> tuple[Array, Chunk]:
    q, k, v, g = chunk
    f, e = from_start(g), to_end(g)
    f_row = per_row(f, q.shape[1])
    dq, dk, dv = f_row * times(dy, transpose(S)), e * times(v, transpose(dS)), times(e * k, dS)
    through = f[:, -1:] * jnp.sum(S * dS, -1)[:, None]
    dg = sum_from(per_step(q * dq, k.shape[1])) + sum_before(k * dk) + through
    inside = _pull_inside(q, k, v, g, dy)
    dS = kept(f, dS) + times(transpose(f_row * q), dy)
    return dS, tuple(a + b for a, b in zip((dq, dk, dv, dg), inside, strict=True))


def _inside(q: Array, k: Array, v: Array, g: Array) -> Array:
    """What the steps of one chunk give to each other: (G, rows, E)."""
    rows, L = q.shape[1], k.shape[1]
    y = dot(q, per_row(k, rows)) * per_row(v, rows)
    for (_, q_2), (k_1, _), (v_1, _), (g_1, g_2) in halvings(L, q, k, v, g):
        A = times(per_row(from_start(g_2), q_2.shape[-2]) * q_2, transpose(to_end(g_1) * k_1))
        read = times(A, v_1)
        y = y + joined(jnp.zeros_like(read), read)
    return y


def _pull_inside(q: Array, k: Array, v: Array, g: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
    """dq, dk, dv and dg of `_inside`."""
    rows, L = q.shape[1], k.shape[1]
    own = dot(dy, per_row(v, rows))
    dq, dk = own * per_row(k, rows), per_step(own * q, L)
    dv, dg = per_step(dot(q, per_row(k, rows)) * dy, L), jnp.zeros_like(g)
    for (_, q_2), (k_1, _), (v_1, _), (g_1, g_2), (_, dy_2) in halvings(L, q, k, v, g, dy):
        f, e = per_row(from_start(g_2), q_2.shape[-2]), to_end(g_1)
        fq, ek, R = f * q_2, e * k_1, times(dy_2, transpose(v_1))
        dq_2, dk_1 = f * times(R, ek), e * times(transpose(R), fq)
        dv_1 = times(transpose(times(fq, transpose(ek))), dy_2)
        dq = dq + joined(jnp.zeros_like(dq_2), dq_2)
        dk = dk + joined(dk_1, jnp.zeros_like(dk_1))
        dv = dv + joined(dv_1, jnp.zeros_like(dv_1))
        dg = dg + joined(sum_before(k_1 * dk_1), sum_from(per_step(q_2 * dq_2, g_2.shape[-2])))
    return dq, dk, dv, dg


@called_as(gated_linear_attention)
def reference(params: tuple[()], x: GatedHeads, final, **_) -> Array | Passed:
    def step(S, k_t, v_t, g_t):
        return added(jnp.exp(g_t)[..., None] * S, k_t, v_t)

    return naive_states(step, x.heads, (x.log_gate,), x.state, final)


RULE = Rule(
    "gated_linear_attention",
    gated_linear_attention,
    reference,
    cases=(
        Case("grouped", specs(GatedHeads, WITHIN, GATES), {"chunk": 4}, fixed=TWO_GROUPED),
        Case("longer chunks", specs(GatedHeads, WITHIN, GATES), {"chunk": 16}, fixed=TWO, timed=TIMED_WITH_STATE),
        Case(
            "from state to state, packed",
            specs(GatedHeads, packed(WITHIN), Real("B T K D", -2.0, 0.0), STATE),
            {"chunk": 2, "final": True},
            fixed=TWO_GROUPED,
        ),
    ),
    cite="Yang et al., 'Gated linear attention transformers with hardware-efficient training' (2023), "
    "arXiv:2312.06635, equations 3 to 6",
    covers=("gla",),
)
