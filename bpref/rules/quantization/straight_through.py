"""straight_through: rounding, forwards; as if it had not been there, backwards.

Forward, element by element, Q the rounding to whole numbers, or to n evenly spaced levels from -L to L:

    y_i = Q(x_i)                                                          x, y: one shape

    whole numbers    the nearest one, a half to the even neighbour
    n levels         -L + h floor((x + L) / h + 1/2) within -L to L, h = 2 L / (n - 1); a half goes up

Two levels are the sign: L where x >= 0, -L where x < 0.

Differential: delta y = 0 almost everywhere, and no derivative in the steps: the adjoint is 0 and trains nothing. By
decision, the straight-through estimator, the backward is that of a surrogate s(x) in the place of Q(x):

    s(x) = x                        dx_i = dy_i
    s(x) = min(max(x, -L), L)       dx_i = dy_i [|x_i| <= L]              `clipped`; x, y, dy, dx: one shape

The second passes nothing on where x is beyond the outermost level and a step would no longer change y. At its kinks
|x| = L the subgradient is 1.

Cached: nothing, or if clipped whether x is inside, one byte an element.

Numerical care: half precision is rounded in float32, so that every dtype takes the same step, and a level rounds once.
Whoever differentiates the forward itself is given the slope of s.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import is_integer, plain, require_flags, require_positive
from bpref.dtypes import cast, widen
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Real, Rule
from bpref.tangents import by_decision


class StraightThroughCache(NamedTuple):
    inside: Bool[Array, "..."] | None


def straight_through(
    levels: int | None = None, limit: float = 1.0, clipped: bool = False
) -> Layer[tuple[()], Array, Reals, StraightThroughCache]:
    """y = Q(x), with the backward of the identity or of clipping.

    Args:
      levels: how many values y may take, evenly spaced from -limit to limit; None rounds to whole numbers.
      limit: L, the outermost level; whole numbers have none.
      clipped: whether the cotangent is 0 where |x| > limit.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape.

    Raises:
      ValueError: there are fewer than 2 levels; the limit is not positive; `clipped` without levels.
      TypeError: x is not floating-point.
    """
    who = "straight_through"
    require_flags(who, clipped=clipped)
    if levels is not None and (not is_integer(levels) or levels < 2):
        raise ValueError(f"{who}: levels is {levels!r}, expected None or an integer of at least 2")
    levels = plain(levels)
    limit = require_positive(who, "limit", limit)
    if clipped and levels is None:
        raise ValueError(f"{who}: clipped needs levels, whole numbers have no outermost one")

    def forward(params, x: Float[Array, "..."]):
        z = widen(x)
        y = by_decision(nearest, surrogate)(z)
        return cast(y, x.dtype), StraightThroughCache(abs(z) <= limit if clipped else None)

    def backward(params, cache, dy):
        return (), dy if cache.inside is None else jnp.where(cache.inside, dy, 0)

    def nearest(z):
        if levels is None:
            return jnp.round(z)
        step = jnp.floor((z + limit) * ((levels - 1) / (2 * limit)) + 0.5)
        return jnp.clip(step, 0, levels - 1) * (2 * limit / (levels - 1)) - limit

    def surrogate(z):
        return jnp.where(abs(z) <= limit, z, limit * jnp.sign(z)) if clipped else z

    return Layer(no_params, forward, backward, who, decoding=each_position)


def reference(
    params: tuple[()], x: Array, levels: int | None = None, limit: float = 1.0, clipped: bool = False
) -> Array:
    surrogate = jnp.where(abs(x) > limit, limit * jnp.sign(x), x) if clipped else x
    if levels is None:
        y = jnp.rint(x)
    else:
        grid = jnp.linspace(-limit, limit, levels, dtype=x.dtype)
        y = grid[jnp.searchsorted((grid[1:] + grid[:-1]) / 2, x, side="right")]
    return surrogate + lax.stop_gradient(y - surrogate)


RULE = Rule(
    "straight_through",
    straight_through,
    reference,
    cases=(
        Case("whole numbers", Real("N d", points=(0.5, 1.5, -0.5, 0.0))),
        Case("sign, clipped", Real("N d", points=(1.0, -1.0, 0.0)), {"levels": 2, "clipped": True}),
        Case(
            "five levels, clipped",
            Real("N d", points=(2.0, -2.0, 0.5, 100.0)),
            {"levels": 5, "limit": 2.0, "clipped": True},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="arXiv:1308.3432, section 4; clipped: arXiv:1602.02830, equation 4",
    covers=("binarize", "sign_ste", "round_ste"),
)
