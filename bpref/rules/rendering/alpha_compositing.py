"""alpha_compositing: K samples along a ray seen from the front, each through all that stand before it.

Forward, for opacities alpha of shape (*n, K), from 0 to 1, and colours c of shape (*n, K, C), k from the front:

    T_k = (1 - alpha_1) ... (1 - alpha_{k-1})                             (*n, K)      what light passes to sample k
    w_k = alpha_k T_k                                                     (*n, K)
    y   = sum_k w_k c_k                                                   (*n, C)
    T   = (1 - alpha_1) ... (1 - alpha_K)                                 (*n,)        what passes all of them

so that y + T times a colour is the ray before that background. With `thickness`, what is given is the optical thickness
tau_k >= 0, density times length, and alpha_k = 1 - exp(-tau_k).

Differential. What is seen from sample k backwards, with C_K = 0 and P_k the product of the 1 - alpha behind k:

    C_{k-1} = alpha_k c_k + (1 - alpha_k) C_k,   P_{k-1} = (1 - alpha_k) P_k,   P_K = 1
    delta y = sum_k T_k (delta alpha_k (c_k - C_k) + alpha_k delta c_k)
    delta T = -sum_k T_k P_k delta alpha_k

The sweep starts with dy and dT. Only sums over the channels are needed, and only less dT, since what is behind all
samples is seen through all of them:

    e_k = dy . c_k - dT                                                   (*n, K)
    b_{k-1} = alpha_k e_k + (1 - alpha_k) b_k,   b_K = 0                  (*n, K)
    dalpha_k = T_k (e_k - b_k),   dc_k = w_k dy                           (*n, K), (*n, K, C)
    dtau_k = (1 - alpha_k) dalpha_k                                       with `thickness`

The textbook form has sum_{j > k} w_j c_j / (1 - alpha_k) in the place of T_k C_k, which at an opaque sample is 0 / 0:
what is behind it is lost there, though a change of its opacity uncovers it. Nothing is divided here.

Cached: alpha or tau, c, and T_k in at least float32.

Numerical care: T is a product, or with `thickness` the exponential of minus a sum; half precision is computed in
float32. alpha = 1 - exp(-tau) by expm1: thin samples keep their digits. On a CPU both recurrences are one pass over
memory; elsewhere stretches are joined two by two, in 2 log2 K steps.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.indexing.along_axis import join_affine, run_along, shifted
from bpref.layer import Layer, no_params
from bpref.rule import Case, Real, Rule


class Samples(NamedTuple):
    alpha: Float[Array, "*n K>0"]
    colors: Float[Array, "*n K C"]


class Composite(NamedTuple):
    """What a ray sees: its colour, and the share of light that passes all samples."""

    color: Float[Array, "*n C"]
    transmittance: Float[Array, "*n"]


class AlphaCompositingCache(NamedTuple):
    alpha: Float[Array, "*n K"]
    colors: Float[Array, "*n K C"]
    T: Float[Array, "*n K"]


def alpha_compositing(
    thickness: bool = False,
) -> Layer[tuple[()], tuple[Array, Array], Composite, AlphaCompositingCache]:
    """Samples along rays, composed from the front to the back.

    Args:
      thickness: whether optical thicknesses are given, as in NeRF, rather than opacities, as in Gaussian splatting.

    Returns:
      A layer with params `()`, x `(alpha, colors)`, `(*n, K)` and `(*n, K, C)`, the front first, and y
      `Composite(color: (*n, C), transmittance: (*n,))`. Both of x have a cotangent, exact for opaque samples too. A
      depth or a normal is another channel. Values out of range are not looked for.

    Raises:
      ValueError: the shapes do not fit, or there is no sample; thickness is no boolean.
      TypeError: x is no pair; either is not floating-point, or they have two dtypes.
    """
    who = "alpha_compositing"
    require_flags(who, thickness=thickness)

    def forward(params, x: Samples):
        alpha, colors = x
        T_after = passing(widen(alpha))
        T = shifted(T_after, -1, False, first=1.0)
        w = T * opacity(widen(alpha))
        color = jnp.sum(w[..., None] * widen(colors), -2)
        y = Composite(cast(color, colors.dtype), cast(T_after[..., -1], alpha.dtype))
        return y, AlphaCompositingCache(alpha, colors, T)

    def backward(params, cache, dy):
        given, c, T = cache
        alpha = opacity(widen(given))
        d = jnp.zeros((*c.shape[:-2], 1, c.shape[-1]), T.dtype) if dy.color is None else widen(dy.color)[..., None, :]
        e = jnp.sum(d * widen(c), -1)
        e = e if dy.transmittance is None else e - widen(dy.transmittance)[..., None]
        b = run_along(seen_behind, jnp.zeros_like, (alpha, e), -1, True, seen_joined)
        dalpha = T * (e - b)
        if thickness:
            dalpha = dalpha * jnp.exp(-widen(given))
        return (), (cast(dalpha, given.dtype), cast((T * alpha)[..., None] * d, c.dtype))

    def opacity(given):
        return -jnp.expm1(-given) if thickness else given

    def passing(given):
        """T after each sample."""
        if thickness:
            return jnp.exp(-run_along(_add, jnp.zeros_like, (given,), -1, False, lax.cumsum))
        return run_along(_multiply, jnp.ones_like, (1 - given,), -1, False, lax.cumprod)

    def seen_behind(b, alpha, e):
        return alpha * e + (1 - alpha) * b, b

    def seen_joined(alpha, e, axis, reverse):
        return shifted(join_affine(1 - alpha, alpha * e, axis, reverse)[1], axis, reverse, first=0.0)

    return Layer(no_params, forward, backward, who)


def _multiply(before: Array, v: Array) -> tuple[Array, Array]:
    return before * v, before * v


def _add(before: Array, v: Array) -> tuple[Array, Array]:
    return before + v, before + v


def reference(params: tuple[()], x: tuple[Array, Array], thickness: bool = False) -> tuple[Array, Array]:
    alpha, colors = x
    if thickness:
        alpha = 1 - jnp.exp(-alpha)
    color, passes = jnp.zeros_like(colors[..., 0, :]), jnp.ones_like(alpha[..., 0])
    for k in range(alpha.shape[-1]):
        color = color + (passes * alpha[..., k])[..., None] * colors[..., k, :]
        passes = passes * (1 - alpha[..., k])
    return Composite(color, passes)


RULE = Rule(
    "alpha_compositing",
    alpha_compositing,
    reference,
    cases=(
        Case(
            "opacities, some opaque",
            (Real("N K", 0.0, 1.0, points=(0.5, 1.0, 0.0, 1.0)), Real("N K C")),
            never_empty=("K",),
            timed={"N": 4096, "K": 64, "C": 3},
        ),
        Case(
            "optical thickness, images of rays",
            (Real("H W K", 0.0, 2.0), Real("H W K C")),
            {"thickness": True},
            never_empty=("K",),
            fixed={"H": 3, "K": 5},
        ),
    ),
    cite="Max, 'Optical models for direct volume rendering' (1995), section 4; Mildenhall et al., 'NeRF', "
    "arXiv:2003.08934, equation 3",
    covers=("volume rendering", "nerf", "gaussian splatting", "alpha blending"),
)
