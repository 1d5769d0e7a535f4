"""rotary_embedding: pairs of features turned by an angle that is their position times the pair's frequency.

Forward, at position t, for pair i of the first `rotated` features of each head, with the angle a = t w_i and the
magnitude c (1 but for YaRN):

    y_1 = c (x_1 cos a - x_2 sin a)        x, y: (*b, T, N, D)
    y_2 = c (x_2 cos a + x_1 sin a)

A pair is features i and i + rotated / 2 (halves), or 2 i and 2 i + 1 (interleaved). What is not rotated stays as it is,
and with it whole heads, where only the first `heads` of them are rotated: the others know no positions (NoPE).
q_t . k_s of two such heads depends on x and on t - s alone.

Differential: linear in x, delta y = c R(a) delta x; positions are integers and have none. The adjoint of a rotation is
the rotation back:

    dx_1 = c (dy_1 cos a + dy_2 sin a)     dx_2 = c (dy_2 cos a - dy_1 sin a)        dx: (*b, T, N, D)

Cached: the positions, where they are given; otherwise nothing.

Numerical care: without positions the angles 0, w_i, 2 w_i, ... are computed in float64 when it is traced: in float32 an
angle of 1e5 has lost its third decimal. Positions that are given are multiplied in at least float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_flags, require_share, require_size
from bpref.formulas.attention.rotations import (
    After,
    Stretch,
    frequencies,
    magnitude,
    require_rotation,
    require_turned,
    rotate,
)
from bpref.formulas.decoder import decoder
from bpref.layer import Layer, Reals, no_params
from bpref.naive import rotation
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as


class Positioned(NamedTuple):
    x: Float[Array, "*b T N D"]
    positions: Int[Array, "*b T"] | None


def rotary_embedding(
    interleaved: bool = False,
    fraction: float = 1.0,
    base: float = 10000.0,
    stretch: Stretch | None = None,
    heads: int | None = None,
) -> Layer[tuple[()], Array | tuple[Array, Array], Reals, Array | None]:
    """Queries or keys whose dot products know how far they are apart.

    Args:
      interleaved: whether a pair is two neighbours (as in RoFormer), or one of each half (as in GPT-NeoX and Llama).
      fraction: the share of the features that is rotated, the first ones.
      base: the slowest pair turns once in nearly 2 pi base positions.
      stretch: `Stretch(way, factor, ...)`, for positions beyond those trained for.
      heads: how many heads are rotated, the first ones; all if it is not given.

    Returns:
      A layer with params `()`, x `(*b, T, N, D)`, or a pair of it and integer positions `(*b, T)`, 0, 1, ... if they
      are not given; and y of x's shape.

    Raises:
      ValueError: an argument is out of its range; the rotated features are not an even number of at least 2
        and at most D; x has fewer heads than are rotated; positions of another shape.
      TypeError: stretch is none; x is not floating-point, or positions are no integers.
    """
    who = "rotary_embedding"
    require_flags(who, interleaved=interleaved)
    fraction = require_share(who, "fraction", fraction)
    base, stretch = require_rotation(who, base, stretch)
    heads = None if heads is None else require_size(who, "heads", heads)

    def turn(u, positions, way, after=None):
        frequency = frequencies(require_turned(who, u.shape[-1], fraction), base, stretch)
        if heads is not None and heads > u.shape[-2]:
            raise ValueError(f"{who}: x has {u.shape[-2]} heads, expected at least {heads}, which are rotated")
        y = rotate(u[..., :heads, :], frequency, way, magnitude(stretch), interleaved, positions, after)
        return y if y.shape == u.shape else jnp.concatenate([y, u[..., heads:, :]], -2)

    def forward(params, x: Float[Array, "*b T N D"] | Positioned):
        u, positions = x if isinstance(x, tuple) else (x, None)
        return turn(u, positions, 1), positions

    def backward(params, positions, dy):
        du = turn(dy, positions, -1)
        return (), du if positions is None else (du, None)

    def decoding(leaf, length):
        def step(params, x, n):
            u, positions = x if isinstance(x, tuple) else (x, None)
            return turn(u, positions, 1, After(n, length)), n + u.shape[-3]

        return decoder(leaf, lambda params, x: jnp.zeros((), jnp.int32), step)

    return Layer(no_params, forward, backward, who, decoding=decoding)


@called_as(rotary_embedding)
def reference(params: tuple[()], x: Array | Positioned, interleaved, fraction, base, stretch, heads) -> Array:
    u, positions = x if isinstance(x, tuple) else (x, None)
    y = rotation.turned_at(u, positions, interleaved, fraction, base, stretch)
    return y if heads is None else jnp.where(jnp.arange(u.shape[-2]).reshape(*[1] * (u.ndim - 2), -1, 1) < heads, y, u)


_EVEN = {"D": 8}

RULE = Rule(
    "rotary_embedding",
    rotary_embedding,
    reference,
    cases=(
        Case("halves", Real("B T N D"), fixed=_EVEN, timed={"B": 4, "T": 512, "N": 8, "D": 64}),
        Case(
            "interleaved, partial, at positions",
            (Real("B T N D"), Integer("B T", 0, 100)),
            {"interleaved": True, "fraction": 0.5, "base": Interval(10.0, 1e4, 100.0)},
            fixed=_EVEN,
        ),
        Case(
            "stretched, two of three heads",
            Real("B T N D"),
            {"stretch": Stretch("yarn", 4.0, 16), "heads": 2},
            fixed=_EVEN | {"N": 3},
        ),
    ),
    cite="arXiv:2104.09864, equation 34",
    covers=("RoPE", "rope", "rotary position embedding", "nope"),
)
