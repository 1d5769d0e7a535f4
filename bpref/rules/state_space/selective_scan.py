"""selective_scan: Mamba's state space, whose step size, input and output maps depend on the input; no state is kept.

Forward, with t over time, d over channels, n over the states of a channel; the batch axis is left out:

    s_td  = softplus(delta_td + bias_d)       or delta_td itself          (T, d)
    a_tdn = exp(s_td A_dn),   A = -exp(log_A)                             (T, d, n)
    h_tdn = a_tdn h_t-1,dn + k_tdn u_td B_tn                              (T, d, n)
    y_td  = sum_n C_tn h_tdn + D_d u_td                                   (T, d)

    k = s                      the Euler step of Mamba's code
    k = (a - 1) / A            a zero-order hold, the paper's equation 4

h_0 is 0 unless it is given, and h_T is given out if it is asked for: what one piece of a sequence hands on to the next.
Where one of several packed sequences begins, nothing is left of h_t-1, not even a NaN; the hold is as elsewhere.

Differential. With the states as in `linear_recurrence`, G the cotangent of all that h_t reaches, and
a_{T+1} G_{T+1} standing for the final state's own, 0 unless that is given out,

    G_tdn = C_tn dy_td + a_t+1,dn G_t+1,dn,   dh_0,dn = a_1dn G_1dn       (T, d, n), (d, n)

what is left has no recurrence in it. delta a = a (A delta s + s delta A), so that a_tdn h_t-1,dn G_tdn =: P_tdn is the
cotangent of the exponent s A, and for the Euler step

    dC_tn  = sum_d dy_td h_tdn                                            (T, n)
    dB_tn  = sum_d s_td u_td G_tdn                                        (T, n)
    Q_td   = sum_n B_tn G_tdn                                             (T, d)
    du_td  = s_td Q_td + D_d dy_td                                        (T, d)
    ds_td  = u_td Q_td + sum_n A_dn P_tdn                                 (T, d)
    dA_dn  = sum_t s_td P_tdn,   dlog_A = A dA                            (d, n)
    dD_d   = sum_t u_td dy_td                                             (d,)
    ddelta = ds sigmoid(delta + bias), dbias its sum over t               (T, d), (d,)

For the hold, with delta k = a delta s + (s a - k) / A delta A, let R_tdn = B_tn G_tdn u_td, the cotangent of k:

    dB_tn  = sum_d k_tdn u_td G_tdn,   Q_td = sum_n B_tn k_tdn G_tdn,   du_td = Q_td + D_d dy_td
    ds_td  = sum_n (A_dn P_tdn + a_tdn R_tdn)
    dlog_A = A_dn sum_t s_td P_tdn + sum_t (s_td a_tdn - k_tdn) R_tdn

Cached: u, delta, B, C, h_0 if given, and of the states only those with which a chunk of time begins, T / chunk of
(d, n). The others are made again, chunk by chunk from the last to the first, beside the exponentials; G is carried from
chunk to chunk. Nothing of size (T, d, n) exists at any time, forward or backward: the price is each exponential twice.

Numerical care: half precision is computed in float32. A is negative by its parametrisation, so that a never exceeds 1
where s is positive. The hold is written expm1(s A) / A, and s where A has underflowed to 0. s a - k cancels where
s A is small, in autodiff likewise: its error is that of k, which the other terms have too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int, PyTree

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.decoder import decoder
from bpref.formulas.logistic import logistic
from bpref.formulas.recurrence.held_steps import hold_of, shifted_by, step_sizes
from bpref.formulas.recurrence.recurrences import advance, retreat, unless
from bpref.formulas.recurrence.states import begins, require_alone
from bpref.formulas.recurrence.steps import Passed
from bpref.layer import Layer
from bpref.loops import scan
from bpref.rule import Case, Integer, Real, Rule, Size, called_as, specs


class Selective(NamedTuple):
    """The input x of a selective scan; A and D, which do not depend on the input, are parameters.

    Attributes:
      state: what the scan starts from; zeros where it is left out. Its cotangent is given back.
      segments: ids of packed sequences: a step whose id is another than that of the step before it begins anew.
    """

    u: Float[Array, "N T d"]
    delta: Float[Array, "N T d"]
    B: Float[Array, "N T n"]
    C: Float[Array, "N T n"]
    state: Float[Array, "N d n"] | None = None
    segments: Int[Array, "N T"] | None = None


class SelectiveScanParams(NamedTuple):
    log_A: Float[Array, "d n"]
    D: Float[Array, " d"] | None
    bias: Float[Array, " d"] | None


class SelectiveScanCache(NamedTuple):
    x: Selective
    starts: Float[Array, "chunks N n d"]


def selective_scan(
    states: int = 16,
    softplus: bool = True,
    skip: bool = True,
    bias: bool = True,
    hold: bool = False,
    chunk: int = 64,
    final: bool = False,
) -> Layer[SelectiveScanParams, Selective, PyTree, SelectiveScanCache]:
    """y = C h + D u with h_t = exp(s_t A) h_{t-1} + k_t B_t u_t and s = softplus(delta + bias), channel by channel.

    Args:
      states: n, the number of states of each channel.
      softplus: whether s is softplus of delta + bias, or delta + bias itself.
      skip: whether there is a D.
      bias: whether there is a bias of delta.
      hold: whether k is a zero-order hold's, (exp(s A) - 1) / A, or s.
      chunk: how many steps of time share one kept state; their states are what is in memory at once.
      final: whether the state after all steps is given out beside y.

    Returns:
      A layer with params `SelectiveScanParams(log_A: (d, n), D: (d,) or None, bias: (d,) or None)`, x
      `Selective(u: (N, T, d), delta: (N, T, d), B: (N, T, n), C: (N, T, n), state: (N, d, n) or None, segments: (N, T)
      or None)` and y `(N, T, d)`, or if `final` `Passed(y: (N, T, d), state: (N, d, n))`. A is -1 to -n in every
      channel at first, D is 1, and softplus(bias) is drawn from 0.001 to 0.1, uniformly in its logarithm.

    Raises:
      ValueError: states or chunk is not a positive integer; the shapes do not fit.
      TypeError: x is no tuple of four to six; something is not floating-point, or not of u's dtype.
    """
    who = "selective_scan"
    require_flags(who, softplus=softplus, skip=skip, bias=bias, hold=hold, final=final)
    states = require_size(who, "states", states)
    chunk = require_size(who, "chunk", chunk)

    def init(key, x):
        d, dtype = x[0].shape[-1], x[0].dtype
        log_A = jnp.log(jnp.arange(1, states + 1, dtype=dtype))
        low, high = jnp.log(jnp.asarray((1e-3, 0.1), dtype))
        s = jnp.exp(jax.random.uniform(key, (d,), dtype, low, high))
        return SelectiveScanParams(
            jnp.broadcast_to(log_A, (d, states)),
            jnp.ones(d, dtype) if skip else None,
            (s + jnp.log(-jnp.expm1(-s)) if softplus else s) if bias else None,
        )

    def in_chunks(x, s, *others):
        """Everything by chunks of time, (chunks, L, N, ...); where time ends within the last, s = u = 0 goes on."""
        N, T = s.shape[:2]
        L = max(1, min(chunk, T))
        count = -(-T // L)

        def chunked(v):
            v = jnp.pad(v, ((0, 0), (0, count * L - T), (0, 0)))
            return jnp.moveaxis(v.reshape(N, count, L, v.shape[-1]), 0, 2)

        new = None if x.segments is None else over_d(chunked(over_d(begins(x.segments))))
        return tuple(chunked(widen(v)) for v in (s, x.u, x.B, x.C, *others)), new

    def in_time(v, like):
        """(chunks, L, N, ...) as (N, T, ...), in the dtype of what it belongs to."""
        v = jnp.moveaxis(v, 2, 0)
        return cast(v.reshape(v.shape[0], v.shape[1] * v.shape[2], v.shape[3])[:, : like.shape[1]], like.dtype)

    def states_of(A, s, u, B, h, new):
        """a of a chunk, (L, N, n, d); k, the states, and the last of them."""
        a = jnp.exp(over_n(s) * A)
        k = hold_of(over_n(s), A) if hold else over_n(s)
        after, states = scan(advance, h, (a, k * over_n(u) * over_d(B), new))
        return a, k, states, after

    def sweep(params, x, start):
        """y or what is passed on with the last state; and that before every chunk. The first is `None` or (N, d, n)."""
        A = -jnp.exp(widen(params.log_A)).T[None, None]
        s = step_sizes(x.delta, params.bias, softplus)
        chunks, new = in_chunks(x, s)

        def run(h, at):
            (s, u, B, C), new = at
            _, _, states, after = states_of(A, s, u, B, h, new)
            return after, (h, jnp.sum(over_d(C) * states, -2))

        last, (starts, y) = scan(run, by_states(start, (x.u.shape[0], *A.shape[2:]), A.dtype), (chunks, new))
        if params.D is not None:
            y = y + widen(params.D)[None, None, None] * chunks[1]
        y, last = in_time(y, x.u), by_channels(last, last.dtype)
        return (Passed(y, cast(last, y.dtype)) if final else y, last), starts

    def forward(params, x: Selective):
        (y, _), starts = sweep(params, x, x.state)
        return y, SelectiveScanCache(x, starts)

    def backward(params, cache, dy):
        x, starts = cache
        dy, dlast = dy if final else (dy, None)
        dy = with_zeros(dy, x.u)
        A = -jnp.exp(widen(params.log_A)).T[None, None]
        s = step_sizes(x.delta, params.bias, softplus)

        def run(carry, at):
            g, dlog_A = carry
            h, (s, u, B, C, dy), new = at
            a, k, states, _ = states_of(A, s, u, B, h, new)
            before = jnp.concatenate((h[None], states[:-1]))
            g, G = scan(retreat, g, (a, over_d(C) * over_n(dy), new), reverse=True)
            P = unless(new, a * before * G)
            GB = G * over_d(B)
            dC = jnp.sum(over_n(dy) * states, -1)
            dB = jnp.sum(k * over_n(u) * G, -1)
            if hold:
                Q = jnp.sum(k * GB, -2)
                R = GB * over_n(u)
                ds = jnp.sum(A * P + a * R, -2)
                dlog_A += jnp.sum(A * over_n(s) * P + (over_n(s) * a - k) * R, (0, 1))
            else:
                GB = jnp.sum(GB, -2)
                Q = s * GB
                ds = u * GB + jnp.sum(A * P, -2)
                dlog_A += A[0, 0] * jnp.sum(over_n(s) * P, (0, 1))
            return (g, dlog_A), (Q, ds, dB, dC)

        end = by_states(dlast, (x.u.shape[0], *A.shape[2:]), A.dtype), jnp.zeros_like(A[0, 0])
        (dstart, dlog_A), (du, ds, dB, dC) = scan(run, end, (starts, *in_chunks(x, s, dy)), reverse=True)
        du, ds = in_time(du, s), in_time(ds, s)
        D, wide_dy = params.D, widen(dy)
        ddelta = ds * logistic(shifted_by(x.delta, params.bias)) if softplus else ds
        if D is not None:
            du = du + widen(D)[None, None] * wide_dy
        dparams = SelectiveScanParams(
            cast(dlog_A.T, params.log_A.dtype),
            None if D is None else cast(jnp.sum(widen(x.u) * wide_dy, (0, 1)), D.dtype),
            None if params.bias is None else cast(jnp.sum(ddelta, (0, 1)), params.bias.dtype),
        )
        du, ddelta = cast(du, x.u.dtype), cast(ddelta, x.delta.dtype)
        dstate = None if x.state is None else by_channels(dstart, x.state.dtype)
        return dparams, Selective(du, ddelta, in_time(dB, x.B), in_time(dC, x.C), dstate)

    def decoding(leaf, length):
        def start(params, x):
            require_alone(who, x.state, x.segments, "segments")
            return jnp.zeros((x.u.shape[0], x.u.shape[2], states), wide_dtype(x.u.dtype))

        return decoder(leaf, start, lambda params, x, before: sweep(params, x, before)[0])

    return Layer(init, forward, backward, who, decoding=decoding)


def over_n(v: Array) -> Array:
    """(..., d) -> (..., 1, d)"""
    return jnp.expand_dims(v, -2)


def over_d(v: Array) -> Array:
    """(..., n) -> (..., n, 1)"""
    return jnp.expand_dims(v, -1)


def by_states(v: Array | None, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """(N, d, n), or `None` for zeros, as (N, n, d) in at least float32."""
    return jnp.zeros(shape, dtype) if v is None else jnp.swapaxes(widen(v), 1, 2)


def by_channels(v: Array, dtype: DTypeLike) -> Array:
    """(N, n, d) as (N, d, n)"""
    return cast(jnp.swapaxes(v, 1, 2), dtype)


@called_as(selective_scan)
def reference(params: SelectiveScanParams, x: Selective, softplus, hold, final, **_) -> PyTree:
    u, delta, B, C, h, ids = x
    A = -jnp.exp(params.log_A)
    s = delta if params.bias is None else delta + jnp.broadcast_to(params.bias, delta.shape)
    s = jax.nn.softplus(s) if softplus else s
    exponent = jnp.einsum("btd,dn->btdn", s, A)
    k = jnp.expm1(exponent) / jnp.broadcast_to(A, exponent.shape) if hold else jnp.expand_dims(s, -1)
    b = k * jnp.expand_dims(u, -1) * jnp.expand_dims(B, -2)
    ids = jnp.zeros(u.shape[:2], int) if ids is None else ids
    is_new = ids != jnp.concatenate((ids[:, :1], ids[:, :-1]), 1)
    along = tuple(jnp.moveaxis(v, 1, 0) for v in (jnp.exp(exponent), b, is_new))

    def step(h, at):
        h = at[0] * jnp.where(at[2][:, None, None], 0, h) + at[1]
        return h, h

    last, h = lax.scan(step, jnp.zeros_like(b, shape=(u.shape[0], *A.shape)) if h is None else h, along)
    y = jnp.einsum("tbdn,btn->btd", h, C)
    y = y if params.D is None else y + u * jnp.broadcast_to(params.D, u.shape)
    return Passed(y, last) if final else y


_U, _OF_STATES = Real("N T d"), Real("N T n")
_A, _IDS = Real("d n", -2.0, 1.0), Integer("N T", 0, 2)

RULE = Rule(
    "selective_scan",
    selective_scan,
    reference,
    cases=(
        Case(
            "Mamba",
            specs(Selective, _U, _U, _OF_STATES, _OF_STATES),
            {"states": Size("n"), "chunk": 5},
            params=SelectiveScanParams._make((_A, Real("d"), Real("d"))),
            never_empty=("n",),
            timed={"N": 1, "T": 1024, "d": 128, "n": 16},
        ),
        Case(
            "zero-order hold, no skip, no bias, from state to state",
            specs(Selective, _U, Real("N T d", 0.125, 2.0), _OF_STATES, _OF_STATES, Real("N d n")),
            {
                "states": Size("n"),
                "softplus": False,
                "skip": False,
                "bias": False,
                "hold": True,
                "chunk": 2,
                "final": True,
            },
            params=SelectiveScanParams._make((_A, None, None)),
            never_empty=("n",),
        ),
        Case(
            "packed, zero-order hold, from state to state",
            specs(Selective, _U, Real("N T d", 0.125, 2.0), _OF_STATES, _OF_STATES, Real("N d n"), _IDS),
            {"states": Size("n"), "softplus": False, "hold": True, "chunk": 4, "final": True},
            params=SelectiveScanParams._make((_A, Real("d"), Real("d", 0.0, 1.0))),
            never_empty=("n",),
        ),
    ),
    cite="Gu and Dao, 'Mamba: linear-time sequence modeling with selective state spaces' (2023), arXiv:2312.00752, "
    "algorithm 2",
    covers=("mamba", "s6", "selective state space"),
)
