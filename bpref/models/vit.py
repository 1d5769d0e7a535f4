"""vit: an image as a sequence of patches, each position seeing all others.

With P x P pixels in each of T patches p_t, d features and L blocks:

    x[0]_t = E p_t + b + W_t                                              (N, T, d)
    x[l]   = block(x[l-1])                 l = 1 ... L, see `transformer_block`: layer norm, gelu, 4 d hidden features
    z      = head(mean over t of norm(x[L]))                              (N, classes)

E p_t + b is a convolution whose windows do not overlap, W the learned positions. In place of the token that the first
paper reads the class from there is the mean over the patches, as in its authors' later models.

Source: Dosovitskiy et al., arXiv:2010.11929; the mean: Zhai et al., arXiv:2106.04560.
"""

from bpref.compose import scan, serial
from bpref.layer import Layer
from bpref.rules.block.transformer_block import transformer_block
from bpref.rules.convolution.convolution import convolution
from bpref.rules.geometry.flatten import flatten
from bpref.rules.linear.linear import linear
from bpref.rules.linear.position_embedding import position_embedding
from bpref.rules.norm.layer_norm import layer_norm
from bpref.rules.pooling.global_pool import global_pool


def vit(patches: int, patch: int, classes: int, width: int, depth: int, heads: int) -> Layer:
    """The network: images `(N, H, W, C)` to logits `(N, classes)`.

    Args:
      patches: the number T of patches, H W / P^2.
      patch: P, which divides H and W.
      classes: the number of logits.
      width, depth, heads: d, L, and the heads of attention, which divide d.

    Raises:
      ValueError: a number is not a positive integer; heads do not divide the width; there are more patches.

    Example:
      >>> network = bpref.vit(196, 16, 1000, width=768, depth=12, heads=12)  # ViT-B/16 of images of 224 x 224
      >>> params = network.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    """
    block = transformer_block(heads, 4 * width, None, "gelu", False, "layer", rope=None, causal=False, bias=True)
    return serial(
        patches=serial(convolution(width, (patch, patch), patch, padding="valid"), flatten(1, 2)),
        positions=position_embedding(patches),
        blocks=scan(block, depth),
        norm=layer_norm(1e-6),
        pool=global_pool(),
        head=linear(classes),
    )
