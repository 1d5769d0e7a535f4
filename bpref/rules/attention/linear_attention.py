"""linear_attention: attention whose weights are products of features, so that its past is one matrix.

Forward, for each head, with q, k of shape (T, D), v of shape (T, E), phi(z) = elu(z) + 1 or relu(z) or z element by
element, a = phi(q), b = phi(k), and s over the steps up to t (over all of them when it is not causal):

    o_t = sum_{s<=t} (a_t . b_s) v_s                                      (T, E)
    n_t = sum_{s<=t} a_t . b_s                                            (T,)
    y_t = o_t / n_t            without `normalize`  y_t = o_t             (T, E)

n is the o of values that are all 1. So let w = (v, 1), of E + 1 features, and there is one operator of three sequences:

    O(a, b, w)_t = sum_{s<=t} (a_t . b_s) w_s = a_t^T S_t,     S_t = S_{t-1} + b_t w_t^T      S: (D, E + 1)

Differential, with (o, n) = O(a, b, w) and g the cotangent of (o, n):

    dJ = sum_{s<=t} (delta a_t . b_s) (w_s . g_t) + (a_t . delta b_s) (w_s . g_t) + (a_t . b_s) (delta w_s . g_t)

Each perturbation's factor is the same operator again, of other sequences, where sums over t >= s run backwards in time:

    da_t = sum_{s<=t} (g_t . w_s) b_s = O(g, w, b)_t                      (T, D)
    db_s = sum_{t>=s} (w_s . g_t) a_t = O'(w, g, a)_s                     (T, D)
    dw_s = sum_{t>=s} (b_s . a_t) g_t = O'(b, a, g)_s                     (T, E + 1)

Of the quotient, delta y = (delta o - y delta n) / n; with h = dy / n and the a-cotangent of o alone, c = O(h, v, b),

    do_t = h_t        dn_t = -(h_t . o_t) / n_t = -(a_t . c_t) / n_t          g = (do, dn)
    dq = phi'(q) da     dk = phi'(k) db     dv = dw without its last feature

Where n_t is 0 (relu of features that do not meet, exponentials that vanish), y_t is 0, and no cotangent passes.
phi'(z) of elu(z) + 1 is min(phi(z), 1), there is no kink; relu'(0) = 0. Where N / K heads of q share one of k and v,
they are that many rows at the same step: db and dw sum over them.

The operator works by chunks of L steps: inside, (A * M) w with A = a b^T and M_ts = [s <= t]; the steps before come as
a S, and S grows by b^T w for each chunk. O' is the same from the last chunk to the first, with M transposed.

Cached: q, k and v; and n, one number for each head and step. Neither a state nor y: a . c says what y . dy would.

Numerical care: the state, n and all products are at least float32. elu(z) + 1 is exp(z) below 0, where expm1(z) + 1
would cancel. S grows with T, and late outputs have the round-off of the whole sum, as every order of summation has.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_flags, require_size
from bpref.dtypes import widen
from bpref.formulas.chunks import fitting, from_chunks, into_chunks, no_state_of, sees, transpose
from bpref.formulas.decoder import decoder, require_no_later
from bpref.formulas.heads import Heads
from bpref.formulas.long_sums import times
from bpref.formulas.plain_heads import require_plain
from bpref.layer import Layer, Reals, no_params
from bpref.loops import scan
from bpref.rule import Case, Real, Rule, called_as, specs


class LinearAttentionCache(NamedTuple):
    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b S K D"]
    v: Float[Array, "*b S K E"]
    n: Float[Array, "*b T N 1"] | None


class FeatureMap(NamedTuple):
    """phi, and phi' as a function of phi's value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


FEATURES = {
    "elu": FeatureMap(lambda z: jnp.where(z > 0, z + 1, jnp.exp(jnp.minimum(z, 0))), lambda a: jnp.minimum(a, 1)),
    "relu": FeatureMap(lambda z: jnp.maximum(z, 0), lambda a: (a > 0).astype(a.dtype)),
    "identity": FeatureMap(lambda z: z, jnp.ones_like),
}


def linear_attention(
    features: str = "elu", normalize: bool = True, causal: bool = True, chunk: int = 64
) -> Layer[tuple[()], Heads, Reals, LinearAttentionCache]:
    """y_t = sum_s (phi(q_t) . phi(k_s)) v_s / sum_s phi(q_t) . phi(k_s), at the cost of T, not of T^2.

    Args:
      features: phi: "elu" for elu + 1, "relu" or "identity".
      normalize: whether to divide by the sum of the weights; y is 0 where that is 0.
      causal: whether s runs up to t, or over all keys.
      chunk: L, the number of steps that are compared directly; it changes the cost, not the function.

    Returns:
      A layer with params `()`, x `Heads(q: (*b, T, N, D), k: (*b, S, K, D), v: (*b, S, K, E))`, S = T if it is causal,
      N a multiple of K, and y `(*b, T, N, E)`. Queries are not scaled.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit; x has a mask, bias, segments or key.
      TypeError: x is no `Heads`; q, k and v are not floating-point numbers of one dtype.
    """
    who = "linear_attention"
    require_flags(who, normalize=normalize, causal=causal)
    require_choice(who, "features", features, FEATURES)
    chunk = require_size(who, "chunk", chunk)
    phi, slope = FEATURES[features]
    operator = _causal if causal else _global

    def chunked(z, K):
        T = z.shape[-3]
        return into_chunks(z, K, fitting(chunk if causal else T, T))

    def mapped(q, k, v):
        K = k.shape[-2]
        return chunked(phi(widen(q)), K), chunked(phi(widen(k)), K), chunked(v, K)

    def forward(params, x: Heads):
        require_plain(who, x, causal)
        q, k, v = x[:3]
        K = k.shape[-2]
        a, b, w = mapped(q, k, v)
        if not normalize:
            return from_chunks(operator(a, b, w), K, q), LinearAttentionCache(q, k, v, None)
        on = operator(a, b, _with_ones(w))
        o, n = on[..., :-1], on[..., -1:]
        return from_chunks(o * _inverse(n), K, q), LinearAttentionCache(q, k, v, from_chunks(n, K, widen(q)))

    def backward(params, cache, dy):
        q, k, v, n = cache
        K = k.shape[-2]
        a, b, w = mapped(q, k, v)
        g = chunked(dy, K)
        if normalize:
            per_n = _inverse(chunked(n, K))
            h = g * per_n
            c = operator(h, w, b)
            dn = -jnp.sum(a * c, -1, keepdims=True) * per_n
            da = c + dn * operator(_ones(a), _ones(b), b)
            g, w = jnp.concatenate((h, dn), -1), _with_ones(w)
        else:
            da = operator(g, w, b)
        db, dw = operator(w, g, a, reverse=True), operator(b, a, g, reverse=True)
        dq, dk, dv = slope(a) * da, slope(b) * db, dw[..., : v.shape[-1]]
        return (), Heads(from_chunks(dq, K, q), from_chunks(dk, K, k), from_chunks(dv, K, v))

    def decoding(leaf, length):
        require_no_later(who, causal)

        def step(params, x, S):
            require_plain(who, x)
            K = x.k.shape[-2]
            a, b, w = mapped(*x[:3])
            S, on = _swept(a, b, _with_ones(w) if normalize else w, S)
            return from_chunks(on[..., :-1] * _inverse(on[..., -1:]) if normalize else on, K, x.q), S

        return decoder(leaf, lambda params, x: no_state_of(x.k, x.v.shape[-1] + normalize), step)

    return Layer(no_params, forward, backward, who, decoding=decoding)


def _causal(a: Array, b: Array, w: Array, reverse: bool = False) -> Array:
    """O(a, b, w), or O' in `reverse`: three arrays (C, G, rows, features), chunk after chunk."""
    return _swept(a, b, w, jnp.zeros((a.shape[1], a.shape[-1], w.shape[-1]), w.dtype), reverse)[1]


def _swept(a: Array, b: Array, w: Array, S: Array, reverse: bool = False) -> tuple[Array, Array]:
    """The state after all chunks, S that before the first, and O or O'."""
    seen = sees(a.shape[2], b.shape[2], reverse)

    def step(S, abw):
        a, b, w = abw
        inside = jnp.where(seen, times(a, transpose(b)), 0)
        return S + times(transpose(b), w), times(inside, w) + times(a, S)

    return scan(step, S, (a, b, w), reverse=reverse)


def _global(a: Array, b: Array, w: Array, reverse: bool = False) -> Array:
    """The operator where every step sees all, which is its own reverse."""
    return times(a, times(transpose(b), w))


def _with_ones(v: Array) -> Array:
    return jnp.concatenate((v, _ones(v)), -1)


def _ones(v: Array) -> Array:
    """One feature, 1 at every step."""
    return jnp.ones((*v.shape[:-1], 1), v.dtype)


def _inverse(n: Array) -> Array:
    """1 / n, and 0 where n is 0."""
    return jnp.where(n == 0, 0, 1 / jnp.where(n == 0, 1, n))


@called_as(linear_attention)
def reference(params: tuple[()], x: Heads, features, normalize, causal, **_) -> Array:
    phi = {"elu": lambda z: jax.nn.elu(z) + 1, "relu": jax.nn.relu, "identity": lambda z: z}[features]
    a, b = phi(x.q), phi(jnp.repeat(x.k, x.q.shape[-2] // x.k.shape[-2], -2))
    v = jnp.repeat(x.v, x.q.shape[-2] // x.k.shape[-2], -2)

    def read(S, z, a_t):
        o, n = jnp.einsum("...d,...de->...e", a_t, S), jnp.sum(a_t * z, -1, keepdims=True)
        return o / jnp.where(n == 0, jnp.inf, n) if normalize else o

    def step(state, abv):
        a_t, b_t, v_t = abv
        S, z = state[0] + b_t[..., :, None] * v_t[..., None, :], state[1] + b_t
        return (S, z), read(S, z, a_t)

    if not causal:
        return read(jnp.einsum("...snd,...sne->...nde", b, v)[..., None, :, :, :], jnp.sum(b, -3, keepdims=True), a)
    z = jnp.zeros((*b.shape[:-3], *b.shape[-2:]), b.dtype)
    S = jnp.zeros((*z.shape, v.shape[-1]), v.dtype)
    by_time = tuple(jnp.moveaxis(u, -3, 0) for u in (a, b, v))
    return jnp.moveaxis(lax.scan(step, (S, z), by_time)[1], 0, -3)


def _heads(v: str) -> Heads:
    return specs(Heads, Real("B T N D", -2.0, 2.0), Real(f"B {v} K D", -2.0, 2.0), Real(f"B {v} K E", -2.0, 2.0))


_FIXED = {"B": 2, "N": 4, "K": 2}

RULE = Rule(
    "linear_attention",
    linear_attention,
    reference,
    cases=(
        Case("elu", _heads("T"), {"chunk": 5}, fixed=_FIXED),
        Case(
            "identity",
            _heads("T"),
            {"features": "identity", "normalize": False},
            fixed=_FIXED,
            timed={"B": 1, "T": 512, "N": 4, "K": 4, "D": 32, "E": 32},
        ),
        Case("relu, not causal", _heads("S"), {"features": "relu", "causal": False}, fixed=_FIXED | {"S": 24}),
    ),
    cite="Katharopoulos et al., 'Transformers are RNNs' (2020), arXiv:2006.16236, equations 8 to 15",
    covers=("linear transformer", "kernelized attention"),
)
