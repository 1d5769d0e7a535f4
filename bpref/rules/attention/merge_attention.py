"""merge_attention: what queries have seen of two sets of keys, made what they see of both.

Forward, for each query and head, of y' and L' for one set of keys and y'' and L'' for another, as
`attention_with_log_sum_exp` has them:

    L  = log(exp(L') + exp(L''))                                          (T,)
    w' = exp(L' - L)          w'' = exp(L'' - L) = 1 - w'                 (T,)
    y  = w' y' + w'' y''                                                  (T, E)

those of attention to both sets. A query that sees nothing of a set has L' = -inf there, and what is in y' is not read;
one that sees nothing of either has y = 0, L = -inf and w' = w'' = 0.

Differential, with delta w' = w' w'' (delta L' - delta L'') = -delta w'':

    delta L = w' delta L' + w'' delta L''
    delta y = w' delta y' + w'' delta y'' + w' w'' (delta L' - delta L'') (y' - y'')

The sweep starts with dy and dL. The factor of each perturbation:

    dy' = w' dy                           dy'' = w'' dy                   (T, E)
    c   = w' w'' dy . (y' - y'')                                          (T,)
    dL' = w' dL + c                       dL'' = w'' dL - c               (T,)

Cached: both y and both L, as they came. w' and w'' are made of L' - L'' again.

Numerical care: w' and w'' are the sigmoids of L' - L'' and of L'' - L', each to its last digit; L is max(L', L'') +
log1p(exp(-|L' - L''|)). y' and y'' are subtracted before they meet dy. All is at least float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bpref.dtypes import cast, require_floating, wide_dtype
from bpref.layer import Layer, no_params
from bpref.rule import Case, Real, Rule, called_as, specs
from bpref.rules.attention.attention_with_log_sum_exp import Attended


class Parts(NamedTuple):
    """What the same queries have seen of two sets of keys."""

    first: Attended
    second: Attended


def merge_attention() -> Layer[tuple[()], tuple[Attended, Attended], Attended, Parts]:
    """y and L of attention to two sets of keys, of those to each.

    Returns:
      A layer with params `()`, x a pair of `Attended(y: (*b, T, N, E), log_sum_exp: (*b, T, N))`, and y one of the same
      shapes. A log-sum-exp may be wider than y is, as that of `attention_with_log_sum_exp` in half precision; the
      merged one is in at least float32. Either output may be left unused, and has the cotangent `None`.

    Example:
      Keys and values in two parts, wherever they lie:

      >>> attend, merge = bpref.attention_with_log_sum_exp(), bpref.merge_attention()
      >>> q, k = jnp.ones((1, 3, 2, 4)), jnp.arange(80.0).reshape(1, 10, 2, 4) / 80
      >>> parts = [attend.forward((), bpref.Heads(q, part, part))[0] for part in jnp.split(k, [6], 1)]
      >>> y = merge.forward((), tuple(parts))[0].y

    Raises:
      ValueError: shapes do not fit.
      TypeError: x is no pair of pairs; it is not floating-point, or both y are not of one dtype.
    """
    who = "merge_attention"

    def wide(x):
        """Both y and both L in the widest of their dtypes, at least float32: 0 in y where nothing was to be seen."""
        dtype = max((wide_dtype(v.dtype) for v in jax.tree.leaves(x)), key=lambda dtype: dtype.itemsize)
        ys, Ls = zip(*jax.tree.map(lambda v: cast(v, dtype), x), strict=True)
        return [jnp.where(jnp.isneginf(L)[..., None], 0, y) for y, L in zip(ys, Ls, strict=True)], Ls

    def shares(a, b):
        """w' and w'', of L' and L''."""
        apart = jnp.where(jnp.isneginf(jnp.maximum(a, b)), 0, a - b)
        return [jnp.where(jnp.isneginf(L), 0, jax.nn.sigmoid(v)) for L, v in ((a, apart), (b, -apart))]

    def forward(params, x: Parts):
        for name, part in x._asdict().items():
            require_floating(who, f"{name}.log_sum_exp", part.log_sum_exp)
        (y, y2), (L, L2) = wide(x)
        w, w2 = shares(L, L2)
        y = w[..., None] * y + w2[..., None] * y2
        return Attended(cast(y, x.first.y.dtype), jnp.logaddexp(L, L2)), x

    def backward(params, x, dy):
        (y, y2), Ls = wide(x)
        w, w2 = shares(*Ls)
        of_y, dL = (jnp.zeros_like(v) if d is None else cast(d, v.dtype) for d, v in zip(dy, (y, w), strict=True))
        c = w * w2 * jnp.sum(of_y * (y - y2), -1)

        def of_part(part, w, c):
            return Attended(cast(w[..., None] * of_y, part.y.dtype), cast(w * dL + c, part.log_sum_exp.dtype))

        return (), (of_part(x.first, w, c), of_part(x.second, w2, -c))

    return Layer(no_params, forward, backward, who)


@called_as(merge_attention)
def reference(params: tuple[()], x: tuple[Attended, Attended]) -> Attended:
    widest = max((v.dtype for v in jax.tree.leaves(x)), key=lambda dtype: dtype.itemsize)
    (y, L), (y2, L2) = jax.tree.map(lambda v: v.astype(widest), x)
    e, e2 = jnp.exp(L), jnp.exp(L2)
    merged = (y * e[..., None] + y2 * e2[..., None]) / (e + e2)[..., None]
    return Attended(merged.astype(x[0].y.dtype), jnp.log(e + e2))


_PART = specs(Attended, Real("B T N E", -2, 2), Real("B T N", -4, 4, points=(-60.0, 4.0)))

RULE = Rule(
    "merge_attention",
    merge_attention,
    reference,
    cases=(
        Case("two parts", (_PART, _PART), timed={"B": 1, "T": 2048, "N": 8, "E": 64}),
        Case("no batch", tuple(specs(Attended, Real("T N E", -2, 2), Real("T N", -4, 4)) for _ in range(2))),
    ),
    cite="arXiv:2501.01005, section 2.2; arXiv:2310.01889, section 3 (equation numbers not checked)",
    covers=("merge_attn_states", "merge partial attention", "cascade attention"),
)
