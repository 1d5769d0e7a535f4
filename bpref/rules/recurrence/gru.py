"""gru: gated recurrent units: the state is a mean of what it was and of a candidate, weighted by a gate.

Forward, for t = 1 ... T, or T ... 1 if reversed, with x (B, T, d), W (3H, d), U (3H, H), b (3H,) or 0, each of three
blocks in the order r, z, n, and v (H,) or 0:

    w_t  = x_t W^T + b                            one product for all steps               (B, T, 3H)
    r, z = sigmoid(w_r + h_{t-1} U_r^T), sigmoid(w_z + h_{t-1} U_z^T)
    n    = tanh(w_n + r q),  q = h_{t-1} U_n^T + v        reset after the product (cuDNN, PyTorch)
    n    = tanh(w_n + (r h_{t-1}) U_n^T)                  reset before it (Cho et al.); there is no v
    h_t  = (1 - z) n + z h_{t-1}                  y = h                                   (B, T, H)

r and z need no second bias, and n none if the reset comes first: a sum of two is one.

Differential:

    delta h_t = (1 - z) delta n + z delta h_{t-1} + (h_{t-1} - n) delta z
    delta n   = (1 - n^2) (delta w_n + q delta r + r delta q)                             reset after
    delta n   = (1 - n^2) (delta w_n + delta ((r h_{t-1}) U_n^T))                         reset before

From the last step to the first, with dh the sum of dy_t and of the state's cotangent, da those of what the gates and
the candidate are functions of:

    da_z = dh (h_{t-1} - n) z (1 - z)             da_n = dh (1 - z) (1 - n^2)             (B, H)
    da_r = da_n q r (1 - r)                       dh_{t-1} = z dh + (da_r, da_z, r da_n) U           after
    da_r = e h_{t-1} r (1 - r),  e = da_n U_n     dh_{t-1} = z dh + r e + (da_r, da_z) (U_r, U_z)    before

All that is a sum over steps is made after the loop, by one product each, k running over the examples:

    dW = sum_kt da^T x_t          db = sum_kt da            dx = da W                     (B, T, d)
    dU = sum_kt (da_r, da_z, r da_n)^T h_{t-1}              dv = sum_kt r da_n                       after
    dU_r, dU_z = sum_kt (da_r, da_z)^T h_{t-1}              dU_n = sum_kt da_n^T (r h_{t-1})         before

Lengths, truncation and checkpoints are those of every recurrence (`bpref.formulas.recurrence.through_time`).

Cached: x, the state before each step, r, z and n, and q if the reset comes after: 1/r would give it back from n,
with what the tanh has left of it.

Numerical care: the loop runs in at least float32, and so is the state that it carries: half precision is rounded when
it is put out, and not in each of T steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.formulas.affine import (
    bias_cotangent,
    lecun_uniform,
    plus,
    times,
    times_transposed,
)
from bpref.formulas.long_sums import transposed_times
from bpref.formulas.recurrence.gates import blocks, sigmoid_slope, tanh_slope
from bpref.formulas.recurrence.steps import Passed, Steps
from bpref.formulas.recurrence.through_time import Kept, Recurrence, through_time
from bpref.layer import Layer
from bpref.naive.recurrence import naive_recurrence
from bpref.rule import Case, Integer, Real, Rule, Size, called_as, specs


class GruParams(NamedTuple):
    W: Float[Array, "3H d"]
    U: Float[Array, "3H H"]
    b: Float[Array, " 3H"] | None
    v: Float[Array, " H"] | None = None


class GruSteps(NamedTuple):
    """What of a step its adjoint needs beside the states."""

    r: Float[Array, "... H"]
    z: Float[Array, "... H"]
    n: Float[Array, "... H"]
    q: Float[Array, "... H"] | None


def gru(
    features: int,
    reset_after: bool = True,
    reverse: bool = False,
    truncate: int | None = None,
    checkpoint: int | None = None,
    bias: bool = True,
) -> Layer[GruParams, Array | Steps, Passed, Kept]:
    """h_t = (1 - z) n + z h_{t-1}, the gate z and the candidate n made of x_t and h_{t-1}.

    Args:
      features: the number H of features of the state.
      reset_after: whether the gate r multiplies the product of the state and U_n, as in cuDNN and PyTorch, or the
        state itself, as in Cho et al.
      reverse: whether the last step comes first.
      truncate: after how many steps, in the order in which they are made, the gradient stops; `None` never.
      checkpoint: cache the states before every so many steps, and make the steps again; `None` caches all.
      bias: whether there are b and, if the reset comes after, v.

    Returns:
      A layer with params `GruParams(W: (3H, d), U: (3H, H), b: (3H,) or None, v: (H,) or None)`, blocks in the order
      r, z, n, x `Steps(x: (B, T, d), state: (B, H) or None, lengths: (B,) integers or None)` or an array (B, T, d), and
      y `Passed(y: (B, T, H), state: (B, H))`.

      Beyond an example's length y is 0 and the state stays as it is; a length below 0 is 0, one beyond T is T.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit.
      TypeError: x or the state is not floating-point, or not of W's dtype; the lengths are no integers.
    """
    who = "gru"
    require_flags(who, reset_after=reset_after, reverse=reverse, bias=bias)
    features = require_size(who, "features", features)
    H = features

    def init(key, x):
        d, dtype = x.shape[-1], x.dtype
        keys = jax.random.split(key)
        W = lecun_uniform(keys[0], (3 * features, d), d, dtype)
        U = lecun_uniform(keys[1], (3 * features, features), features, dtype)
        b, v = jnp.zeros(3 * features, dtype), jnp.zeros(features, dtype)
        return GruParams(W, U, b if bias else None, v if bias and reset_after else None)

    def step(params, w, h):
        w_r, w_z, w_n = blocks(w, 3)
        if reset_after:
            u_r, u_z, u_n = blocks(times_transposed(h, params.U), 3)
            q = plus(u_n, params.v)
        else:
            u_r, u_z = blocks(times_transposed(h, params.U[: 2 * H]), 2)
            q = None
        r, z = jax.nn.sigmoid(w_r + u_r), jax.nn.sigmoid(w_z + u_z)
        n = jnp.tanh(w_n + (times_transposed(r * h, params.U[2 * H :]) if q is None else r * q))
        h = n + z * (h - n)
        return h, h, GruSteps(r, z, n, q)

    def pull(params, steps, h, after, dafter, dy):
        r, z, n, q = steps
        dh = dy + dafter
        da_z = dh * (h - n) * sigmoid_slope(z)
        da_n = dh * (1 - z) * tanh_slope(n)
        if q is None:
            e = times(da_n, params.U[2 * H :])
            da_r = e * h * sigmoid_slope(r)
            through_gates = times(jnp.concatenate([da_r, da_z], -1), params.U[: 2 * H]) + r * e
        else:
            da_r = da_n * q * sigmoid_slope(r)
            through_gates = times(jnp.concatenate([da_r, da_z, r * da_n], -1), params.U)
        return z * dh + through_gates, jnp.concatenate([da_r, da_z, da_n], -1)

    def collect(params, x, steps, h, after, da):
        da_gates, da_n = da[..., : 2 * H], da[..., 2 * H :]
        dv = None
        if not reset_after:
            dU = jnp.concatenate([transposed_times(da_gates, h), transposed_times(da_n, steps.r * h)])
        else:
            dq = steps.r * da_n
            dU = jnp.concatenate([transposed_times(da_gates, h), transposed_times(dq, h)])
            dv = bias_cotangent(dq, params.v)
        return GruParams(transposed_times(da, x), dU, bias_cotangent(da, params.b), dv), times(da, params.W)

    return through_time(who, Recurrence(init, H, step, pull, collect), reverse, truncate, checkpoint)


@called_as(gru)
def reference(params: GruParams, x: Steps | Array, features, reset_after, reverse, truncate, **_) -> Passed:
    W_r, W_z, W_n = jnp.split(params.W, 3)
    U_r, U_z, U_n = jnp.split(params.U, 3)
    b = jnp.zeros(3 * features, params.W.dtype) if params.b is None else params.b
    v = jnp.zeros(features, params.W.dtype) if params.v is None else params.v
    b_r, b_z, b_n = jnp.split(b[None], 3, axis=1)

    def step(x_t, h):
        r = jax.nn.sigmoid(x_t @ W_r.T + h @ U_r.T + b_r)
        z = jax.nn.sigmoid(x_t @ W_z.T + h @ U_z.T + b_z)
        of_state = r * (h @ U_n.T + v[None]) if reset_after else (r * h) @ U_n.T
        h = (1 - z) * jnp.tanh(x_t @ W_n.T + b_n + of_state) + z * h
        return h, h

    return naive_recurrence(step, x, features, reverse, truncate)


_X = specs(Steps, Real("B T d", -2.0, 2.0), Real("B H", -1.0, 1.0), Integer("B", 0, "T", points=(100, 0)))
_NOT_EMPTY = ("d", "H")

RULE = Rule(
    "gru",
    gru,
    reference,
    cases=(
        Case(
            "reset after",
            Real("B T d", -2.0, 2.0),
            {"features": Size("H")},
            _NOT_EMPTY,
            timed={"B": 16, "T": 64, "d": 64, "H": 64},
        ),
        Case(
            "reset before, lengths, reversed, truncated",
            _X,
            {"features": Size("H"), "reset_after": False, "reverse": True, "truncate": 2},
            _NOT_EMPTY,
        ),
        Case(
            "reset after, lengths, checkpoints, no bias",
            _X,
            {"features": Size("H"), "checkpoint": 2, "bias": False},
            _NOT_EMPTY,
        ),
    ),
    cite="Cho et al., arXiv:1406.1078, section 2.3 (reset before); Appleyard et al., arXiv:1604.01946 (reset after)",
    covers=("gated recurrent unit",),
)
