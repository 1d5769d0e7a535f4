"""What the attention layers without logits are given: queries, keys and values that fit, and gates of their state.

Their state is a sum over the keys, for each head of keys one. There are no logits that a mask or a bias would change.
"""

from typing import NamedTuple

from jax import Array
from jaxtyping import Float, Int

from bpref.checks.shapes import require_shape
from bpref.formulas.attention.heads import Heads, require_groups


class GatedHeads(NamedTuple):
    """The input of attention whose state decays: `Heads`, and the logarithm of what remains of the state.

    Attributes:
      heads: q, k and v.
      log_gate: at every step, of each head of keys, the logarithm of the factor that its state is multiplied with
        before the step's key and value are added: 0 keeps all, -inf forgets all.
      state: what the state is before the first step; zeros where it is left out. Its cotangent is given back.
    """

    heads: Heads
    log_gate: Float[Array, "*b T K"] | Float[Array, "*b T K D"]
    state: Float[Array, "*b K D E"] | None = None

    by_name = True


class DeltaHeads(NamedTuple):
    """The input of attention that writes what its state lacks: `Heads`, how much of it, and what remains.

    Attributes:
      heads: q, k and v.
      beta: at every step, of each head of keys, the share of the error that is written, from 0 to 1.
      log_gate: as in `GatedHeads`; nothing is forgotten where it is left out.
      state: as in `GatedHeads`.
    """

    heads: Heads
    beta: Float[Array, "*b T K"]
    log_gate: Float[Array, "*b T K"] | Float[Array, "*b T K D"] | None = None
    state: Float[Array, "*b K D E"] | None = None

    by_name = True


class ProductHeads(NamedTuple):
    """The input of attention that writes n times at each step what its state lacks, and is read once.

    Attributes:
      q: queries, as in `Heads`, N heads of them for K of keys.
      k, v: n keys and values at every step, in the order in which they are written.
      beta: of each of them, the share of the error that is written, from 0 to 1; at 2 a key of length 1 reflects.
      log_gate: as in `GatedHeads`, once a step, before the first is written; nothing is forgotten where it is left out.
      state: as in `GatedHeads`.
      q_segments: ids of packed sequences, as in `Heads`.
    """

    q: Float[Array, "*b T N>0 D"]
    k: Float[Array, "*b T n>0 K>0 D"]
    v: Float[Array, "*b T n K E"]
    beta: Float[Array, "*b T n K"]
    log_gate: Float[Array, "*b T K"] | None = None
    state: Float[Array, "*b K D E"] | None = None
    q_segments: Int[Array, "*b T"] | None = None

    by_name = True


class SelfReadingHeads(NamedTuple):
    """The input of attention whose state reads itself: `Heads`, what remains, and by what is read and written back.

    Attributes:
      heads: q, k and v.
      log_gate: as in `GatedHeads`, for each feature.
      a: what the state before the step is read by.
      b: what is read is written back by.
      state: as in `GatedHeads`.
    """

    heads: Heads
    log_gate: Float[Array, "*b T K D"]
    a: Float[Array, "*b T K D"]
    b: Float[Array, "*b T K D"]
    state: Float[Array, "*b K D E"] | None = None

    by_name = True


class ForgettingHeads(NamedTuple):
    """The input of softmax attention that forgets: `Heads`, and the logarithm of what remains.

    Attributes:
      heads: q, k and v, a mask, and ids of segments.
      log_gate: at every step, of each head of queries, the logarithm of what is left there of the weights of all
        earlier keys: 0 leaves all, -inf nothing.
    """

    heads: Heads
    log_gate: Float[Array, "*b T N"]

    by_name = True


class PathHeads(NamedTuple):
    """The input of softmax attention whose positions are reflections that the data choose: `Heads`, and these.

    Attributes:
      heads: q, k and v, a mask, and ids of segments.
      w: at every step, of each head of keys, the direction that is reflected.
      beta: how much of it is taken away, 0 for nothing; from 0 to 2 for a w of length 1, where nothing grows.
    """

    heads: Heads
    w: Float[Array, "*b T K D"]
    beta: Float[Array, "*b T K"]

    by_name = True


class HeadsAndState(NamedTuple):
    """The input of attention whose state only grows, where it does not begin with zeros.

    Attributes:
      heads: q, k and v.
      state: what the state is before the first step; its cotangent is given back.
    """

    heads: Heads
    state: Float[Array, "*b K D F"]

    by_name = True


def require_plain(who: str, x: Heads, causal: bool = True) -> None:
    """Raise `ValueError` unless heads can be shared out, with nothing but q, k and v, and the ids of segments if it is
    `causal`, which asks for T keys."""
    for name, value in x._asdict().items():
        if name not in (*"qkv", "q_segments") and value is not None:
            why = (
                "keys are at the steps of queries"
                if name == "kv_segments"
                else "there are no logits that it could change"
            )
            raise ValueError(f"{who}: {name} is given, expected None: {why}")
    if x.q_segments is not None and not causal:
        raise ValueError(f"{who}: q_segments is given, expected None: it is not causal, so that no step begins anew")
    require_groups(who, x)
    T, S = x.q.shape[-3], x.k.shape[-3]
    if causal and S != T:
        raise ValueError(f"{who}: k has {S} steps, q has {T}; expected as many (k: {x.k.shape})")


def require_gated(who: str, x: GatedHeads, per_feature: bool = False) -> None:
    """Raise `ValueError` unless there is a gate for each head of keys, or for each feature of one."""
    require_plain(who, x.heads)
    shape = x.heads.k.shape
    require_shape(who, "log_gate", x.log_gate, shape if per_feature else shape[:-1], f"by k {shape}")


def require_delta(who: str, x: DeltaHeads, per_feature: bool = False) -> None:
    """Raise `ValueError` unless there are gates for each feature of a head of keys, or for each head, or none."""
    require_plain(who, x.heads)
    shape = x.heads.k.shape
    if x.log_gate is None and per_feature:
        raise ValueError(f"{who}: log_gate is None, expected {shape}, by k {shape}; delta_rule has no gates")
    if x.log_gate is not None:
        require_shape(who, "log_gate", x.log_gate, shape if per_feature else shape[:-1], f"by k {shape}")
