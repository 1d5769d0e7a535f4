"""path_attention: softmax attention whose positions are products of reflections that every step chooses (PaTH).

Forward, for each head, with q of shape (T, D), k (T, D), v (T, E), a direction w (T, D) and beta (T,) of the head of
keys, and a = scale, 1 / sqrt(D) if it is not given:

    H_u  = I - beta_u w_u w_u^T                                           (D, D)
    z_ts = a q_t^T H_t H_(t-1) ... H_(s+1) k_s          s <= t            (T, T)
    p_t  = softmax of z_t over the keys s <= t that are seen
    y_t  = sum_s p_ts v_s                                                 (T, E)

The product is that of the steps between, as of a rotation by position, which has one plane for each pair of features
and one angle for each step, while this has a direction of its own at every step. beta = 0 is no position at all.

No product is made. With e_tu = q_t^T H_t ... H_(u+1) w_u, what query t meets at step u,

    z_ts = a (q_t . k_s - sum_u e_tu beta_u w_u . k_s)                    s < u <= t
    e_tu = q_t . w_u - sum_j e_tj beta_j w_j . w_u                        u < j <= t

so that in matrices, with tril including the diagonal, stril not, B = diag(beta), and I + G of unit diagonal,

    N = tril(Q W^T)        G = stril(B W W^T)        L = stril(B W K^T)   (T, T)
    E (I + G) = N          Z = a (tril(Q K^T) - E L)

Differential, the first term being that of `dot_product_attention`, to which -a E L is a bias:

    delta (E L) = delta E L + E delta L                 delta E (I + G) = delta N - E delta G

With the cotangent dz of that bias, S = -a dz that of E L, and the same for each factor:

    dE = S L^T             dN = tril(dE (I + G)^-T)                       (T, T)
    dL = stril(E^T S)      dG = -stril(E^T dN)
    dq = dN W              dk = (B dL)^T W                                (T, D)    beside those of the first term
    dw = dN^T Q + (B dG + (B dG)^T) W + B dL K                            (T, D)
    dbeta_u = sum_s (dG_us w_u . w_s + dL_us w_u . k_s)     s < u         (T,)

Heads of queries that share keys have rows of their own in Q, N, E and S, and one G and L.

Cached: x, E and the bias, two (T, T) a head: to make them again would take the T^3 of a triangular solve and a product.
All is done in one block; the paper's kernels take chunks, with T^2 D.

Numerical care: the triangular system is solved by halves, and inverses are made of at most 64 steps. All is at least
float32. Z is a difference: where reflections have taken away most of q_t . k_s, what is left has the rounding of both.
A w that is longer than sqrt(2 / beta) makes H_u grow, and what is between two far steps overflow.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite
from bpref.checks.shapes import require_shape
from bpref.dtypes import cast, widen
from bpref.formulas.attention.heads import Heads, from_rows, in_rows, require_heads
from bpref.formulas.attention.heads_to_try import WITHIN, packed
from bpref.formulas.attention.plain_heads import PathHeads
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.formulas.matrices import transpose
from bpref.formulas.recurrence.unit_triangular import right_divided
from bpref.layer import Layer, Reals, no_params
from bpref.naive.attention import naive_attention
from bpref.rule import Boolean, Case, Real, Rule, called_as, specs
from bpref.rules.attention.dot_product_attention import dot_product_attention


class PathAttentionCache(NamedTuple):
    x: PathHeads
    E: Float[Array, "M R T"]
    bias: Float[Array, "*b N T T"]


class _Rows(NamedTuple):
    """Of each batch and head of keys, M in all, with the R = G T steps of its heads of queries, in at least float32."""

    q: Float[Array, "M R D"]
    k: Float[Array, "M T D"]
    w: Float[Array, "M T D"]
    beta: Float[Array, "M T 1"]


def path_attention(scale: float | None = None) -> Layer[tuple[()], PathHeads, Reals, PathAttentionCache]:
    """Each query's mean of the values before it, by its dot products with keys that the steps between have reflected.

    Args:
      scale: a, what the dot products are multiplied by; 1 / sqrt(D) if it is not given.

    Returns:
      A layer with params `()`, x `PathHeads(Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E), ...),
      w: (*b, T, K, D), beta: (*b, T, K))`, N a multiple of K, and as wanted a mask and segment ids, and y
      `(*b, T, N, E)`. What a step reflects is reflected for all queries behind it, seen or not.

    Raises:
      ValueError: `scale` is not finite; shapes do not fit; x has a bias or a key.
      TypeError: x is no `PathHeads`; its arrays are not floating-point numbers of one dtype.
    """
    who = "path_attention"
    scale = None if scale is None else require_finite(who, "scale", scale)
    attention = dot_product_attention(causal=True, scale=scale)

    def forward(params, x: PathHeads):
        _require(who, x)
        of = _rows(x)
        E = right_divided(_lower(_over_last(of.q, of.w)), _G(of))
        *b, T, N, D = x.heads.q.shape
        bias = jnp.reshape(-a_of(D) * jnp.matmul(E, _L(of)), (*b, N, T, T))
        y = attention.forward(AttentionParams(), biased(x.heads, bias))[0]
        return cast(y, x.heads.q.dtype), PathAttentionCache(x, E, bias)

    def backward(params, cache, dy):
        x, E, bias = cache
        q, k = x.heads[:2]
        dx = attention.backward(AttentionParams(), biased(x.heads, bias), widen(dy))[1]
        of, S = _rows(x), -a_of(q.shape[-1]) * jnp.reshape(dx.bias, E.shape)
        dE = jnp.matmul(S, transpose(_L(of)))
        dN = _lower(right_divided(dE, _G(of), transposed=True))
        dL, dG = (_strictly_lower(jnp.matmul(transpose(E), d)) for d in (S, -dN))
        of_beta = jnp.sum(dG * _over_last(of.w, of.w) + dL * _over_last(of.w, of.k), -1)
        dG, dL = of.beta * dG, of.beta * dL
        dw = jnp.matmul(transpose(dN), of.q) + jnp.matmul(dG + transpose(dG), of.w) + jnp.matmul(dL, of.k)
        dq = widen(dx.q) + from_rows(jnp.matmul(dN, of.w), q, k)
        dk = widen(dx.k) + from_rows(jnp.matmul(transpose(dL), of.w), k, k)
        heads = Heads(*(cast(d, q.dtype) for d in (dq, dk, dx.v)))
        dbeta = from_rows(of_beta[..., None], k, k)[..., 0]
        return (), PathHeads(heads, cast(from_rows(dw, k, k), x.w.dtype), cast(dbeta, x.beta.dtype))

    def a_of(D):
        return D**-0.5 if scale is None else scale

    return Layer(no_params, forward, backward, who)


def biased(heads: Heads, bias: Array) -> Heads:
    """The heads in at least float32, and a bias."""
    q, k, v = map(widen, heads[:3])
    return heads._replace(q=q, k=k, v=v, bias=bias)


def _require(who: str, x: PathHeads) -> None:
    for name in ("bias", "key"):
        if getattr(x.heads, name) is not None:
            why = "it is made of the reflections" if name == "bias" else "nothing is dropped"
            raise ValueError(f"{who}: heads.{name} is given, expected None: {why}")
    steps, shape = x.heads.q.shape[-3], x.heads.k.shape
    if steps != shape[-3]:
        raise ValueError(f"{who}: k has {shape[-3]} steps, q has {steps}; expected as many (k: {shape})")
    require_heads(who, x.heads)
    require_shape(who, "w", x.w, shape, f"by k {shape}")
    require_shape(who, "beta", x.beta, shape[:-1], f"by k {shape}")


def _rows(x: PathHeads) -> _Rows:
    q, k = x.heads[:2]
    return _Rows(*(in_rows(widen(a), k) for a in (q, k, x.w, x.beta[..., None])))


def _G(of: _Rows) -> Array:
    return of.beta * _strictly_lower(_over_last(of.w, of.w))


def _L(of: _Rows) -> Array:
    return of.beta * _strictly_lower(_over_last(of.w, of.k))


def _over_last(a: Array, b: Array) -> Array:
    return jnp.matmul(a, transpose(b))


def _lower(a: Array, strictly: int = 0) -> Array:
    """tril of each T rows of (M, R, T)."""
    t, s = (lax.broadcasted_iota(jnp.int32, a.shape, axis) for axis in (1, 2))
    return jnp.where(t % a.shape[2] >= s + strictly, a, 0)


def _strictly_lower(a: Array) -> Array:
    return _lower(a, 1)


@called_as(path_attention)
def reference(params: tuple[()], x: PathHeads, scale) -> Array:
    """Each step reflects all keys before it, and adds its own."""
    q, k = x.heads[:2]
    T, D, G = q.shape[-3], q.shape[-1], q.shape[-2] // k.shape[-2]
    q, k, w, beta = (jnp.moveaxis(u, -3, 0) for u in (q, k, x.w, x.beta[..., None]))

    def step(seen, now):
        t, q, k, w, beta = now
        w, beta = w[None], beta[None]
        seen = seen - beta * w * jnp.sum(seen * w, -1, keepdims=True)
        seen = jnp.where((jnp.arange(T) == t).reshape(T, *[1] * k.ndim), k[None], seen)
        return seen, jnp.einsum("...nd,s...nd->...ns", q, jnp.repeat(seen, G, -2))

    z = lax.scan(step, jnp.zeros((T, *k.shape[1:]), k.dtype), (jnp.arange(T), q, k, w, beta))[1]
    bias = jnp.moveaxis(z, 0, -2) * (D**-0.5 if scale is None else scale)
    return naive_attention(AttentionParams(), x.heads._replace(bias=bias), causal=True, scale=0.0)


def _unit(a: np.ndarray) -> np.ndarray:
    return a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-3)


_HIDDEN = packed(WITHIN._replace(mask=Boolean("B N T T")))
_W = Real("B T K D", -1.0, 1.0, domain=_unit)
_NEVER_EMPTY = ("T", "N", "K", "D", "E")

RULE = Rule(
    "path_attention",
    path_attention,
    reference,
    cases=(
        Case(
            "grouped",
            specs(PathHeads, WITHIN, _W, Real("B T K", 0.0, 2.0, points=(0.0, 2.0, 1.0))),
            never_empty=_NEVER_EMPTY,
            fixed={"N": 4, "K": 2, "D": 16},
            timed={"B": 1, "T": 512, "N": 8, "K": 8, "D": 64, "E": 64},
        ),
        Case(
            "mask, segments, scale",
            specs(PathHeads, _HIDDEN, _W, Real("B T K", 0.0, 2.0)),
            {"scale": 0.4},
            never_empty=_NEVER_EMPTY,
            fixed={"N": 2, "K": 2, "D": 16},
        ),
    ),
    cite="Yang et al., 'PaTH attention: position encoding via accumulating Householder transformations' (2025), "
    "arXiv:2505.16381, section 3 (equation numbers not checked)",
    covers=("path", "householder positions", "data-dependent positions"),
)
