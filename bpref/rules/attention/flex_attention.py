"""flex_attention: softmax attention of scores that a layer changes before the softmax, as it likes.

Forward, with the scores z_ts = scale q_t . k_s of a head, and f a layer with params w, which may read the number of the
head and the places t and s besides; sums are over the keys s that query t sees:

    x_ts = f(z_ts; w, n, t, s)                                            (T, S)
    p_ts = exp(x_ts - m_t) / Z_t      m_t = max_s x_ts      Z_t = sum_s exp(x_ts - m_t)
    y_t  = sum_s p_ts v_s                                                 (T, E)

f takes a part of the scores for some t and s, and has no say in which: x_ts must not depend on other scores.

Differential. Attention knows of f what every layer tells: what it makes of z, and of dx with its own backward.

    dv_s  = sum_t p_ts dy_t                                               (S, E)
    dx_ts = p_ts (dy_t . v_s - D_t)           D_t = sum_s p_ts dy_t . v_s
    dw, dz = f's backward of dx               dw summed over all parts    (T, S)
    dq_t  = scale sum_s dz_ts k_s                                         (T, D)
    dk_s  = scale sum_t dz_ts q_t                                         (S, D)

Cached: x alone. Scores, what f makes of them and what it caches are made again, a block at a time, as in
`blockwise_attention`: nothing of T x S is kept or made.

Numerical care: that of `blockwise_attention`. f is given scores in at least float32, and its params in their dtype.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct
from jaxtyping import PyTree

from bpref.cotangents import is_differentiable
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.attention.attend import attend, pull_attend
from bpref.formulas.attention.attention_grid import Extras, Pattern, Window
from bpref.formulas.attention.changed_scores import Changed, Scores
from bpref.formulas.attention.heads import Heads, require_heads
from bpref.formulas.attention.heads_to_try import ACROSS, GROUPED, NEVER_EMPTY, TIMED
from bpref.formulas.attention.softmax_attention import AttentionParams, require_pattern
from bpref.layer import Layer, Reals, no_params, require_layer, require_no_state
from bpref.naive.attention import naive_attention
from bpref.rule import Boolean, Case, Real, Rule, called_as


def flex_attention(
    score: Layer,
    causal: bool = False,
    window: Window | None = None,
    scale: float | None = None,
    query_block: int = 256,
    key_block: int = 256,
) -> Layer[PyTree, Heads, Reals, Heads]:
    """Each query's mean of the values it sees, weighted by the softmax of what a layer makes of their scores.

    Args:
      score: f, a layer from `Scores(z: (*b, N, T, S), t: (T,), s: (S,))` to an array of z's shape and dtype. It has
        a block of the scores at a time, and its backward gives the cotangent of z; t and s are integers.
      causal, window, scale, query_block, key_block: as in `blockwise_attention`.

    Returns:
      A layer with score's params, x `Heads(q: (*b, T, N, D), k: (*b, S, K, D), v: (*b, S, K, E), ...)` without a key,
      and y `(*b, T, N, E)`. A bias is added to what the layer makes. What is not seen gives the layer dx = 0.

    Example:
      Scores that fall with the distance, as ALiBi's do:

      >>> nearer = bpref.Layer(
      ...     lambda key, x: (),
      ...     lambda params, x: (x.z - 0.5 * jnp.broadcast_to(abs(x.t[:, None] - x.s[None]), x.z.shape), ()),
      ...     lambda params, cache, dx: ((), bpref.Scores(dx, None, None)),
      ...     "nearer",
      ... )
      >>> q = jnp.ones((1, 12, 2, 8))
      >>> bpref.flex_attention(nearer, causal=True).forward((), bpref.Heads(q, q, q))[0].shape
      (1, 12, 2, 8)

    Raises:
      ValueError: as in `dot_product_attention`; x.key is given; score gives another shape.
      TypeError: score is no layer, or has state; it gives another dtype; as in `dot_product_attention`.
    """
    who = "flex_attention"
    require_layer(who, "score", score)
    require_no_state(who, score)
    general = require_pattern(
        who, Pattern(0.0 if scale is None else scale, causal, window, None, 0.0, query_block, key_block)
    )

    def init(key, x):
        return score.init(key, _spec(x, x.q.dtype))

    def forward(params, x: Heads):
        require_heads(who, x)
        if x.key is not None:
            raise ValueError(f"{who}: x.key is given, expected None: there is no dropout")
        pattern, extras = of(params, x)
        given = _spec(x, wide_dtype(x.q.dtype))
        made = jax.eval_shape(lambda w, z: score.forward(w, z)[0], extras.score.params, given)
        for what, error in (("shape", ValueError), ("dtype", TypeError)):
            came, expected = (getattr(v, what, None) for v in (made, given.z))
            if came != expected:
                raise error(f"{who}: {score.name} gives the {what} {came}, expected z's, {expected}")
        return attend(pattern, x, extras).y, x

    def backward(params, cache, dy):
        x = cache
        pattern, extras = of(params, x)
        d = pull_attend(pattern, x, extras, dy)
        dparams = jax.tree.map(lambda d, v: cast(d, v.dtype), d.extras.score, params)
        return dparams, Heads(d.dq, d.dk, d.dv, bias=d.dbias)

    def of(params, x):
        """The pattern, and the layer with params as wide as the scores."""
        pattern = general if scale is not None else general._replace(scale=x.q.shape[-1] ** -0.5)
        return pattern, Extras(score=Changed(score, jax.tree.map(_wide, params)))

    return Layer(init, forward, backward, who)


def _wide(v: Array) -> Array:
    return widen(v) if is_differentiable(v) else v


def _spec(x: Heads, dtype: np.dtype) -> Scores:
    """All scores of x, as a layer is told of them."""
    *b, T, N, _ = x.q.shape
    S = x.k.shape[-3]
    t, s = (ShapeDtypeStruct((n,), jnp.int32) for n in (T, S))
    return Scores._make((ShapeDtypeStruct((*b, N, T, S), dtype), t, s))


@called_as(flex_attention)
def reference(params: PyTree, x: Heads, score, **hyper) -> Array:
    t, s = (jnp.arange(u.shape[-3], dtype=jnp.int32) for u in (x.q, x.k))
    return naive_attention(AttentionParams(), x, score=lambda z: score.forward(params, Scores(z, t, s))[0], **hyper)


def _bent() -> Layer:
    """x = 2 tanh(z / 2), for a case."""

    def forward(params, x: Scores):
        bent = jnp.tanh(x.z / 2)
        return 2 * bent, bent

    def backward(params, bent, dx):
        return (), Scores._make(((1 - bent) * (1 + bent) * dx, None, None))

    return Layer(no_params, forward, backward, "bent")


def _tilted() -> Layer:
    """x_ts = z_ts (1 + w_n (s - t)), for a case: w of each head, and a slope that depends on w, t and s."""

    def init(key, x):
        return jnp.zeros(x.z.shape[-3], x.z.dtype)

    def forward(w, x: Scores):
        return x.z * _factor(w, x), x

    def backward(w, x, dx):
        dw = jnp.sum(dx * x.z * _ahead(x), (*range(dx.ndim - 3), -2, -1))
        return dw, Scores._make((dx * _factor(w, x), None, None))

    def _ahead(x):
        return jnp.broadcast_to((x.s[None] - x.t[:, None]).astype(x.z.dtype), x.z.shape)

    def _factor(w, x):
        return 1 + jnp.broadcast_to(w[:, None, None], x.z.shape) * _ahead(x)

    return Layer(init, forward, backward, "tilted")


RULE = Rule(
    "flex_attention",
    flex_attention,
    reference,
    cases=(
        Case("bent, causal", ACROSS, {"score": _bent(), "causal": True}, NEVER_EMPTY, fixed=GROUPED, timed=TIMED),
        Case(
            "tilted by a slope of each head, mask, window, blocks",
            ACROSS._replace(mask=Boolean("B N T S")),
            {"score": _tilted(), "window": (4, 2), "scale": 0.4, "query_block": 5, "key_block": 2},
            NEVER_EMPTY,
            Real("N", -0.5, 0.5),
            fixed=GROUPED | {"B": 2},
        ),
    ),
    cite="arXiv:2412.05496, section 3 (section not checked)",
    covers=("score_mod", "flexattention", "score modification"),
)
