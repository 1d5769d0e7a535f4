"""state_space_dual: Mamba-2's state space, whose heads have one decay each, so that it is attention with a state.

Forward, with t over time, h over heads of P channels, n states, B and C shared by the heads of a group; the batch axis
is left out:

    s_th = softplus(delta_th + bias_h)       or delta_th itself           (T, H)
    g_th = s_th A_h,   A = -exp(log_A)       the logarithm of what remains
    v_th = s_th u_th                                                      (T, H, P)
    S_th = exp(g_th) S_t-1,h + B_t v_th^T                                 (n, P)
    y_th = S_th^T C_t + D_h u_th                                          (T, H, P)

S_0 is 0 unless it is given, and S_T is given out if it is asked for. The recurrence is `retention` with the queries C,
the keys B, the values v and the gates g, and that is how it is computed, by chunks.

Differential. Given the adjoint of `retention`, dC' and dB' of each head, dv and dg, delta v = s delta u + u delta s and
delta g = A delta s + s delta A leave

    dC_t   = sum of dC'_th over the heads of a group, dB_t likewise       (T, n)
    du_th  = s_th dv_th + D_h dy_th                                       (T, H, P)
    ds_th  = u_th . dv_th + A_h dg_th                                     (T, H)
    dA_h   = sum_t s_th dg_th,   dlog_A = A dA                            (H,)
    dD_h   = sum_t u_th . dy_th                                           (H,)
    ddelta = ds sigmoid(delta + bias), dbias its sum over t               (T, H), (H,)

and dS_0 as it is. Where one of several packed sequences begins, nothing remains, and dg is 0.

Cached: x as it came. States are made again, chunk by chunk.

Numerical care: that of `retention`; s, v and g are at least float32, and are not rounded before the recurrence. A is
negative by its parametrisation, so that no gate exceeds 1 where s is positive.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.plain_heads import GatedHeads
from bpref.formulas.decoder import decoder
from bpref.formulas.logistic import logistic
from bpref.formulas.long_sums import sum_over
from bpref.formulas.recurrence.held_steps import shifted_by, step_sizes
from bpref.formulas.recurrence.states import require_alone
from bpref.formulas.recurrence.steps import Passed
from bpref.layer import Layer
from bpref.naive.states import added, naive_states
from bpref.rule import Case, Integer, Real, Rule, called_as, specs
from bpref.rules.attention.retention import retention


class SelectiveHeads(NamedTuple):
    """The input x of a state space with heads; A and D, which do not depend on the input, are parameters.

    Attributes:
      u: the sequence, by heads.
      delta: what the step sizes are made of.
      B, C: how the state is written to and read from at each step: H / G heads of u share one of these.
      state: what the scan starts from; zeros where it is left out. Its cotangent is given back.
      segments: ids of packed sequences: a step whose id is another than that of the step before it begins anew.
    """

    u: Float[Array, "N T H>0 P"]
    delta: Float[Array, "N T H"]
    B: Float[Array, "N T G>0 n"]
    C: Float[Array, "N T G n"]
    state: Float[Array, "N H n P"] | None = None
    segments: Int[Array, "N T"] | None = None


class StateSpaceDualParams(NamedTuple):
    log_A: Float[Array, " H"]
    D: Float[Array, " H"] | None
    bias: Float[Array, " H"] | None


def state_space_dual(
    softplus: bool = True, skip: bool = True, bias: bool = True, chunk: int = 64, final: bool = False
) -> Layer[StateSpaceDualParams, SelectiveHeads, PyTree, SelectiveHeads]:
    """y = S^T C + D u with S_t = exp(s_t A) S_{t-1} + s_t B_t u_t^T and s = softplus(delta + bias), head by head.

    Args:
      softplus: whether s is softplus of delta + bias, or delta + bias itself.
      skip: whether there is a D.
      bias: whether there is a bias of delta.
      chunk: L, the number of steps that are compared directly; it changes the cost, not the function.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `StateSpaceDualParams(log_A: (H,), D: (H,) or None, bias: (H,) or None)`, x
      `SelectiveHeads(u: (N, T, H, P), delta: (N, T, H), B: (N, T, G, n), C: (N, T, G, n), state: (N, H, n, P) or None,
      segments: (N, T) or None)`, H a multiple of G, and y `(N, T, H, P)`, or if `final` `Passed(y, state: (N, H, n,
      P))`. -A is drawn from 1 to 16, D is 1, and softplus(bias) is drawn from 0.001 to 0.1, uniformly in its logarithm.

    Raises:
      ValueError: `chunk` is not a positive integer; the shapes do not fit; G does not divide H.
      TypeError: x is no tuple of four to six; something is not floating-point, or not of u's dtype.
    """
    who = "state_space_dual"
    require_flags(who, softplus=softplus, skip=skip, bias=bias, final=final)
    attention = retention(require_size(who, "chunk", chunk), final=True)

    def init(key, x):
        H, dtype = x[0].shape[-2], x[0].dtype
        of_A, of_s = jax.random.split(key)
        low, high = jnp.log(jnp.asarray((1e-3, 0.1), dtype))
        s = jnp.exp(jax.random.uniform(of_s, (H,), dtype, low, high))
        return StateSpaceDualParams(
            jnp.log(jax.random.uniform(of_A, (H,), dtype, 1, 16)),
            jnp.ones(H, dtype) if skip else None,
            (s + jnp.log(-jnp.expm1(-s)) if softplus else s) if bias else None,
        )

    def gated(params, x):
        """A and s, and what `retention` is given."""
        A, s = -jnp.exp(widen(params.log_A))[None, None], step_sizes(x.delta, params.bias, softplus)
        each = x.u.shape[2] // x.B.shape[2]
        k, q = (jnp.repeat(widen(z), each, 2) for z in (x.B, x.C))
        heads = Heads(q, k, s[..., None] * widen(x.u), q_segments=x.segments)
        return A, s, GatedHeads(heads, s * A, None if x.state is None else widen(x.state))

    def run(params, x):
        H, G = x.u.shape[2], x.B.shape[2]
        if H % G:
            raise ValueError(f"{who}: u has {H} heads, expected a multiple of B's {G}")
        y, last = attention.forward((), gated(params, x)[2])[0]
        if params.D is not None:
            y = y + widen(params.D)[None, None, :, None] * widen(x.u)
        return cast(y, x.u.dtype), last

    def forward(params, x: SelectiveHeads):
        y, last = run(params, x)
        return Passed(y, cast(last, y.dtype)) if final else y, x

    def backward(params, cache, dy):
        x = cache
        dy, dlast = dy if final else (dy, None)
        dy = widen(with_zeros(dy, x.u))
        A, s, of_attention = gated(params, x)
        dlast = None if dlast is None else widen(dlast)
        _, (dheads, dg, dstate) = attention.backward((), of_attention, Passed(dy, dlast))
        D, u = params.D, widen(x.u)
        du = s[..., None] * dheads.v
        ds = jnp.sum(u * dheads.v, -1) + A * dg
        ddelta = ds * logistic(shifted_by(x.delta, params.bias)) if softplus else ds
        if D is not None:
            du = du + widen(D)[None, None, :, None] * dy
        dparams = StateSpaceDualParams(
            cast(A[0, 0] * sum_over(s * dg, (0, 1)), params.log_A.dtype),
            None if D is None else cast(sum_over(jnp.sum(u * dy, -1), (0, 1)), D.dtype),
            None if params.bias is None else cast(sum_over(ddelta, (0, 1)), params.bias.dtype),
        )
        du, ddelta = cast(du, x.u.dtype), cast(ddelta, x.delta.dtype)
        dstate = None if x.state is None else cast(dstate, x.state.dtype)
        return dparams, SelectiveHeads(du, ddelta, of_groups(dheads.k, x.B), of_groups(dheads.q, x.C), dstate)

    def of_groups(d, like):
        """The sum over the heads of each group."""
        N, T, H, n = d.shape
        G = like.shape[2]
        return cast(jnp.sum(jnp.reshape(d, (N, T, G, H // G, n)), 3), like.dtype)

    def decoding(leaf, length):
        def start(params, x):
            require_alone(who, x.state, x.segments, "segments")
            N, _, H, P = x.u.shape
            return jnp.zeros((N, H, x.B.shape[3], P), wide_dtype(x.u.dtype))

        def step(params, x, S):
            y, S = run(params, x._replace(state=S))
            return (Passed(y, cast(S, y.dtype)) if final else y), S

        return decoder(leaf, start, step)

    return Layer(init, forward, backward, who, decoding=decoding)


@called_as(state_space_dual)
def reference(params: StateSpaceDualParams, x: SelectiveHeads, softplus, final, **_) -> PyTree:
    u, delta, B, C, state, ids = x
    s = delta if params.bias is None else delta + jnp.broadcast_to(params.bias, delta.shape)
    s = (jax.nn.softplus(s) if softplus else s)[..., None]
    A = jnp.broadcast_to(-jnp.exp(params.log_A)[:, None], s.shape)
    B, C = (jnp.repeat(z, u.shape[2] // B.shape[2], 2) for z in (B, C))

    def step(S, B_t, u_t, s_t, A_t):
        return added(jnp.exp(s_t * A_t)[..., None] * S, s_t * B_t, u_t)

    y, last = naive_states(step, Heads(C, B, u, q_segments=ids), (s, A), state, final=True)
    y = y if params.D is None else y + u * jnp.broadcast_to(params.D[:, None], u.shape)
    return Passed(y, last) if final else y


_U, _S, _OF_STATES = Real("N T H P"), Real("N T H"), Real("N T G n")
_A = Real("H", -2.0, 1.0)

RULE = Rule(
    "state_space_dual",
    state_space_dual,
    reference,
    cases=(
        Case(
            "Mamba-2",
            specs(SelectiveHeads, _U, _S, _OF_STATES, _OF_STATES),
            {"chunk": 5},
            params=StateSpaceDualParams._make((_A, Real("H"), Real("H"))),
            fixed={"H": 4, "G": 2},
            timed={"N": 1, "T": 1024, "H": 4, "P": 32, "G": 1, "n": 32},
        ),
        Case(
            "from state to state, packed, no skip, no bias",
            specs(
                SelectiveHeads,
                _U,
                Real("N T H", 0.125, 2.0),
                _OF_STATES,
                _OF_STATES,
                Real("N H n P", -1.0, 1.0),
                Integer("N T", 0, 2),
            ),
            {"softplus": False, "skip": False, "bias": False, "chunk": 2, "final": True},
            params=StateSpaceDualParams._make((_A, None, None)),
            fixed={"H": 2, "G": 1},
        ),
    ),
    cite="Dao and Gu, 'Transformers are SSMs: generalized models and efficient algorithms through structured state "
    "space duality' (2024), arXiv:2405.21060, section 6",
    covers=("mamba-2", "ssd", "mamba2"),
)
