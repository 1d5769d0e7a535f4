"""qk_norm_rope: queries and keys normed head by head and turned by their positions, in one pass.

Forward, with q of shape (*b, T, H, D), k of shape (*b, T, K, D), t a position, i over the D features of a head, n for
all else, and R_t the rotation of `rotary_embedding` with its magnitude c:

    qhat_ni = q_ni / sqrt(mean_j q_nj^2 + eps)          khat_ni = k_ni / sqrt(mean_j k_nj^2 + eps)
    q'_n    = R_t (gamma qhat_n)                        k'_n    = R_t (kappa khat_n)

Differential: the rotation is linear and positions are integers; the norm is that of `rms_norm`. For q, and k alike:

    delta q'_n = R_t (gamma delta qhat_n + qhat_n delta gamma)

The adjoint of R_t turns the other way, with the same c. With u = R_t^T dq', r = 1 / sqrt(mean q^2 + eps) and
f = gamma u, the factor of each perturbation is

    dgamma_i = sum_n u_ni qhat_ni                                         (D,)
    dq_ni    = r_n (f_ni - qhat_ni mean_j f_nj qhat_nj)                   (*b, T, H, D)

and for k with kappa alike. The norm has to come before the rotation: gamma does not commute with R_t.

Cached: q and k, and the positions where they are given, once. What `qk_norm` and `rotary_embedding` keep one after the
other is more: a number for each head, and the positions twice. r is made again in the pass that makes dq of q.

Numerical care: that of `rms_norm` and `rotary_embedding`. What is between them stays in float32 at least, so that q'
and k' are rounded once and not twice.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_flags, require_positive, require_share
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
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
from bpref.formulas.norm.standardize import (
    init_scale,
    pull_divided_by_rms,
    pull_scale_and_shift,
    root_mean_square,
    scale_and_shift,
)
from bpref.layer import Layer, Reals
from bpref.naive import rotation
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as, specs
from bpref.rules.norm.qk_norm import QkNormParams


class HeadsInOrder(NamedTuple):
    """Queries and keys of the same positions.

    Attributes:
      q, k: queries and keys; their numbers of heads may differ.
      positions: of each; 0, 1, ... where they are left out.
    """

    q: Float[Array, "*b T H D>0"]
    k: Float[Array, "*b T K D"]
    positions: Int[Array, "*b T"] | None = None

    by_name = True


def qk_norm_rope(
    eps: float = 1e-6,
    zero_centred: bool = False,
    per_head: bool = False,
    interleaved: bool = False,
    fraction: float = 1.0,
    base: float = 10000.0,
    stretch: Stretch | None = None,
) -> Layer[QkNormParams, HeadsInOrder, tuple[Reals, Reals], HeadsInOrder]:
    """(q', k'): `rotary_embedding` of what `qk_norm` makes of queries and keys.

    Args:
      eps: what is added to the mean square, in units of q squared.
      zero_centred: whether the scales are stored less 1, as in Gemma 3 and Qwen3-Next.
      per_head: whether each head has scales of its own.
      interleaved, fraction, base, stretch: as in `rotary_embedding`.

    Returns:
      A layer with params `QkNormParams(q_scale: (D,), k_scale: (D,))`, or (H, D) and (K, D) of each head, which change
      nothing at first, x `HeadsInOrder(q: (*b, T, H, D), k: (*b, T, K, D), positions: (*b, T) or None)`, and y
      `(q', k')` of their shapes.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit; the rotated features are not an even number of at
        least 2 and at most D.
      TypeError: x is no `HeadsInOrder`; q or k is not floating-point, or not of the scales' dtype; positions are no
        integers; stretch is none.
    """
    who = "qk_norm_rope"
    require_flags(who, zero_centred=zero_centred, per_head=per_head, interleaved=interleaved)
    eps = require_positive(who, "eps", eps)
    fraction = require_share(who, "fraction", fraction)
    base, stretch = require_rotation(who, base, stretch)

    def turn(u, positions, way, after=None):
        features = require_turned(who, u.shape[-1], fraction)
        return rotate(u, frequencies(features, base, stretch), way, magnitude(stretch), interleaved, positions, after)

    def init(key, x):
        return QkNormParams(*(init_scale(who, v, zero_centred, per_head) for v in (x.q, x.k)))

    def normed_and_turned(params, x, after=None):
        return tuple(
            cast(turn(_normed(v, scale), x.positions, 1, after), v.dtype)
            for v, scale in zip((x.q, x.k), params, strict=True)
        )

    def _normed(v, scale):
        wide = widen(v)
        return scale_and_shift(wide / _rms(wide), scale, None, zero_centred)

    def _rms(wide):
        return root_mean_square(wide, (wide.ndim - 1,), eps)

    def forward(params, x: HeadsInOrder):
        return normed_and_turned(params, x), x

    def backward(params, cache, dys):
        dys = with_zeros(dys, (cache.q, cache.k))
        (dgamma, dq), (dkappa, dk) = (
            pull(v, scale, turn(widen(d), cache.positions, -1))
            for v, scale, d in zip((cache.q, cache.k), params, dys, strict=True)
        )
        return QkNormParams(dgamma, dkappa), HeadsInOrder(dq, dk)

    def pull(v, scale, u):
        wide = widen(v)
        rms = _rms(wide)
        f, dscale, _ = pull_scale_and_shift(u, wide / rms, scale, None, zero_centred)
        assert dscale is not None
        return dscale, cast(pull_divided_by_rms(f, wide, rms, (v.ndim - 1,)), v.dtype)

    def decoding(leaf, length):
        def step(params, x, n):
            return normed_and_turned(params, x, After(n, length)), n + x.q.shape[-3]

        return decoder(leaf, lambda params, x: jnp.zeros((), jnp.int32), step)

    return Layer(init, forward, backward, who, decoding=decoding)


@called_as(qk_norm_rope)
def reference(
    params: QkNormParams, x: HeadsInOrder, eps, zero_centred, interleaved, fraction, base, stretch, **_
) -> tuple[Array, Array]:
    at = x.positions, interleaved, fraction, base, stretch
    of_each = zip((x.q, x.k), params, strict=True)
    q, k = (rotation.turned_at(naive_norm(v, g, None, eps, zero_centred=zero_centred), *at) for v, g in of_each)
    return q, k


_Q, _K = Real("B T H D", -2.0, 2.0), Real("B T K D", -2.0, 2.0)
_EPS = Interval(1e-6, 0.1, 1e-6)

RULE = Rule(
    "qk_norm_rope",
    qk_norm_rope,
    reference,
    cases=(
        Case(
            "halves",
            specs(HeadsInOrder, _Q, _K),
            {"eps": _EPS},
            fixed={"D": 8},
            timed={"B": 4, "T": 256, "H": 8, "D": 64, "K": 8},
        ),
        Case(
            "interleaved, partial, at positions, zero-centred, of each head",
            specs(HeadsInOrder, _Q, _K, Integer("B T", 0, 100)),
            {"eps": _EPS, "zero_centred": True, "per_head": True, "interleaved": True, "fraction": 0.5, "base": 100.0},
            fixed={"D": 8},
        ),
        Case(
            "stretched", specs(HeadsInOrder, _Q, _K), {"eps": _EPS, "stretch": Stretch("yarn", 4.0, 16)}, fixed={"D": 8}
        ),
    ),
    cite="norm: arXiv:2302.05442, section 2, and arXiv:1910.07467, equation 4; rotation: arXiv:2104.09864, equation 34",
    covers=("fused_qk_norm_rope",),
)
