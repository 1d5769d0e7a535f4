"""resnet: a convolutional network of residual blocks with batch norm, from images to logits.

With f[l] of two or three convolutions, each followed by a batch norm, and relu between them, and s the identity, or
where the sizes change a convolution of one pixel and a batch norm:

    x[0] = stem(image)                     a convolution, batch norm, relu (and a maximum over 3 x 3)
    x[l] = relu(s[l](x[l-1]) + f[l](x[l-1]))       l = 1 ... L, in stages: the first of each but the first halves
                                                   height and width and doubles the channels
    z    = W mean(x[L]) + b                the mean over all pixels

The blocks of a stage but its first are one `scan`. A bottleneck has three convolutions, of 1, 3 and 1 pixels, the last
with four times the channels; the second one strides, as all implementations since have it.

Source: He et al., 'Deep residual learning for image recognition', arXiv:1512.03385, tables 1 and 6.
"""

from collections.abc import Sequence

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.compose import fan_out, residual, scan, serial
from bpref.layer import Layer
from bpref.nearest import meant
from bpref.rules.activation.relu import relu
from bpref.rules.convolution.convolution import convolution
from bpref.rules.linear.linear import linear
from bpref.rules.norm.batch_norm import batch_norm
from bpref.rules.pooling.global_pool import global_pool
from bpref.rules.pooling.max_pool import max_pool
from bpref.rules.reduction.fan_in import fan_in
from bpref.transforms.stateful import stateful

RESNETS: dict[str, tuple[tuple[int, ...], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
"""By name: how many blocks each stage has, and whether they are bottlenecks."""


def resnet(
    blocks: str | Sequence[int],
    classes: int,
    width: int = 64,
    bottleneck: bool = False,
    small: bool = False,
) -> Layer:
    """The network: images `(N, H, W, C)` to logits `(N, classes)`.

    Args:
      blocks: one of `RESNETS`, which says too whether it has bottlenecks; or how many blocks each stage has.
      classes: the number of logits.
      width: the channels of the first stage; each further one has twice as many.
      bottleneck: whether a block is a bottleneck.
      small: whether the images are of few pixels: the stem keeps their size.

    Returns:
      A stateful layer: params hold no running statistics, which are its state (`bpref.begin`), and x is
      `With(images, state)`. `bpref.evaluation` of it reads them.

    Raises:
      ValueError: there is no such name; a number is not a positive integer.

    Example:
      >>> network = bpref.resnet("resnet18", classes=1000)
      >>> images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
      >>> params, state = jax.eval_shape(lambda key: bpref.begin(network, key, images), jax.random.key(0))
      >>> sum(v.size for v in jax.tree.leaves(params))
      11689512
    """
    who = "resnet"
    if isinstance(blocks, str):
        blocks, bottleneck = RESNETS[meant("resnet", blocks, RESNETS)]
    require_flags(who, bottleneck=bottleneck, small=small)
    width, classes = require_size(who, "width", width), require_size(who, "classes", classes)
    counts = [require_size(who, f"blocks[{i}]", n) for i, n in enumerate(blocks)]
    if not counts:
        raise ValueError(f"{who}: blocks is empty, expected how many blocks each stage has")
    stages = {f"stage{i + 1}": _stage(n, width << i, bottleneck, i > 0) for i, n in enumerate(counts)}
    stem = _stem(width, small)
    return stateful(serial(stem=stem, **stages, pool=global_pool(), head=linear(classes)))


def _stem(width: int, small: bool) -> Layer:
    if small:
        return serial(*_normed(width, 3, 1), relu())
    return serial(*_normed(width, 7, 2), relu(), max_pool((3, 3), 2, ((1, 1), (1, 1))))


def _stage(blocks: int, features: int, bottleneck: bool, halves: bool) -> Layer:
    """Blocks of so many channels (out of a bottleneck come four times as many), the first of which may halve sizes."""
    outputs = 4 * features if bottleneck else features
    first = _convolutions(features, bottleneck, 2 if halves else 1)
    if halves or bottleneck:
        shortcut = serial(*_normed(outputs, 1, 2 if halves else 1))
        layers: dict[str, Layer] = {"first": serial(fan_out(shortcut, first), fan_in(), relu())}
    else:
        layers = {"first": serial(residual(first), relu())}
    if blocks > 1:
        layers["others"] = scan(serial(residual(_convolutions(features, bottleneck, 1)), relu()), blocks - 1)
    return serial(**layers)


def _convolutions(features: int, bottleneck: bool, stride: int) -> Layer:
    """f: what a block adds."""
    if bottleneck:
        wide = _normed(4 * features, 1, 1)
        return serial(*_normed(features, 1, 1), relu(), *_normed(features, 3, stride), relu(), *wide)
    return serial(*_normed(features, 3, stride), relu(), *_normed(features, 3, 1))


def _normed(features: int, window: int, stride: int) -> tuple[Layer, Layer]:
    """A convolution around every `stride`-th pixel, without a bias, which the norm would take away."""
    ends = ((window // 2, window // 2),) * 2
    return convolution(features, (window, window), stride, padding=ends, bias=False), batch_norm()
