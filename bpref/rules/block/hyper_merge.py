"""hyper_merge: what a layer has made, added to each of n residual streams as often as the stream asks.

Forward, with z what the layer made of what it read of the streams, m the streams and q a number for each (see
`hyper_connection`, which gives the last two):

    y_i = m_i + q_i z                                                     m, y: (..., n, C)    z: (..., C)    q: (...,
    n)

Differential: delta y_i = delta m_i + q_i delta z + z delta q_i. The factor of each perturbation:

    dz_c = sum_i q_i dy_ic                                                (..., C)
    dm = dy                                                               (..., n, C)
    dq_i = sum_c dy_ic z_c                                                (..., n)

Cached: z and q.

Numerical care: half precision is added up in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class Merged(NamedTuple):
    """What a layer has made, the streams that it is added to, and how often to each."""

    made: Float[Array, "*b C"]
    mixed: Float[Array, "*b n C"]
    gates: Float[Array, "*b n"]


class HyperMergeCache(NamedTuple):
    z: Float[Array, "*b C"]
    q: Float[Array, "*b n"]


def hyper_merge() -> Layer[tuple[()], tuple[Array, Array, Array], Reals, HyperMergeCache]:
    """y_i = m_i + q_i z: a layer's output z added to n residual streams.

    Returns:
      A layer with params `()`, x `Merged(made: (*b, C), mixed: (*b, n, C), gates: (*b, n))`, and y `(*b, n, C)`.

    Raises:
      ValueError: shapes do not fit.
      TypeError: x is no such tuple; an array is not floating-point, or not of the dtype of the first.
    """

    def forward(params, x: Merged):
        z, m, q = x
        y = widen(m) + widen(q)[..., None] * widen(z)[..., None, :]
        return cast(y, m.dtype), HyperMergeCache(z, q)

    def backward(params, cache, dy):
        z, q = (widen(v) for v in cache)
        wide = widen(dy)
        dz = jnp.einsum("...i,...ic->...c", q, wide, precision=lax.Precision.HIGHEST)
        dq = jnp.einsum("...ic,...c->...i", wide, z, precision=lax.Precision.HIGHEST)
        return (), (cast(dz, dy.dtype), dy, cast(dq, dy.dtype))

    return Layer(no_params, forward, backward, "hyper_merge")


def reference(params: tuple[()], x: tuple[Array, Array, Array]) -> Array:
    z, m, q = x
    return m + jnp.einsum("...i,...c->...ic", q, z)


RULE = Rule(
    "hyper_merge",
    hyper_merge,
    reference,
    cases=(Case("", (Real("T C"), Real("T n C"), Real("T n")), timed={"T": 512, "C": 128, "n": 4}),),
    cite="Xie et al., 'mHC: manifold-constrained hyper-connections' (2025), arXiv:2512.24880, equation 3",
)
