"""pixel_shuffle: channels made into space, blocks of r by r pixels of them, or space into channels.

Forward, for images x of shape (N, H, W, C r^2), with i and j from 0 to r - 1, the channel c written first:

    y_{n, h r + i, w r + j, c} = x_{n, h, w, c r^2 + i r + j}             y: (N, H r, W r, C)

the order of PyTorch's `pixel_shuffle`, for channels that come last. With `inverse` x and y change places, which is
its `pixel_unshuffle`.

Differential: every element of y is one of x, each once: delta y = P delta x with a permutation matrix P, whose
transpose is its inverse. So the adjoint is the layer itself, the other way round:

    dx_{n, h, w, c r^2 + i r + j} = dy_{n, h r + i, w r + j, c}           dx: as x

Cached: nothing. The shape of dy tells that of x.

Numerical care: none is needed, numbers are only moved.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.formulas.caches import NoCache
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


def pixel_shuffle(factor: int, inverse: bool = False) -> Layer[tuple[()], Array, Reals, NoCache]:
    """Images r times as high and wide, of r^2 times fewer channels; with `inverse` the other way round.

    Args:
      factor: r.
      inverse: whether space is made into channels.

    Returns:
      A layer with params `()`, x `(N, H, W, C r^2)` and y `(N, H r, W r, C)` in x's dtype; with `inverse`, x is what y
      was and y what x was.

    Raises:
      ValueError: factor is not a positive integer; x is not of images with pixels; r^2 does not divide its channels,
        or with `inverse` r its height and width.
      TypeError: x is not floating-point.
    """
    who = "pixel_shuffle"
    require_flags(who, inverse=inverse)
    factor = require_size(who, "factor", factor)
    r = factor

    def forward(params, x: Float[Array, "N H>0 W>0 C"]):
        _, H, W, C = x.shape
        if inverse and (H % r or W % r):
            raise ValueError(f"{who}: x has shape {x.shape}, expected H and W divisible by factor {r}")
        if not inverse and C % r**2:
            raise ValueError(f"{who}: x has {C} channels in its last axis, expected a multiple of factor^2 = {r**2}")
        return (to_channels if inverse else to_space)(x), NoCache()

    def backward(params, cache, dy):
        return (), (to_space if inverse else to_channels)(dy)

    def to_space(v):
        N, H, W, C = v.shape
        blocks = v.reshape(N, H, W, C // r**2, r, r)
        return jnp.transpose(blocks, (0, 1, 4, 2, 5, 3)).reshape(N, H * r, W * r, C // r**2)

    def to_channels(v):
        N, H, W, C = v.shape
        blocks = v.reshape(N, H // r, r, W // r, r, C)
        return jnp.transpose(blocks, (0, 1, 3, 5, 2, 4)).reshape(N, H // r, W // r, C * r**2)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: Array, factor: int, inverse: bool = False) -> Array:
    r = factor
    if inverse:
        parts = [x[:, i::r, j::r] for i in range(r) for j in range(r)]
        return jnp.stack(parts, -1).reshape(*parts[0].shape[:3], x.shape[3] * r**2)
    rows = [jnp.stack([x[..., i * r + j :: r * r] for j in range(r)], 3) for i in range(r)]
    N, H, W, _, C = rows[0].shape
    return jnp.stack(rows, 2).reshape(N, H * r, W * r, C)


RULE = Rule(
    "pixel_shuffle",
    pixel_shuffle,
    reference,
    cases=(
        Case(
            "to space",
            Real("N H W C"),
            {"factor": 2},
            never_empty=("H", "W"),
            fixed={"C": 12},
            timed={"N": 8, "H": 64, "W": 64, "C": 64},
        ),
        Case("to channels", Real("N H W C"), {"factor": 3, "inverse": True}, fixed={"H": 6, "W": 9}),
    ),
    cite="Shi et al., 'Real-time single image and video super-resolution', arXiv:1609.05158, equation 4",
    covers=("pixel_unshuffle", "depth_to_space", "space_to_depth", "sub-pixel convolution"),
)
