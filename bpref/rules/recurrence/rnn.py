"""rnn: Elman's recurrence, a state made anew in every step from the input and the state before.

Forward, for t = 1 ... T, or T ... 1 if reversed, with x (B, T, d), W (H, d), U (H, H), b (H,) or 0, g tanh or relu:

    z_nti = sum_j x_ntj W_ij + b_i                one product for all steps               (B, T, H)
    h_nt  = g(z_nt + h_n,t-1 U^T)                 y = h                                   (B, T, H)

Differential, with a_t the argument of g:

    delta h_t = g'(a_t) (delta x_t W^T + x_t delta W^T + delta b + delta h_{t-1} U^T + h_{t-1} delta U^T)

h_t goes into y_t and into the next step. With dh_t the sum of both cotangents, from the last step to the first:

    da_t = g'(a_t) (dy_t + dh_t)                                          (B, H)
    dh_{t-1} = da_t U                             dh_T: that of the final state           (B, H)

All that is a sum over steps is one product after the loop, n running over the examples:

    dW = sum_nt da_nt^T x_nt      dU = sum_nt da_nt^T h_n,t-1      db = sum_nt da_nt
    dx_nt = da_nt W                                                       (B, T, d)

Lengths, truncation and checkpoints are those of every recurrence (`bpref.formulas.recurrence.through_time`).

Cached: x, and the states: g' is made of h, 1 - h^2 for tanh, and [h > 0] for relu, whose subgradient at 0 is 0.

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
    times,
    times_transposed,
)
from bpref.formulas.long_sums import transposed_times
from bpref.formulas.recurrence.steps import Passed, Steps
from bpref.formulas.recurrence.through_time import Kept, Recurrence, through_time
from bpref.layer import Layer
from bpref.naive.recurrence import naive_recurrence
from bpref.rule import Case, Integer, Real, Rule, Size, called_as, specs


class RnnParams(NamedTuple):
    W: Float[Array, "H d"]
    U: Float[Array, "H H"]
    b: Float[Array, " H"] | None


ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda h: 1 - h * h),
    "relu": (lambda a: jnp.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
}
"""g, and g' as a function of h = g(a)."""


def rnn(
    features: int,
    activation: str = "tanh",
    reverse: bool = False,
    truncate: int | None = None,
    checkpoint: int | None = None,
    bias: bool = True,
) -> Layer[RnnParams, Array | Steps, Passed, Kept]:
    """h_t = g(W x_t + U h_{t-1} + b).

    Args:
      features: the number H of features of the state.
      activation: g, "tanh" or "relu".
      reverse: whether the last step comes first.
      truncate: after how many steps, in the order in which they are made, the gradient stops; `None` never.
      checkpoint: cache the states before every so many steps, and make the steps again; `None` caches all.
      bias: whether there is a b.

    Returns:
      A layer with params `RnnParams(W: (H, d), U: (H, H), b: (H,) or None)`, x `Steps(x: (B, T, d), state: (B, H) or
      None, lengths: (B,) integers or None)` or an array (B, T, d), and y `Passed(y: (B, T, H), state: (B, H))`.

      Beyond an example's length y is 0 and the state stays as it is; a length below 0 is 0, one beyond T is T.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit.
      TypeError: x or the state is not floating-point, or not of W's dtype; the lengths are no integers.
    """
    who = "rnn"
    require_flags(who, reverse=reverse, bias=bias)
    features = require_size(who, "features", features)
    if activation not in tuple(ACTIVATIONS):
        raise ValueError(f"{who}: activation is {activation!r}, expected 'tanh' or 'relu'")
    g, slope = ACTIVATIONS[activation]

    def init(key, x):
        d, dtype = x.shape[-1], x.dtype
        keys = jax.random.split(key)
        W = lecun_uniform(keys[0], (features, d), d, dtype)
        U = lecun_uniform(keys[1], (features, features), features, dtype)
        return RnnParams(W, U, jnp.zeros(features, dtype) if bias else None)

    def step(params, z, h):
        h = g(z + times_transposed(h, params.U))
        return h, h, ()

    def pull(params, kept, before, h, dh, dy):
        da = slope(h) * (dy + dh)
        return times(da, params.U), da

    def collect(params, x, kept, before, h, da):
        dparams = RnnParams(transposed_times(da, x), transposed_times(da, before), bias_cotangent(da, params.b))
        return dparams, times(da, params.W)

    return through_time(who, Recurrence(init, features, step, pull, collect), reverse, truncate, checkpoint)


@called_as(rnn)
def reference(params: RnnParams, x: Steps | Array, features, activation, reverse, truncate, **_) -> Passed:
    g = {"tanh": jnp.tanh, "relu": jax.nn.relu}[activation]

    def step(x_t, h):
        a = x_t @ params.W.T + h @ params.U.T
        h = g(a if params.b is None else a + params.b[None])
        return h, h

    return naive_recurrence(step, x, features, reverse, truncate)


_X = specs(Steps, Real("B T d", -2.0, 2.0), Real("B H", -1.0, 1.0), Integer("B", 0, "T", points=(100, 0)))
_P = specs(RnnParams, Real("H d", -1.0, 1.0), Real("H H", -0.5, 0.5), Real("H", -1.0, 1.0))
_NOT_EMPTY = ("d", "H")

RULE = Rule(
    "rnn",
    rnn,
    reference,
    cases=(
        Case(
            "tanh",
            Real("B T d", -2.0, 2.0),
            {"features": Size("H")},
            _NOT_EMPTY,
            _P,
            timed={"B": 16, "T": 128, "d": 64, "H": 64},
        ),
        Case(
            "lengths, reversed, truncated, no bias",
            _X,
            {"features": Size("H"), "reverse": True, "truncate": 2, "bias": False},
            _NOT_EMPTY,
            _P._replace(b=None),
        ),
        Case(
            "relu, lengths, checkpoints",
            _X,
            {"features": Size("H"), "activation": "relu", "checkpoint": 2},
            _NOT_EMPTY,
            _P,
        ),
    ),
    cite="Elman, 'Finding structure in time' (1990); Werbos, 'Backpropagation through time' (1990)",
    covers=("elman", "simple_rnn", "vanilla_rnn"),
)
