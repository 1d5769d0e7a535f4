"""delta_product: the delta rule with several steps for each query, whose product moves the state further than one can.

Forward, for each head, with q of shape (T, D), n keys k (T, n, D), values v (T, n, E) and beta (T, n) at every step,
and the logarithm g (T,) of a gate, or g = 0:

    S_t0 = exp(g_t) S_t-1,n                                               (D, E)
    c_tj = v_tj - S_t,j-1^T k_tj            what the state lacks          (T, n, E)
    S_tj = S_t,j-1 + k_tj u_tj^T,   u_tj = beta_tj c_tj,   j = 1, ..., n  (D, E)
    y_t  = S_tn^T q_t                                                     (T, E)

so that S_tn = (I - beta_tn k_tn k_tn^T) ... (I - beta_t1 k_t1 k_t1^T) exp(g_t) S_t-1,n + what was written. For keys of
length 1 and beta = 2 that is a product of n reflections, which may be a rotation or a permutation; one step of
`delta_rule` is always symmetric. S_0n is 0 unless it is given, and S_Tn is given out if it is asked for: what one piece
of a sequence hands on to the next. Where one of several packed sequences begins, g_t is -inf, whatever is given.

It is `delta_rule` on a sequence n times as long, of r = (t, j) in order, with the gate g_t where j = 1 and 0 elsewhere,
and read where j = n: no other r has a query, and no row is made for one. What remains between two r is what remains
between their t, all of it inside one t. In a chunk of L steps, n L to be solved for, S the state before it, Lambda, f,
e and w those of the L gates, as in `delta_rule`, r at t and r' at t',

    N_rr' = Lambda_tt' (k_r . k_r')         r' < r, else 0                (n L, n L)
    P_tr' = Lambda_tt' (q_t . k_r')         t' <= t, else 0               (L, n L)
    c = (I + N diag(beta))^-1 (v - f k S)                                 (n L, E)
    y = P u + f q S                                                       (L, E)
    S after = w S + (e k)^T u                                             (D, E)

Differential, with dS the cotangent of S after: that of `delta_rule`, of these N and P,

    u_hat = (I + N^T diag(beta))^-1 (P^T dy + e k dS)       dc = beta u_hat               (n L, E)

The factor of each perturbation, with R_tr' = Lambda_tt' (dy_t . u_r'), and Q_rr' = -Lambda_tt' (dc_r . u_r') for
r' < r, else 0:

    dv = dc                 dbeta_r = c_r . u_hat_r                       (n L, E), (n L,)
    dq = R k + f dy S^T                                                   (L, D)
    dk = R^T q + (Q + Q^T) k + e u dS^T - f dc S^T                        (n L, D)
    dS before = w dS + (f q)^T dy - (f k)^T dc                            (D, E)

and dg_t collects what crosses the gate of t, as in `delta_rule`: all n of a t cross the same gates, so that pairs are
summed over these first; those inside one t cross none.

Cached: x as it came. States and errors are made again, chunk by chunk.

Numerical care: that of `delta_rule`. Keys are to be of length 1 (`l2_normalize`), for beta from 0 to 2.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.attention.heads import Heads, require_groups
from bpref.formulas.attention.plain_heads import DeltaHeads, ProductHeads
from bpref.formulas.recurrence.state_by_chunks import gates_forgetting, state_by_chunks
from bpref.formulas.recurrence.steps import Passed
from bpref.layer import Layer
from bpref.naive.states import corrected, naive_states
from bpref.rule import Case, Integer, Real, Rule, called_as, specs
from bpref.rules.attention.delta_rule import ERRORS_OF_CHUNK


def delta_product(chunk: int = 32, final: bool = False) -> Layer[tuple[()], ProductHeads, PyTree, ProductHeads]:
    """y_t = S_t^T q_t, where S_t is exp(g_t) S_{t-1} after n steps S := (I - beta k k^T) S + beta k v^T.

    Args:
      chunk: L, the number of queries whose n L steps are solved for together; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `()`, x `ProductHeads(q: (*b, T, N, D), k: (*b, T, n, K, D), v: (*b, T, n, K, E), beta:
      (*b, T, n, K), log_gate: (*b, T, K) or None, state: (*b, K, D, E) or None, q_segments: (*b, T) or None)`, N a
      multiple of K, and y `(*b, T, N, E)`, or if `final` `Passed(y, state: (*b, K, D, E))`. Queries are not scaled,
      keys are not normalized. The cache is x.

      A step whose segment is another than that of the step before it begins with a state of 0.

    Raises:
      ValueError: `chunk` is not a positive integer; shapes do not fit.
      TypeError: x is no `ProductHeads`; its arrays are not floating-point numbers of one dtype.
    """

    def used(x):
        def in_turn(z):
            *b, T, _, _ = x.q.shape
            n, *rest = z.shape[len(b) + 1 :]
            return z.reshape(*b, T * n, *rest)

        g = jnp.zeros_like(x.beta[..., 0, :]) if x.log_gate is None else x.log_gate
        heads = Heads(x.q, in_turn(x.k), in_turn(x.v), q_segments=x.q_segments)
        return gates_forgetting(DeltaHeads(heads, in_turn(x.beta), g, x.state))

    def pulled(x, d):
        k, v, beta = (z.reshape(like.shape) for z, like in zip((*d.heads[1:3], d.beta), x[1:4], strict=True))
        return ProductHeads(d.heads.q, k, v, beta, None if x.log_gate is None else d.log_gate, d.state)

    who = "delta_product"
    return state_by_chunks(who, ProductHeads, chunk, final, require_groups, ERRORS_OF_CHUNK, used, pulled)


@called_as(delta_product)
def reference(params: tuple[()], x: ProductHeads, final, **_) -> Array | Passed:
    n = x.k.shape[-3]
    written = [z for j in range(n) for z in (x.k[..., j, :, :], x.v[..., j, :, :], x.beta[..., j, :, None])]

    def step(S, k_t, v_t, g_t, *written):
        S = jnp.exp(g_t)[..., None] * S
        for j in range(n):
            S = corrected(S, *written[3 * j : 3 * j + 3])
        return S

    g = jnp.zeros_like(x.beta[..., 0, :]) if x.log_gate is None else x.log_gate
    heads = Heads(x.q, *written[:2], q_segments=x.q_segments)
    return naive_states(step, heads, (g[..., None], *written), x.state, final)


_Q, _K, _V = Real("B T N D", -2.0, 2.0), Real("B T n K D", -0.8, 0.8), Real("B T n K E", -2.0, 2.0)
_BETA = Real("B T n K", 0.0, 1.0, points=(1.0, 0.0))
_GATE = Real("B T K", -2.0, 0.0, points=(0.0, -30.0, 0.0, -200.0))

RULE = Rule(
    "delta_product",
    delta_product,
    reference,
    cases=(
        Case("grouped", specs(ProductHeads, _Q, _K, _V, _BETA), {"chunk": 3}, fixed={"B": 2, "N": 4, "K": 2, "n": 3}),
        Case(
            "gated",
            specs(ProductHeads, _Q, _K, _V, _BETA, _GATE),
            {"chunk": 16},
            fixed={"B": 2, "N": 2, "K": 2, "n": 2},
            timed={"B": 1, "T": 256, "n": 2, "N": 4, "K": 4, "D": 32, "E": 32},
        ),
        Case(
            "from state to state, packed",
            specs(ProductHeads, _Q, _K, _V, _BETA, _GATE, Real("B K D E", -1.0, 1.0), Integer("B T", 0, 2)),
            {"chunk": 2, "final": True},
            fixed={"B": 2, "N": 4, "K": 2, "n": 2},
        ),
    ),
    cite="Siems et al., 'DeltaProduct: improving state-tracking in linear RNNs via Householder products' (2025), "
    "arXiv:2502.10297, section 3 (equation number not checked)",
    covers=("deltaproduct", "gated deltaproduct", "householder products"),
)
