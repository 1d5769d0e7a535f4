"""correlation: how alike each pixel of one image is to its neighbours in another, a cost volume.

Forward, for features f and g of shape (N, H, W, C), and the displacements a and b, down and across, of -r, -r + s, ...
to r each, r the reach and s the step:

    y_pq,ab = 1/C sum_c f_pqc g_{p+a,q+b,c}                               (N, H, W, K)      g = 0 outside

K = (2 r / s + 1)^2, a by a and in each b by b.

Differential: delta y_pq,ab = 1/C sum_c (delta f_pqc g_{p+a,q+b,c} + f_pqc delta g_{p+a,q+b,c}). The sweep starts with
dy. The factors:

    df_pqc = 1/C sum_ab dy_pq,ab g_{p+a,q+b,c}                            (N, H, W, C)
    dg_pqc = 1/C sum_ab dy_{p-a,q-b,ab} f_{p-a,q-b,c}                     (N, H, W, C)      dy = 0 outside

Cached: f and g. What the displacements see of g, K times as much, is never made: the forward takes one row of
displacements after the other, the backward as many rows as are one loop over the pixels.

Numerical care: half precision is multiplied and summed in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_count, require_size
from bpref.dtypes import cast, widen
from bpref.layer import Layer, Reals, no_params
from bpref.loops import scan
from bpref.rule import Case, Real, Rule, Size

DISPLACEMENTS = 81
"""How many are one loop of the backward: more of them take XLA long to compile."""


class TwoFeatures(NamedTuple):
    first: Float[Array, "N H W C>0"]
    second: Float[Array, "N H W C"]


def correlation(reach: int = 4, step: int = 1) -> Layer[tuple[()], tuple[Array, Array], Reals, TwoFeatures]:
    """The mean products of each pixel with those of another image that are displaced by up to `reach` each way.

    Args:
      reach: r, the largest displacement, a multiple of the step.
      step: s, from one displacement to the next.

    Returns:
      A layer with params `()`, x `(first, second)`, both `(N, H, W, C)`, and y `(N, H, W, (2 reach / step + 1)^2)`, the
      displacement down before that across. Both have a cotangent.

    Raises:
      ValueError: reach is negative, or no multiple of the step; the two differ in shape, or have no channels.
      TypeError: x is no pair; the features are not floating-point, or have two dtypes.
    """
    who = "correlation"
    r, s = require_count(who, "reach", reach), require_size(who, "step", step)
    if r % s:
        raise ValueError(f"{who}: reach is {r}, expected a multiple of step {s}")
    count = 2 * r // s + 1

    def forward(params, x: TwoFeatures):
        f, g = x
        wide, around = widen(f) / f.shape[-1], padded(widen(g))

        def row(_, a):
            return None, jnp.stack([jnp.sum(wide * seen, -1) for seen in views(around, a)], -1)

        _, y = scan(row, None, rows())
        y = jnp.moveaxis(y, 0, -2).reshape(*f.shape[:-1], count * count)
        return cast(y, f.dtype), x

    def backward(params, cache, dy):
        f, g = cache
        f_around, g_around = padded(widen(f)), padded(widen(g))
        by_row = jnp.moveaxis((widen(dy) / f.shape[-1]).reshape(*dy.shape[:-1], count, count), -2, 0)

        def row(sums, at):
            (df, dg), (a, dy_a) = sums, at
            each = jnp.unstack(dy_a[..., None], axis=-2)
            df += _sum([d * seen for d, seen in zip(each, views(g_around, a), strict=True)])
            seen_from = views(f_around, 2 * r - a), views(padded(dy_a), 2 * r - a)
            back = zip(*seen_from, range(count - 1, -1, -1), strict=True)
            dg += _sum([d[..., b, None] * seen for seen, d, b in back])
            return (df, dg), None

        zeros = jnp.zeros_like(f, widen(f).dtype), jnp.zeros_like(g, widen(g).dtype)
        (df, dg), _ = scan(row, zeros, (rows(), by_row), unroll=max(DISPLACEMENTS // count, 1))
        return (), (cast(df, f.dtype), cast(dg, g.dtype))

    def rows():
        return s * jnp.arange(count, dtype=jnp.int32)

    def padded(g):
        return jnp.pad(g, ((0, 0), (r, r), (r, r), (0, 0)))

    def views(around, a):
        """What the displacements of one row see."""
        _, H, W, _ = around.shape
        rows_of_a = lax.dynamic_slice_in_dim(around, a, H - 2 * r, 1)
        return [rows_of_a[:, :, b : b + W - 2 * r] for b in range(0, 2 * r + 1, s)]

    return Layer(no_params, forward, backward, who)


def _sum(parts: list[Array]) -> Array:
    return sum(parts[1:], parts[0])


def reference(params: tuple[()], x: tuple[Array, Array], reach: int = 4, step: int = 1) -> Array:
    f, g = x
    (_, H, W, _), displacements = f.shape, range(-reach, reach + 1, step)
    around = jnp.pad(g, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    y = [
        jnp.mean(f * around[:, reach + a : reach + a + H, reach + b : reach + b + W], -1)
        for a in displacements
        for b in displacements
    ]
    return jnp.stack(y, -1)


_X = (Real("N H W C"), Real("N H W C"))

RULE = Rule(
    "correlation",
    correlation,
    reference,
    cases=(
        Case(
            "all neighbours",
            _X,
            {"reach": Size("r")},
            never_empty=("C", "r"),
            fixed={"H": 4, "r": 1},
            timed={"N": 2, "H": 32, "W": 48, "C": 32, "r": 4},
        ),
        Case("every other one", _X, {"reach": 4, "step": 2}, never_empty=("C",), fixed={"H": 3, "W": 4}),
    ),
    cite="Dosovitskiy et al., 'FlowNet: learning optical flow with convolutional networks', arXiv:1504.06852, "
    "equation 1",
    covers=("cost volume", "spatial correlation sampler"),
)
