"""decoding: the positions of a sequence one chunk after another, what is remembered of earlier ones in the state.

Of the whole network y_t is a function of x_1 ... x_t. Each leaf that looks back says itself what it must remember:
attention the keys and values of earlier positions, a recurrence its last state, a convolution its last inputs. All
others take each position for itself, and stay as they are. Then, for any cut of x into chunks,

    (y_1 ... y_n, s_n) = f(x_1 ... x_n, s_0)        (y_n+1 ... y_m, s_m) = f(x_n+1 ... x_m, s_n)        ...

are together the y of all of x. A state has one shape for all n, so that one compiled program makes every position.
"""

from bpref.checks.hyperparameters import require_size
from bpref.layer import Layer, leaf_paths, map_leaves, require_layer


def decoding(layer: Layer, length: int) -> Layer:
    """The layer given positions one chunk after another, `(B, t, ...)` of any t, with the same params.

    It is stateful: `begin` gives the state before the first position, the forward takes `With(x, state)` and gives the
    pair `(y, the next state)`. Nothing is dropped, as in `evaluation`. It has no backward. Attention beyond `length`
    positions gives NaN.

    Example:
      >>> network = bpref.serial(bpref.embedding(16, 8), bpref.transformer_block(2, 16), bpref.linear(16))
      >>> decoder = bpref.decoding(network, 32)
      >>> prompt = jnp.array([[1, 2, 3]])
      >>> params, state = bpref.begin(decoder, jax.random.key(0), prompt)
      >>> (logits, state), _ = decoder.forward(params, bpref.With(prompt, state))
      >>> (logits, state), _ = decoder.forward(params, bpref.With(jnp.array([[4]]), state))
      >>> logits.shape
      (1, 1, 16)

    Args:
      layer: any layer or composition whose positions do not look ahead.
      length: how many positions there will be at most.

    Raises:
      TypeError: `layer` is no Layer; a leaf mixes positions and does not say how to do so chunk after chunk.
      ValueError: `length` is not a positive integer; a leaf looks ahead, as attention that is not causal.
    """
    require_layer("decoding", "layer", layer)
    length = require_size("decoding", "length", length)
    paths = iter(leaf_paths(layer))

    def decoder(leaf):
        path, leaf = next(paths), leaf.evaluating or leaf
        if leaf.decoding is None:
            couples = f", and {leaf.couples} of all of them counts" if leaf.couples else ""
            raise TypeError(
                f"decoding: {path} says nothing of positions that come one chunk after another{couples}; expected "
                "leaves with Layer.decoding, which is bpref.each_position of one that takes each for itself"
            )
        return leaf.decoding(leaf, length)

    return map_leaves(decoder, layer)
