"""axial_rotary_embedding: a rotation by positions along several axes: M-RoPE (time, height, width), RoPE in 2-D.

Forward, with A axes, p_ta the position of token t along axis a, the pairs i of the first features shared out among the
axes in sections, one after the other, a(i) the axis of pair i, and the angle theta_ti = p_{t a(i)} w_i:

    y_1 = x_1 cos theta - x_2 sin theta        x, y: (*b, T, N, D)
    y_2 = x_2 cos theta + x_1 sin theta

A pair is features i and i + R / 2 of the R that are rotated (halves), or 2 i and 2 i + 1 (interleaved). The frequencies
either run through all pairs, or through those of each section anew, m of them, j the number of i in its section; B is
`base`:

    w_i = B^(-2 i / R)                         M-RoPE: a token with one position along all axes has plain RoPE
    w_i = B^(-j / m)                           2-D RoPE of images: rows and columns alike

q . k of two such heads depends on the differences of their positions alone.

Differential: linear in x, delta y = R(theta) delta x; positions are integers and have none. The adjoint turns back:

    dx_1 = dy_1 cos theta + dy_2 sin theta     dx_2 = dy_2 cos theta - dy_1 sin theta          dx: (*b, T, N, D)

Cached: the positions, A integers a token. No cosine: there are as many as a head has features.

Numerical care: angles are made and turned by in at least float32, where a position of 1e5 has an angle that is off by
some 1e-3, as in `rotary_embedding` at positions that are given.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_flags, require_sizes
from bpref.dtypes import widen
from bpref.formulas.attention.rotations import require_rotation, rotate_by_axis
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as


class AtPlaces(NamedTuple):
    x: Float[Array, "*b T N D>0"]
    positions: Int[Array, "*b T A"]


def axial_rotary_embedding(
    sections: tuple[int, ...], own_frequencies: bool = False, interleaved: bool = False, base: float = 10000.0
) -> Layer[tuple[()], tuple[Array, Array], Reals, Array]:
    """Queries or keys whose dot products know how far they are apart along each of several axes.

    Args:
      sections: how many pairs of a head's features each axis turns (Qwen2-VL: 16, 24, 24 of a head of 128).
      own_frequencies: whether the frequencies begin anew in each section, as in RoPE of images, or run through all.
      interleaved: whether a pair is two neighbours, or one of each half of what is rotated.
      base: the slowest pair turns once in nearly 2 pi base positions.

    Returns:
      A layer with params `()`, x `(x, positions)` of `(*b, T, N, D)` and integers `(*b, T, A)`, A the number of
      sections, and y `(*b, T, N, D)`. Features beyond the sections stay as they are.

    Example:
      The rows and columns of an image of 2 x 3 patches, and a head of 8 features:

      >>> places = jnp.stack(jnp.meshgrid(jnp.arange(2), jnp.arange(3), indexing="ij"), -1).reshape(6, 2)
      >>> rope = bpref.axial_rotary_embedding((2, 2), own_frequencies=True, base=100.0)
      >>> rope.forward((), (jnp.ones((6, 1, 8)), places))[0].shape
      (6, 1, 8)

    Raises:
      ValueError: a section is no positive integer; they are more than half of the features; an axis has no section.
      TypeError: x is no pair; its first is not floating-point, or positions are no integers; sections are no tuple.
    """
    who = "axial_rotary_embedding"
    require_flags(who, own_frequencies=own_frequencies, interleaved=interleaved)
    if not isinstance(sections, tuple) or not sections:
        raise TypeError(f"{who}: sections is {sections!r}, expected a tuple of a number of pairs for each axis")
    sections = require_sizes(who, **{f"sections[{a}]": n for a, n in enumerate(sections)})
    base, _ = require_rotation(who, base, None)
    pairs = sum(sections)
    own = [np.arange(n) / n for n in sections]
    share = own if own_frequencies else np.split(np.arange(pairs) / pairs, np.cumsum(sections)[:-1])
    frequencies = [base**-v for v in share]

    def require_room(x, positions):
        if 2 * pairs > x.shape[-1]:
            raise ValueError(f"{who}: x has {x.shape[-1]} features, expected at least {2 * pairs}, 2 for each pair")
        if positions.shape[-1] != len(sections):
            wanted = f"(*b, T, A) with A = {len(sections)}, one for each section"
            raise ValueError(f"{who}: positions has shape {positions.shape}, expected {wanted}")

    def forward(params, x: AtPlaces):
        require_room(*x)
        return rotate_by_axis(x[0], frequencies, 1, interleaved, x[1]), x[1]

    def backward(params, positions, dy):
        return (), (rotate_by_axis(dy, frequencies, -1, interleaved, positions), None)

    return Layer(no_params, forward, backward, who)


@called_as(axial_rotary_embedding)
def reference(params: tuple[()], x: tuple[Array, Array], sections, own_frequencies, interleaved, base) -> Array:
    """Pair after pair."""
    u, positions = x
    features, pairs, number = [widen(u[..., i]) for i in range(u.shape[-1])], sum(sections), 0
    for axis, section in enumerate(sections):
        for j in range(section):
            w = base ** (-j / section if own_frequencies else -number / pairs)
            angle = (positions[..., axis].astype(features[0].dtype) * w)[..., None]
            c, s = (jnp.broadcast_to(f(angle), u.shape[:-1]) for f in (jnp.cos, jnp.sin))
            first, second = (2 * number, 2 * number + 1) if interleaved else (number, number + pairs)
            a, b = features[first], features[second]
            features[first], features[second] = a * c - b * s, b * c + a * s
            number += 1
    return jnp.stack(features, -1).astype(u.dtype)


RULE = Rule(
    "axial_rotary_embedding",
    axial_rotary_embedding,
    reference,
    cases=(
        Case(
            "three axes",
            (Real("B T N D"), Integer("B T A", 0, 100)),
            {"sections": (4, 6, 6), "base": Interval(10.0, 1e4, 100.0)},
            fixed={"D": 32, "A": 3},
            timed={"B": 4, "T": 512, "N": 8, "D": 32, "A": 3},
        ),
        Case(
            "an image, interleaved, partial",
            (Real("T N D"), Integer("T A", 0, 100)),
            {"sections": (2, 2), "own_frequencies": True, "interleaved": True, "base": 100.0},
            fixed={"D": 10, "A": 2},
        ),
    ),
    cite="M-RoPE: arXiv:2409.12191, section 2.1; images: arXiv:2403.13298, section 3.1 (axial frequencies; section not "
    "checked); the rotation: arXiv:2104.09864, equation 34",
    covers=("M-RoPE", "mrope", "2-D RoPE", "axial RoPE"),
)
