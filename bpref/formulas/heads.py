"""What attention is given: queries, keys and values by heads, and what decides which of them meet."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float, Int


class Heads(NamedTuple):
    """The input x of every attention layer; what is `None` is not used.

    N heads of queries share K heads of keys and values, N a multiple of K: head n meets head n // (N / K). Axes before
    T, written *b, are batch axes, the same in all arrays.

    Attributes:
      q: queries.
      k, v: keys and values; their features D and E may differ.
      mask: which query may see which key, with axes of size 1 where it is the same for all.
      bias: added to the logits; its cotangent is given back, summed over the axes where it has size 1.
      q_segments, kv_segments: ids of packed sequences: a query sees keys of its own id only. `kv_segments` is
        `q_segments` where it is left out.
      key: a PRNG key, for dropout.
    """

    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b S K D"]
    v: Float[Array, "*b S K E"]
    mask: Bool[Array, "*#b #N #T #S"] | None = None
    bias: Float[Array, "*#b #N #T #S"] | None = None
    q_segments: Int[Array, "*b T"] | None = None
    kv_segments: Int[Array, "*b S"] | None = None
    key: Array | None = None
