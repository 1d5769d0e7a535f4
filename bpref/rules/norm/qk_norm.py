"""qk_norm: queries and keys brought to one size before they are compared, each head by itself.

Forward, with q of shape (..., T, H, D), k of shape (..., S, K, D), i over the D features of a head, n for all else, and
two ways of doing it:

    rms:   q'_ni = gamma_i q_ni / sqrt(mean_j q_nj^2 + eps)      k'_ni = kappa_i k_ni / sqrt(mean_j k_nj^2 + eps)
    l2:    q'_ni = g q_ni / max(|q_n|, eps)                      k'_ni = k_ni / max(|k_n|, eps)

Logits q' . k' of the first are bounded by D max |gamma kappa|; those of the second are g times a cosine, and are not
divided by sqrt(D).

Differential: no term mixes q and k, so that each has the differential of its own norm, derived in `rms_norm` and
`l2_normalize`; the number g of the second is linear, with qhat = q / max(|q|, eps):

    delta q'_ni = g delta qhat_ni + qhat_ni delta g

Hence, with P(u) the adjoint of the norm at q, the factor of each perturbation is

    rms:   dgamma_i = sum_n dq'_ni qhat_ni     (D,)          dq = P(gamma dq')          (B, T, H, D)
    l2:    dg = sum_ni dq'_ni qhat_ni          ()            dq = P(g dq')              (B, T, H, D)

and for k with kappa, or without g, alike. Scales that are zero-centred, or one for each head, are `rms_norm`'s own.

Cached: what the two norms keep: q and k, and one number for each of their heads.

Numerical care: that of the norms. q' and k' are rounded to their dtype once more than needed by the second way.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.layer import Layer, Reals, each_position
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Interval, Real, Rule, called_as
from bpref.rules.norm.l2_normalize import L2NormalizeCache, l2_normalize
from bpref.rules.norm.rms_norm import RmsNormCache, RmsNormParams, rms_norm


class QkNormParams(NamedTuple):
    q_scale: Float[Array, " D"] | Float[Array, "H D"] | Float[Array, ""]
    k_scale: Float[Array, " D"] | Float[Array, "K D"] | None


class QueriesAndKeys(NamedTuple):
    q: Float[Array, "... T H D>0"]
    k: Float[Array, "... S K D>0"]


class QkNormCache(NamedTuple):
    q: RmsNormCache | L2NormalizeCache
    k: RmsNormCache | L2NormalizeCache


def qk_norm(
    l2: bool = False, eps: float = 1e-6, zero_centred: bool = False, per_head: bool = False
) -> Layer[QkNormParams, tuple[Array, Array], tuple[Reals, Reals], QkNormCache]:
    """(q', k'): queries and keys, each divided by the root mean square, or by the length, of its head's features.

    Args:
      l2: whether to divide by the length and to multiply q' by one learned number g.
      eps: what is added to the mean square; with `l2`, the length below which is divided by eps instead.
      zero_centred: whether the scales are stored less 1, as in Gemma 3 and Qwen3-Next; not with `l2`.
      per_head: whether each head has scales of its own; not with `l2`.

    Returns:
      A layer with x `(q, k)`, q `(..., T, H, D)` and k `(..., S, K, D)` (their numbers of heads may differ), and y of
      the same shapes. The params are `QkNormParams(q_scale: (D,), k_scale: (D,))`, or (H, D) and (K, D) of each head,
      ones at first, or zeros where they are zero-centred; with `l2` `QkNormParams(q_scale: (), k_scale: None)`,
      log2(T^2 - T) at first, and 1 for a T of one.

    Raises:
      ValueError: `l2` is given with either of the last two; eps is not positive; q and k have no features, or another
        number of them than each other or scales.
      TypeError: x is no pair; q or k is not floating-point, or not of the scales' dtype.
    """
    who = "qk_norm"
    require_flags(who, l2=l2, zero_centred=zero_centred, per_head=per_head)
    eps = require_positive(who, "eps", eps)
    if l2 and (zero_centred or per_head):
        raise ValueError(f"{who}: l2 has one number g, expected neither zero_centred nor per_head with it")
    rms, length = rms_norm(eps, True, zero_centred, per_head), l2_normalize(-1, eps)

    def init(key, x):
        q, k = x
        if not l2:
            return QkNormParams._make(rms.init(key, v).scale for v in (q, k))
        T = max(q.shape[-3], 2)
        return QkNormParams(jnp.log2(jnp.full((), T * T - T, q.dtype)), None)

    def forward(params, x: QueriesAndKeys):
        q, k = x
        if not l2:
            (q, q_cache), (k, k_cache) = (rms.forward(RmsNormParams(p), v) for p, v in zip(params, (q, k), strict=True))
            return (q, k), QkNormCache(q_cache, k_cache)
        (q, q_cache), (k, k_cache) = (length.forward((), v) for v in (q, k))
        return (_times(params.q_scale, q), k), QkNormCache(q_cache, k_cache)

    def backward(params, cache, dy):
        if not l2:
            (of_q, dq), (of_k, dk) = (
                rms.backward(RmsNormParams(p), c, d) for p, c, d in zip(params, cache, dy, strict=True)
            )
            return QkNormParams(of_q.scale, of_k.scale), (dq, dk)
        dq, dk = with_zeros(dy, (cache.q.x, cache.k.x))
        g = params.q_scale
        qhat = widen(cache.q.x) / cache.q.length
        dg = cast(jnp.sum(widen(dq) * qhat), g.dtype)
        dq, dk = length.backward((), cache.q, _times(g, dq))[1], length.backward((), cache.k, dk)[1]
        return QkNormParams(dg, None), (dq, dk)

    return Layer(init, forward, backward, who, decoding=each_position)


def _times(g: Array, v: Array) -> Array:
    return cast(lax.broadcast(widen(g), v.shape) * widen(v), v.dtype)


@called_as(qk_norm)
def reference(params: QkNormParams, x: tuple[Array, Array], l2, eps, zero_centred, per_head) -> tuple[Array, Array]:
    if l2:
        import optax

        q, k = (v / optax.safe_norm(v, eps, axis=-1, keepdims=True) for v in x)
        return params.q_scale * q, k

    q, k = (naive_norm(v, g, None, eps, zero_centred=zero_centred) for v, g in zip(x, params, strict=True))
    return q, k


_X = (Real("B T H D", -2.0, 2.0), Real("B S K D", -2.0, 2.0))
_EPS = Interval(1e-6, 0.1, 1e-6)

RULE = Rule(
    "qk_norm",
    qk_norm,
    reference,
    cases=(
        Case("rms", _X, {"eps": _EPS}, ("D",), timed={"B": 4, "T": 256, "H": 8, "D": 64, "S": 256, "K": 8}),
        Case("zero-centred, of each head", _X, {"eps": _EPS, "zero_centred": True, "per_head": True}, ("D",)),
        Case("l2", _X, {"l2": True, "eps": _EPS}, ("D",)),
    ),
    cite="arXiv:2302.05442, section 2 (with RMS norm as in OLMo 2, arXiv:2501.00656); l2: arXiv:2010.04245, equation 6",
)
