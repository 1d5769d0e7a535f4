"""What the attention layers without logits are given: queries, keys and values that fit, and gates of their state.

Their state is a sum over the keys, for each head of keys one. There are no logits that a mask or a bias would change.
"""

from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Float

from bpref.dtypes import as_array, came, require_floating
from bpref.formulas.heads import Heads
from bpref.formulas.tuples import require_dtype_of, require_shape


class GatedHeads(NamedTuple):
    """The input of attention whose state decays: `Heads`, and the logarithm of what remains of the state.

    Attributes:
      heads: q, k and v.
      log_gate: at every step, of each head of keys, the logarithm of the factor that its state is multiplied with
        before the step's key and value are added: 0 keeps all, -inf forgets all.
    """

    heads: Heads
    log_gate: Float[Array, "..."]


class DeltaHeads(NamedTuple):
    """The input of attention that writes what its state lacks: `Heads`, how much of it, and what remains.

    Attributes:
      heads: q, k and v.
      beta: at every step, of each head of keys, the share of the error that is written, from 0 to 1.
      log_gate: as in `GatedHeads`; nothing is forgotten where it is left out.
    """

    heads: Heads
    beta: Float[Array, "*b T K"]
    log_gate: Float[Array, "*b T K"] | None = None


def as_plain_heads(who: str, x: Any, causal: bool = True) -> Heads:
    """`x` with arrays q, k and v; `causal` asks for as many keys as queries.

    Raises:
      TypeError: x is no `Heads`; q is not floating-point; k or v has another dtype.
      ValueError: shapes do not fit; a field is given that is not used.
    """
    if not isinstance(x, Heads):
        raise TypeError(f"{who}: x is {came(x)}, expected Heads(q, k, v)")
    for name, value in x._asdict().items():
        if name not in "qkv" and value is not None:
            raise ValueError(f"{who}: {name} is given, expected None: there are no logits that it could change")
    q, k, v = (as_array(who, name, a) for name, a in zip("qkv", x[:3], strict=True))
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


def as_gated_heads(who: str, x: Any, per_feature: bool = False) -> GatedHeads:
    """`x` with one gate for each head of keys, or for each feature of one; raises as `as_plain_heads` does."""
    if not isinstance(x, GatedHeads):
        raise TypeError(f"{who}: x is {came(x)}, expected GatedHeads(heads, log_gate)")
    heads = as_plain_heads(who, x.heads)
    return GatedHeads(heads, _of_each_key(who, "log_gate", x.log_gate, heads, per_feature))


def as_delta_heads(who: str, x: Any) -> DeltaHeads:
    """`x` with a beta, and maybe a gate, for each head of keys; raises as `as_plain_heads` does."""
    if not isinstance(x, DeltaHeads):
        raise TypeError(f"{who}: x is {came(x)}, expected DeltaHeads(heads, beta, log_gate)")
    heads = as_plain_heads(who, x.heads)
    log_gate = None if x.log_gate is None else _of_each_key(who, "log_gate", x.log_gate, heads)
    return DeltaHeads(heads, _of_each_key(who, "beta", x.beta, heads), log_gate)


def _of_each_key(who: str, name: str, v: Any, heads: Heads, per_feature: bool = False) -> Array:
    v = as_array(who, name, v)
    require_dtype_of(who, name, v, "q", heads.q)
    expected = heads.k.shape if per_feature else heads.k.shape[:-1]
    require_shape(who, name, v, expected, f"one for each {'feature' if per_feature else 'head'} of k: {heads.k.shape}")
    return v
