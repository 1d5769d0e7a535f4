"""lstm_block: what was there, and what an LSTM makes of it: y = x + W_o lstm(layer_norm(x)).

Forward, with x (B, T, d), mean and variance over the d features of each step, gamma, beta (d,), an LSTM of H features
that starts at 0, its W (4H, d), U (4H, H), b (4H,), and W_o (d, H), b_o (d,):

    xhat = (x - mean) rstd        u = gamma xhat + beta                   (B, T, d)
    z    = u W^T + b              h = lstm(z)                             (B, T, 4H), (B, T, H)
    y    = x + h W_o^T + b_o                                              (B, T, d)

The scale and shift of the norm stand before a product, and are a part of it: the product is made of xhat,

    z = xhat V^T + e              V = W diag(gamma)      e = b + W beta   (4H, d), (4H,)

so that u is neither made nor kept, and two sums over all steps become two over the 4H rows of W.

Differential: delta y = delta x + delta h W_o^T + h delta W_o^T + delta b_o, and with h's own adjoint (`bpref.lstm`)

    dh    = dy W_o                dW_o = sum_nt dy^T h      db_o = sum_nt dy
    dz    = the LSTM's, of dh; it gives dU, and of its product dV = sum_nt dz^T xhat, de = sum_nt dz
    dxhat = dz V                                                          (B, T, d)
    dx    = dy + rstd (dxhat - mean(dxhat) - xhat mean(xhat dxhat))       (B, T, d)

and from V and e, k over the rows of W:

    dW_kj = dV_kj gamma_j + de_k beta_j             db = de               (4H, d), (4H,)
    dgamma_j = sum_k W_kj dV_kj                     dbeta_j = sum_k W_kj de_k             (d,)

Cached: x, mean and rstd, and the LSTM's gates and states before each step. xhat is one subtraction and one product
away, and is not kept; h W_o^T is not needed; h_t is h_{t-1} of the step after. No product is made twice: without the
gates, the backward would have to make z and h U^T again.

Numerical care: statistics in two passes; the norm, the loop and the sums run in at least float32; y is rounded once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite, require_flags, require_positive, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.formulas.decoder import decoder, decoder_of
from bpref.formulas.norm.standardize import moments, on_last_axes, pull_standardized
from bpref.formulas.recurrence.steps import Passed, Steps
from bpref.formulas.recurrence.through_time import Kept, joined
from bpref.layer import Layer, Reals, begin
from bpref.rule import Case, Interval, Real, Rule, Size, called_as
from bpref.rules.recurrence.lstm import LstmParams, lstm
from bpref.rules.recurrence.lstm import reference as naive_lstm


class LstmBlockParams(NamedTuple):
    scale: Float[Array, " d"]
    shift: Float[Array, " d"]
    lstm: LstmParams
    W: Float[Array, "d H"]
    b: Float[Array, " d"]


class LstmBlockCache(NamedTuple):
    x: Float[Array, "B T d"]
    mean: Float[Array, "B T 1"]
    rstd: Float[Array, "B T 1"]
    lstm: Kept


def lstm_block(
    features: int, eps: float = 1e-5, forget_bias: float = 1.0, reverse: bool = False
) -> Layer[LstmBlockParams, Array, Reals, LstmBlockCache]:
    """y = x + W_o lstm(layer_norm(x)) + b_o.

    Args:
      features: the number H of features of the LSTM.
      eps: what is added to the variance, in units of x squared.
      forget_bias, reverse: the LSTM's.

    Returns:
      A layer with params `LstmBlockParams(scale: (d,), shift: (d,), lstm: LstmParams, W: (d, H), b: (d,))`,
      x `(B, T, d)` and y `(B, T, d)`.

    Raises:
      ValueError: an argument is out of its range; x is not (B, T, d), or its d is another than the parameters'.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "lstm_block"
    require_flags(who, reverse=reverse)
    features = require_size(who, "features", features)
    eps = require_positive(who, "eps", eps)
    forget_bias = require_finite(who, "forget_bias", forget_bias)
    inner = lstm(features, forget_bias=forget_bias, reverse=reverse)

    def init(key, x):
        d, dtype = x.shape[-1], x.dtype
        keys = jax.random.split(key)
        return LstmBlockParams(
            jnp.ones(d, dtype),
            jnp.zeros(d, dtype),
            inner.init(keys[0], x),
            lecun_uniform(keys[1], (d, features), features, dtype),
            jnp.zeros(d, dtype),
        )

    def folded(p):
        """The LSTM's parameters with the norm's scale and shift in its product."""
        V = p.lstm.W * on_last_axes(p.scale, p.lstm.W)
        return p.lstm._replace(W=V, b=p.lstm.b + times_transposed(p.shift, p.lstm.W))

    def run(params, x, state=None):
        p, wide = jax.tree.map(widen, params), widen(x)
        mean, var = moments(wide, (2,))
        rstd = lax.rsqrt(var + eps)
        (h, last), kept = inner.forward(folded(p), Steps((wide - mean) * rstd, state))
        y = wide + plus(times_transposed(h, p.W), p.b)
        return cast(y, x.dtype), last, LstmBlockCache(x, mean, rstd, kept._replace(x=()))

    def forward(params, x: Float[Array, "B T d>0"]):
        y, _, cache = run(params, x)
        return y, cache

    def backward(params, cache, dy):
        x, mean, rstd, kept = cache
        p, dy = jax.tree.map(widen, params), widen(dy)
        xhat = (widen(x) - mean) * rstd
        h = outputs(kept, x.shape[1], reverse)
        ended = jax.tree.map(jnp.zeros_like, kept.last)
        of_lstm, dxhat = inner.backward(folded(p), kept._replace(x=xhat), Passed(times(dy, p.W), ended))
        dV, de = of_lstm.W, of_lstm.b
        dW = dV * on_last_axes(p.scale, dV) + lax.expand_dims(de, (1,)) * on_last_axes(p.shift, dV)
        dparams = LstmBlockParams(
            jnp.sum(p.lstm.W * dV, 0),
            times(de, p.lstm.W),
            of_lstm._replace(W=dW),
            transposed_times(dy, h),
            bias_cotangent(dy, p.b),
        )
        dx = dy + pull_standardized(dxhat, xhat, rstd, (2,))
        return jax.tree.map(lambda d, v: cast(d, v.dtype), dparams, params), cast(dx, x.dtype)

    def decoding(leaf, length):
        onwards = decoder_of(inner, length)

        def start(params, x):
            return begin(onwards, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, wide_dtype(x.dtype)))[1]

        return decoder(leaf, start, lambda params, x, state: run(params, x, state)[:2])

    return Layer(init, forward, backward, who, decoding=decoding)


def outputs(kept: Kept, T: int, reverse: bool) -> Float[Array, "B T H"]:
    """h after each of T steps, from what the LSTM keeps: the states before each, and the last."""
    before, last = joined(kept.before.h, T), lax.expand_dims(kept.last.h, (1,))
    return jnp.concatenate([last, before[:, :-1]] if reverse else [before[:, 1:], last], 1)[:, :T]


@called_as(lstm_block)
def reference(params: LstmBlockParams, x: Array, features, eps, reverse, **_) -> Array:
    xhat = (x - jnp.mean(x, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + eps)
    u = xhat * params.scale[None, None] + params.shift[None, None]
    h = naive_lstm(params.lstm, u, features, reverse=reverse).y
    return x + h @ params.W.T + params.b[None, None]


_EPS = Interval(1e-4, 0.1, 1e-3)

RULE = Rule(
    "lstm_block",
    lstm_block,
    reference,
    cases=(
        Case(
            "",
            Real("B T d"),
            {"features": Size("H"), "eps": _EPS},
            ("d", "H"),
            timed={"B": 16, "T": 64, "d": 64, "H": 64},
        ),
        Case("reversed", Real("B T d"), {"features": Size("H"), "eps": _EPS, "reverse": True}, ("d", "H")),
    ),
    cite="Hochreiter and Schmidhuber, 'Long short-term memory' (1997); the norm: arXiv:1607.06450; norm first, then a "
    "residual: arXiv:2002.04745",
    covers=("residual_lstm", "pre_norm_lstm"),
)
