"""lstm: long short-term memory: a cell that is added to, and gates that say what is added, kept and shown.

Forward, for t = 1 ... T, or T ... 1 if reversed, with x (B, T, d), W (4H, d), U (4H, p), b (4H,) or 0, each of four
blocks in the order i, f, g, o; peepholes P (3, H) for i, f, o, and a projection R (p, H); without one, h = m and p = H:

    z_t = x_t W^T + b                             one product for all steps               (B, T, 4H)
    i, f = sigmoid(a_i + P_i c_{t-1}), sigmoid(a_f + P_f c_{t-1})         a = z_t + h_{t-1} U^T
    g    = tanh(a_g)
    c_t  = f c_{t-1} + i g                                                (B, H)
    o    = sigmoid(a_o + P_o c_t)
    m_t  = o tanh(c_t)          h_t = m_t R^T     y = h                                   (B, T, p)

Differential, with s' = s (1 - s) for the sigmoid's value s:

    delta c_t = f delta c_{t-1} + c_{t-1} f' delta a_f + g i' delta a_i + i (1 - g^2) delta a_g  + peepholes' terms
    delta m_t = tanh(c_t) o' delta a_o + o (1 - tanh(c_t)^2) delta c_t

From the last step to the first, with the cotangents dh_t and dc_t of the state, which begin with the final state's:

    dh = dy_t + dh_t              dm = dh R                               (B, H)
    da_o = dm tanh(c_t) o'        dc = dc_t + dm o (1 - tanh(c_t)^2) + P_o da_o
    da_i = dc g i'                da_f = dc c_{t-1} f'                    da_g = dc i (1 - g^2)
    dc_{t-1} = f dc + P_i da_i + P_f da_f                                 (B, H)
    dh_{t-1} = da U                                                       (B, p)

All that is a sum over steps is made after the loop, by one product each, n running over the examples:

    dW = sum_nt da^T x_t      dU = sum_nt da^T h_{t-1}      db = sum_nt da      dR = sum_nt dh^T m_t
    dP_i = sum_nt da_i c_{t-1}      dP_f = sum_nt da_f c_{t-1}      dP_o = sum_nt da_o c_t
    dx = da W                                                             (B, T, d)

Lengths, truncation and checkpoints are those of every recurrence (`bpref.formulas.recurrence.through_time`).

Cached: x, the states h and c before each step, and the four gates. c_t is c_{t-1} of the step after; tanh(c_t) and the
slopes are made again from them, and so is m_t.

Numerical care: the loop runs in at least float32, and so is the state that it carries: half precision is rounded when
it is put out, and not in each of T steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite, require_flags, require_size
from bpref.formulas.affine import (
    bias_cotangent,
    lecun_uniform,
    times,
    times_transposed,
)
from bpref.formulas.long_sums import transposed_times
from bpref.formulas.norm.standardize import on_last_axes
from bpref.formulas.recurrence.gates import blocks, sigmoid_slope, tanh_slope
from bpref.formulas.recurrence.steps import Passed, Steps
from bpref.formulas.recurrence.through_time import Kept, Recurrence, through_time
from bpref.layer import Layer
from bpref.naive.recurrence import naive_recurrence
from bpref.rule import Case, Integer, Real, Rule, Size, called_as, specs


class LstmParams(NamedTuple):
    W: Float[Array, "4H d"]
    U: Float[Array, "4H p"]
    b: Float[Array, " 4H"] | None
    P: Float[Array, "3 H"] | None = None
    R: Float[Array, "p H"] | None = None


class LstmState(NamedTuple):
    h: Float[Array, "B p"]
    c: Float[Array, "B H"]


class Gates(NamedTuple):
    """What of a step its adjoint needs beside the states."""

    i: Float[Array, "... H"]
    f: Float[Array, "... H"]
    g: Float[Array, "... H"]
    o: Float[Array, "... H"]


class Arrived(NamedTuple):
    """The cotangents of a step: of the preactivations, and of h where that is projected."""

    da: Float[Array, "... 4H"]
    dh: Float[Array, "... p"] | None


def lstm(
    features: int,
    peepholes: bool = False,
    projection: int | None = None,
    forget_bias: float = 1.0,
    reverse: bool = False,
    truncate: int | None = None,
    checkpoint: int | None = None,
    bias: bool = True,
) -> Layer[LstmParams, Array | Steps, Passed, Kept]:
    """c_t = f c_{t-1} + i g and h_t = o tanh(c_t), the gates made of x_t and h_{t-1}.

    Args:
      features: the number H of features of the cell.
      peepholes: whether the gates see the cell.
      projection: the number p of features of h, which is m_t R^T then; `None` for h = m and p = H.
      forget_bias: where the forget gate's part of b starts; the rest of b starts at 0.
      reverse: whether the last step comes first.
      truncate: after how many steps, in the order in which they are made, the gradient stops; `None` never.
      checkpoint: cache the states before every so many steps, and make the steps again; `None` caches all.
      bias: whether there is a b; without it, `forget_bias` says nothing.

    Returns:
      A layer with params `LstmParams(W: (4H, d), U: (4H, p), b: (4H,) or None, P: (3, H) or None, R: (p, H) or None)`,
      blocks in the order i, f, g, o, x `Steps(x: (B, T, d), state: LstmState(h: (B, p), c: (B, H)) or None,
      lengths: (B,) integers or None)` or an array (B, T, d), and y `Passed(y: (B, T, p), state: LstmState)`.

      Beyond an example's length y is 0 and the state stays as it is; a length below 0 is 0, one beyond T is T.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit.
      TypeError: x or the state is not floating-point, or not of W's dtype; the lengths are no integers.
    """
    who = "lstm"
    require_flags(who, peepholes=peepholes, reverse=reverse, bias=bias)
    features = require_size(who, "features", features)
    if projection is not None:
        projection = require_size(who, "projection", projection)
    forget_bias = require_finite(who, "forget_bias", forget_bias)
    shown = features if projection is None else projection
    sizes = LstmState._make((shown, features))

    def init(key, x):
        d, dtype = x.shape[-1], x.dtype
        keys = jax.random.split(key, 3)
        return LstmParams(
            lecun_uniform(keys[0], (4 * features, d), d, dtype),
            lecun_uniform(keys[1], (4 * features, shown), shown, dtype),
            jnp.zeros(4 * features, dtype).at[features : 2 * features].set(forget_bias) if bias else None,
            jnp.zeros((3, features), dtype) if peepholes else None,
            None if projection is None else lecun_uniform(keys[2], (projection, features), features, dtype),
        )

    def seen(params, which, c):
        return 0 if params.P is None else on_last_axes(params.P[which], c) * c

    def step(params, z, state):
        h, c = state
        a_i, a_f, a_g, a_o = blocks(z + times_transposed(h, params.U), 4)
        i = jax.nn.sigmoid(a_i + seen(params, 0, c))
        f = jax.nn.sigmoid(a_f + seen(params, 1, c))
        g = jnp.tanh(a_g)
        c = f * c + i * g
        o = jax.nn.sigmoid(a_o + seen(params, 2, c))
        m = o * jnp.tanh(c)
        h = m if params.R is None else times_transposed(m, params.R)
        return LstmState(h, c), h, Gates(i, f, g, o)

    def pull(params, gates, before, after, dstate, dy):
        i, f, g, o = gates
        shown_c = jnp.tanh(after.c)
        dh = dy + dstate.h
        dm = dh if params.R is None else times(dh, params.R)
        da_o = dm * shown_c * sigmoid_slope(o)
        dc = dstate.c + dm * o * tanh_slope(shown_c) + seen(params, 2, da_o)
        da_i = dc * g * sigmoid_slope(i)
        da_f = dc * before.c * sigmoid_slope(f)
        da = jnp.concatenate([da_i, da_f, dc * i * tanh_slope(g), da_o], -1)
        dc = dc * f + seen(params, 0, da_i) + seen(params, 1, da_f)
        return LstmState(times(da, params.U), dc), Arrived(da, None if params.R is None else dh)

    def collect(params, x, gates, before, after, arrived):
        da, dh = arrived
        dP = dR = None
        if params.P is not None:
            da_i, da_f, _, da_o = blocks(da, 4)
            of_gates = (da_i * before.c, da_f * before.c, da_o * after.c)
            dP = jnp.stack([jnp.sum(v, (0, 1)) for v in of_gates])
        if params.R is not None:
            dR = transposed_times(dh, gates.o * jnp.tanh(after.c))
        dW, dU = transposed_times(da, x), transposed_times(da, before.h)
        return LstmParams(dW, dU, bias_cotangent(da, params.b), dP, dR), times(da, params.W)

    return through_time(who, Recurrence(init, sizes, step, pull, collect), reverse, truncate, checkpoint)


@called_as(lstm)
def reference(params: LstmParams, x: Steps | Array, features, projection, reverse, truncate, **_) -> Passed:
    def step(x_t, state):
        h, c = state
        a = x_t @ params.W.T + h @ params.U.T
        i, f, g, o = jnp.split(a if params.b is None else a + params.b[None], 4, axis=-1)
        if params.P is not None:
            i, f = i + params.P[:1] * c, f + params.P[1:2] * c
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        o = o if params.P is None else o + params.P[2:] * c
        m = jax.nn.sigmoid(o) * jnp.tanh(c)
        h = m if params.R is None else m @ params.R.T
        return LstmState(h, c), h

    sizes = LstmState._make((features if projection is None else projection, features))
    return naive_recurrence(step, x, sizes, reverse, truncate)


def _given(p: str) -> Steps:
    state = specs(LstmState, Real(f"B {p}", -1.0, 1.0), Real("B H"))
    return specs(Steps, Real("B T d", -2.0, 2.0), state, Integer("B", 0, "T", points=(100, 0)))


_NOT_EMPTY = ("d", "H")

RULE = Rule(
    "lstm",
    lstm,
    reference,
    cases=(
        Case(
            "plain",
            Real("B T d", -2.0, 2.0),
            {"features": Size("H")},
            _NOT_EMPTY,
            timed={"B": 16, "T": 64, "d": 64, "H": 64},
        ),
        Case(
            "lengths, reversed, truncated, checkpoints, no bias",
            _given("H"),
            {"features": Size("H"), "reverse": True, "truncate": 3, "checkpoint": 2, "bias": False},
            _NOT_EMPTY,
        ),
        Case(
            "lengths, peepholes, projection",
            _given("p"),
            {"features": Size("H"), "peepholes": True, "projection": Size("p")},
            ("d", "H", "p"),
        ),
    ),
    cite="Hochreiter and Schmidhuber, 'Long short-term memory' (1997); peepholes: Gers and Schmidhuber, 'Recurrent "
    "nets that time and count' (2000); projection: arXiv:1402.1128",
    covers=("lstmp", "long short-term memory", "peephole_lstm"),
)
