"""rg_lru: Griffin's real-gated linear recurrent unit, a diagonal recurrence whose two gates see the input alone.

Forward, with x (N, T, d), square W_r and W_i, L short for Lambda, and the number c = 8:

    r_t = sigmoid(x_t W_r^T + b_r)                                        (N, T, d)
    i_t = sigmoid(x_t W_i^T + b_i)                                        (N, T, d)
    l_t = -c softplus(-L) r_t          the logarithm of a_t = sigmoid(L)^(c r_t)
    m_t = sqrt(1 - a_t^2)                                                 (N, T, d)
    h_t = a_t h_{t-1} + m_t i_t x_t,   h_0 = 0                            (N, T, d)

Differential:

    delta h_t = a_t delta h_{t-1} + (a_t h_{t-1} - (a_t^2 / m_t) i_t x_t) delta l_t
              + m_t (i_t delta x_t + x_t delta i_t)
    delta l_t = -c softplus(-L) delta r_t + c sigmoid(-L) r_t delta L

since delta a = a delta l, delta m = -(a^2 / m) delta l, and softplus' = sigmoid. With G the cotangent of all that h_t
reaches, G_t = dh_t + a_{t+1} G_{t+1} as in `linear_recurrence`, the adjoint is free of time: q and p are the
cotangents of what the sigmoids of i and r are taken of,

    dl = G (a h_{t-1} - (a^2 / m) i x)                                    (N, T, d)
    q  = G m x i (1 - i)                                                  (N, T, d)
    p  = -c softplus(-L) dl r (1 - r)                                     (N, T, d)
    dx = G m i + q W_i + p W_r                                            (N, T, d)
    dW_i = sum q^T x,   dW_r = sum p^T x,   db_i = sum q,   db_r = sum p  (d, d), (d,)
    dL = c sigmoid(-L) sum_t dl r                                         (d,)

The weights' gradients are one matrix product each over all steps, behind the recurrence and not in it.

Cached: x, r, i and the output h. a and m are an exponential and a root of r, cheap beside the products.

Numerical care: near a = 1 the difference 1 - a^2 cancels; m is written sqrt(-expm1(2 l)), which has the relative
precision of l. 1 / m grows there without bound: dm/dl has no value at l = 0, which softplus(-L) r reaches only by
underflow, and 0 is taken for it. 1 - r and 1 - i are the kept numbers' own complements: a gate that has rounded to 1 is
shut for the gradient, as in autodiff.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.affine import lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.formulas.decoder import decoder
from bpref.formulas.logistic import log1p_exp, logistic
from bpref.formulas.recurrence.recurrences import Method, before, last, require_method, run_back, run_recurrence
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule

C = 8.0


class RgLruParams(NamedTuple):
    W_r: Float[Array, "d d"]
    b_r: Float[Array, " d"]
    W_i: Float[Array, "d d"]
    b_i: Float[Array, " d"]
    Lambda: Float[Array, " d"]


class RgLruCache(NamedTuple):
    x: Float[Array, "N T d"]
    r: Float[Array, "N T d"]
    i: Float[Array, "N T d"]
    h: Float[Array, "N T d"]


def rg_lru(method: Method = "sequential") -> Layer[RgLruParams, Array, Reals, RgLruCache]:
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t with the gates a and i of x_t.

    Args:
      method: "sequential", T steps; or "associative", `lax.associative_scan`, for machines with many units.

    Returns:
      A layer with params `RgLruParams(W_r, b_r, W_i, b_i, Lambda)`, weights `(d, d)` and the rest `(d,)`, x `(N, T, d)`
      and y = h `(N, T, d)`. Weights are drawn uniformly with variance 1/d (LeCun), biases are 0, and Lambda is drawn so
      that sigmoid(Lambda)^c is uniform between 0.9 and 0.999.

    Raises:
      ValueError: method is neither; x is not (N, T, d), or has another d than W_r.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "rg_lru"
    require_method(who, method)

    def init(key, x):
        d = x.shape[-1]
        of_r, of_i, of_decay = jax.random.split(key, 3)
        log_a = jnp.log(jax.random.uniform(of_decay, (d,), x.dtype, 0.9, 0.999)) / C
        return RgLruParams(
            lecun_uniform(of_r, (d, d), d, x.dtype),
            jnp.zeros(d, x.dtype),
            lecun_uniform(of_i, (d, d), d, x.dtype),
            jnp.zeros(d, x.dtype),
            log_a - jnp.log(-jnp.expm1(log_a)),
        )

    def states(params, x, start):
        """r, i and h in at least float32."""
        r = lax.logistic(plus(times_transposed(x, params.W_r), params.b_r))
        i = lax.logistic(plus(times_transposed(x, params.W_i), params.b_i))
        _, a, m = decay(params, r)
        return r, i, run_recurrence(a, m * (i * widen(x)), start, method)

    def forward(params, x: Float[Array, "N T d>0"]):
        r, i, h = (cast(v, x.dtype) for v in states(params, x, None))
        return h, RgLruCache(x, r, i, h)

    def backward(params, cache, dh):
        x, r, i, h = (widen(v) for v in cache)
        rate, a, m = decay(params, r)
        G = run_back(a, widen(dh), method)
        slope = jnp.where(m > 0, a * a / jnp.where(m > 0, m, 1), 0)
        dl = G * (a * before(h, None) - slope * (i * x))
        q = G * m * x * (i * (1 - i))
        p = rate * dl * (r * (1 - r))
        dLambda = C * logistic(-widen(params.Lambda)) * jnp.sum(dl * r, (0, 1))
        dtype = cache.x.dtype
        q, p = cast(q, dtype), cast(p, dtype)
        dx = G * m * i + times(q, params.W_i) + times(p, params.W_r)
        return RgLruParams(
            cast(transposed_times(p, cache.x), dtype),
            cast(jnp.sum(widen(p), (0, 1)), dtype),
            cast(transposed_times(q, cache.x), dtype),
            cast(jnp.sum(widen(q), (0, 1)), dtype),
            cast(dLambda, dtype),
        ), cast(dx, dtype)

    def decoding(leaf, length):
        def step(params, x, start):
            h = states(params, x, start)[2]
            return cast(h, x.dtype), last(h, start)

        return decoder(leaf, lambda params, x: jnp.zeros((x.shape[0], x.shape[2]), wide_dtype(x.dtype)), step)

    return Layer(init, forward, backward, who, decoding=decoding)


def decay(params: RgLruParams, r: Array) -> tuple[Array, Array, Array]:
    """-c softplus(-L), broadcast over steps; a = exp(-c softplus(-L) r); and sqrt(1 - a^2)."""
    L = widen(params.Lambda)[None, None]
    rate = -C * log1p_exp(-L)
    log_a = rate * r
    return rate, jnp.exp(log_a), jnp.sqrt(-jnp.expm1(2 * log_a))


def reference(params: RgLruParams, x: Array, method: Method = "sequential") -> Array:
    def gate(W, b):
        z = jnp.einsum("ntd,kd->ntk", x, W)
        return jax.nn.sigmoid(z + jnp.broadcast_to(b, z.shape))

    r, i = gate(params.W_r, params.b_r), gate(params.W_i, params.b_i)
    log_a = C * r * jnp.broadcast_to(jax.nn.log_sigmoid(params.Lambda), r.shape)
    b = jnp.sqrt(-jnp.expm1(2 * log_a)) * i * x

    def step(h, at):
        h = at[0] * h + at[1]
        return h, h

    along = jnp.moveaxis(jnp.exp(log_a), 1, 0), jnp.moveaxis(b, 1, 0)
    return jnp.moveaxis(lax.scan(step, jnp.zeros_like(b, shape=(x.shape[0], x.shape[2])), along)[1], 0, 1)


_W, _B = Real("d d", -0.5, 0.5), Real("d", -1.0, 1.0)
_PARAMS = RgLruParams._make((_W, _B, _W, _B, Real("d", 1.0, 6.0)))

RULE = Rule(
    "rg_lru",
    rg_lru,
    reference,
    cases=(
        Case("sequential", Real("N T d"), params=_PARAMS, never_empty=("d",), timed={"N": 4, "T": 512, "d": 128}),
        Case("associative", Real("N T d"), {"method": "associative"}, params=_PARAMS, never_empty=("d",)),
    ),
    cite="De et al., 'Griffin: mixing gated linear recurrences with local attention' (2024), arXiv:2402.19427, "
    "equations 1 to 4",
    covers=("griffin", "real-gated linear recurrent unit", "hawk"),
)
