"""What the attention layers without logits ask of `Heads`: queries, keys and values that fit, and nothing else.

Their state is a sum over the keys, for each head of keys one. There are no logits that a mask or a bias would change.
"""

from typing import Any

import jax.numpy as jnp

from bpref.dtypes import require_floating
from bpref.formulas.heads import Heads
from bpref.formulas.tuples import require_dtype_of


def as_plain_heads(who: str, x: Any, causal: bool = True) -> Heads:
    """`x` with arrays q, k and v; `causal` asks for as many keys as queries.

    Raises:
      TypeError: x is no `Heads`; q is not floating-point; k or v has another dtype.
      ValueError: shapes do not fit; a field is given that is not used.
    """
    if not isinstance(x, Heads):
        raise TypeError(f"{who}: x is of type {type(x).__name__}, expected Heads(q, k, v)")
    for name, value in x._asdict().items():
        if name not in "qkv" and value is not None:
            raise ValueError(f"{who}: {name} is given, expected None: there are no logits that it could change")
    q, k, v = (jnp.asarray(a) for a in x[:3])
    require_floating(who, "q", q)
    require_dtype_of(who, "k", k, "q", q)
    require_dtype_of(who, "v", v, "q", q)
    if q.ndim < 3:
        raise ValueError(f"{who}: q has shape {q.shape}, expected (*b, T, N, D)")
    *b, T, N, D = q.shape
    if k.ndim != q.ndim or k.shape[:-3] != tuple(b) or k.shape[-1] != D or (causal and k.shape[-3] != T):
        expected = f"({', '.join(map(str, [*b, T if causal else 'S', 'K', D]))})"
        raise ValueError(f"{who}: k has shape {k.shape}, expected {expected} to fit q: {q.shape}")
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"{who}: v has shape {v.shape}, expected (*b, S, K, E) with all but E from k: {k.shape}")
    K = k.shape[-2]
    if K == 0 or N == 0 or N % K:
        raise ValueError(f"{who}: q has {N} heads, k has {K}; expected a multiple of k's, and at least one of each")
    return Heads(q, k, v)
