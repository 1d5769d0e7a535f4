"""delta_rule: attention whose state learns, at every step, to answer the key with the value, by one step of descent.

Forward, for each head, with q, k of shape (T, D), v (T, E), beta (T,) and the logarithm g (T,) of a gate, or g = 0:

    S'_t = exp(g_t) S_{t-1}                                               (D, E)
    c_t  = v_t - S'_t^T k_t                 what the state lacks          (T, E)
    S_t  = S'_t + k_t u_t^T,    u_t = beta_t c_t                          (D, E)
    y_t  = S_t^T q_t                                                      (T, E)

S_0 is 0 unless it is given, and S_T is given out if it is asked for: what one piece of a sequence hands on to the next.
Where one of several packed sequences begins, g_t is -inf, whatever is given: S'_t is 0, and so is the transition.
k u^T is minus beta times the gradient of 1/2 |S'^T k - v|^2. Also S_t = (I - beta_t k_t k_t^T) S'_t + beta_t k_t v_t^T.

Given u it is `retention` with the values u, and c follows from v by a triangular system. In a chunk of L steps, S the
state before it, and Lambda, f, e and w what remains between steps, from the start, to the end, and of the whole,

    c_t = v_t - f_t S^T k_t - sum_{s<t} N_ts beta_s c_s,   N_ts = Lambda_ts (k_t . k_s) for s < t, else 0
    c   = (I + N diag(beta))^-1 (v - f k S)                               (L, E)
    y   = P u + f q S           P = Lambda * (q k^T)                      (L, E)
    S after = w S + (e k)^T u                                             (D, E)

Differential, with dS the cotangent of S after, and u_hat what an error turned into, in time's other direction:

    du    = P^T dy + e k dS                                               what y and S after give to u
    delta c + N delta (beta c) + (delta N) u = delta v - delta (f k S)
    u_hat = (I + N^T diag(beta))^-1 du      from  u_hat = du - N^T (beta u_hat)
    dc    = beta u_hat                      the cotangent of v - f k S    (L, E)

u_hat is the total cotangent of u, by y, by S after and by the later errors. The factor of each perturbation, with
R = Lambda * (dy u^T), and Q = -Lambda * (dc u^T) for s < t, else 0, the cotangent of k k^T:

    dv = dc                 dbeta_t = c_t . u_hat_t                       (L, E), (L,)
    dq = R k + f dy S^T                                                   (L, D)
    dk = R^T q + (Q + Q^T) k + e u dS^T - f dc S^T                        (L, D)
    dS before = w dS + (f q)^T dy - (f k)^T dc                            (D, E)

and dg_u collects what crosses step u, as in `retention`: of R * (q k^T) and Q * (k k^T) the pairs s < u <= t; of
q . (f dy S^T) - k . (f dc S^T) the steps t >= u; of k . (e u dS^T) the steps s < u; and w <S, dS>. dS after the last
chunk is the cotangent of the S_T that is given out, or 0; dS before the first is dS_0.

Cached: x as it came. States and errors are made again, chunk by chunk. The backward solves one system for each chunk,
where differentiating the solution of the forward's would keep the matrices and solve for k S as well.

Numerical care: the triangular matrix is inverted by blocks, [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]],
which is products alone, and not by powers of N, which cancel. Nothing is divided by beta,
which may be 0. All is at least float32. A step
multiplies what the state holds along k by 1 - beta |k|^2: keys are to be of length 1 (`l2_normalize`), for beta from 0
to 2; beyond, the state grows without bound, in this form and in any.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.attention.heads_to_try import SHORT_KEYS, STATE, TIMED_WITH_STATE, TWO, TWO_GROUPED, packed
from bpref.formulas.attention.plain_heads import DeltaHeads, require_delta
from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import dot, sees, transpose
from bpref.formulas.recurrence.decays import decays, per_pair, per_row, per_step, per_two_steps, pull_decays
from bpref.formulas.recurrence.state_by_chunks import Chunk, OneChunk, gates_forgetting, state_by_chunks
from bpref.formulas.recurrence.steps import Passed
from bpref.formulas.recurrence.unit_triangular import inverse_of_unit
from bpref.layer import Layer
from bpref.naive.states import corrected, naive_states
from bpref.rule import Case, Real, Rule, called_as, specs


def delta_rule(chunk: int = 32, final: bool = False) -> Layer[tuple[()], DeltaHeads, PyTree, DeltaHeads]:
    """y_t = S_t^T q_t, with S_t = (I - beta_t k_t k_t^T) exp(g_t) S_{t-1} + beta_t k_t v_t^T.

    Args:
      chunk: L, the number of steps that are solved for together; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `()`, x `DeltaHeads(Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E), q_segments:
      (*b, T) or None), beta: (*b, T, K), log_gate: (*b, T, K) or None, state: (*b, K, D, E) or None)`, N a multiple of
      K, and y `(*b, T, N, E)`, or if `final` `Passed(y, state: (*b, K, D, E))`. Queries are not scaled, keys are not
      normalized. The cache is x.

      A step whose segment is another than that of the step before it begins with a state of 0.

    Raises:
      ValueError: `chunk` is not a positive integer; shapes do not fit; x has a mask, bias, kv_segments or key.
      TypeError: x is no `DeltaHeads`; its arrays are not floating-point numbers of one dtype.
    """

    def used(x):
        return gates_forgetting(x if x.log_gate is not None else x._replace(log_gate=jnp.zeros_like(x.beta)))

    def pulled(x, d):
        return d if x.log_gate is not None else d._replace(log_gate=None)

    return state_by_chunks("delta_rule", DeltaHeads, chunk, final, require_delta, ERRORS_OF_CHUNK, used, pulled)


def _overlaps(k: Array, between: Array) -> tuple[Array, Array]:
    """Lambda_ts for s < t alone, and N."""
    steps = k.shape[1]
    earlier = jnp.where(sees(steps, steps, strictly=True), per_pair(between, steps, steps), 0)
    return earlier, earlier * times(k, transpose(k))


def _forward(S: Array, chunk: Chunk) -> tuple[Array, Array, Array]:
    """Kept are the errors c."""
    q, k, v, beta, g = chunk
    rows, steps = q.shape[1], k.shape[1]
    between, f, e, w = decays(g)
    _, N = _overlaps(k, between)
    c = times(inverse_of_unit(N * transpose(beta)), v - per_row(f, steps) * times(k, S))
    u = beta * c
    y = times(per_pair(between, rows, steps) * times(q, transpose(k)), u) + per_row(f, rows) * times(q, S)
    return w * S + times(transpose(per_row(e, steps) * k), u), y, c


def _backward(dS: Array, chunk: Chunk, S: Array, c: Array, dy: Array) -> tuple[Array, Chunk]:
    q, k, _, beta, g = chunk
    rows, steps, L = q.shape[1], k.shape[1], g.shape[1]
    between, f, e, w = decays(g)
    earlier, N = _overlaps(k, between)
    between, f_row, f, e = per_pair(between, rows, steps), per_row(f, rows), per_row(f, steps), per_row(e, steps)
    u = beta * c
    A, R = times(q, transpose(k)), between * times(dy, transpose(u))
    du = times(transpose(between * A), dy) + e * times(k, dS)
    u_hat = times(transpose(inverse_of_unit(beta * N)), du)
    dc = beta * u_hat
    Q = -earlier * times(dc, transpose(u))
    dq_before, dk_before = f_row * times(dy, transpose(S)), -f * times(dc, transpose(S))
    dk_after = e * times(u, transpose(dS))
    dk = times(transpose(R), q) + times(Q + transpose(Q), k) + dk_before + dk_after
    dg = pull_decays(
        per_two_steps(R * A, L) - per_two_steps(N * times(dc, transpose(u)), L),
        per_step(dot(q, dq_before), L) + per_step(dot(k, dk_before), L),
        per_step(dot(k, dk_after), L),
        w * jnp.sum(S * dS, (1, 2), keepdims=True),
    )
    dS = w * dS + times(transpose(f_row * q), dy) - times(transpose(f * k), dc)
    return dS, (times(R, k) + dq_before, dk, dc, dot(c, u_hat), dg)


ERRORS_OF_CHUNK = OneChunk(_forward, _backward)
"""What one chunk does, of as many keys as gates, or n for each of them."""


@called_as(delta_rule)
def reference(params: tuple[()], x: DeltaHeads, final, **_) -> Array | Passed:
    def step(S, k_t, v_t, beta_t, g_t):
        return corrected(jnp.exp(g_t)[..., None] * S, k_t, v_t, beta_t)

    g = jnp.zeros_like(x.beta) if x.log_gate is None else x.log_gate
    return naive_states(step, x.heads, (x.beta[..., None], g[..., None]), x.state, final)


_BETA = Real("B T K", 0.0, 1.0, points=(1.0, 0.0))
_GATE = Real("B T K", -2.0, 0.0, points=(0.0, -30.0, 0.0, -200.0))

RULE = Rule(
    "delta_rule",
    delta_rule,
    reference,
    cases=(
        Case("grouped", specs(DeltaHeads, SHORT_KEYS, _BETA), {"chunk": 5}, fixed=TWO_GROUPED),
        Case("gated", specs(DeltaHeads, SHORT_KEYS, _BETA, _GATE), {"chunk": 16}, fixed=TWO, timed=TIMED_WITH_STATE),
        Case(
            "from state to state, packed",
            specs(DeltaHeads, packed(SHORT_KEYS), _BETA, state=STATE),
            {"chunk": 3, "final": True},
            fixed=TWO_GROUPED,
        ),
    ),
    cite="Yang et al., 'Parallelizing linear transformers with the delta rule over sequence length' (2024), "
    "arXiv:2406.06484, section 3; gated: Yang, Kautz and Hatamizadeh (2024), arXiv:2412.06464, equation 10",
    covers=("deltanet", "gated deltanet", "gated delta rule", "fast weights"),
)
