"""gated_rms_norm: an RMS norm and a gate, in either order: what linear attention and state space layers end with.

Forward, with s = g(z), silu of the gate z unless said otherwise, the mean over the features of a group, d / G of them,
and n an example:

    norm before gate:    r_n = 1 / sqrt(mean_k x_nk^2 + eps)       xhat_nk = x_nk r_n       y_nk = gamma_k xhat_nk s_nk
    gate before norm:    u_nk = x_nk s_nk
                         r_n = 1 / sqrt(mean_k u_nk^2 + eps)       uhat_nk = u_nk r_n       y_nk = gamma_k uhat_nk

The first is that of Gated DeltaNet, the second that of Mamba-2 as it is published, whose code has a switch for the
first. All of x, z, s, u and y are (..., d), r is (..., G).

Differential: that of the norm, from `rms_norm`, and delta s = g'(z) delta z; and

    delta y_nk = gamma_k s_nk delta xhat_nk + gamma_k xhat_nk delta s_nk + xhat_nk s_nk delta gamma_k
    delta y_nk = gamma_k delta uhat_nk + uhat_nk delta gamma_k        delta u_nk = s_nk delta x_nk + x_nk delta s_nk

The factor of each perturbation, norm before gate, with f = gamma s dy:

    dx_nk    = r_n (f_nk - xhat_nk mean_j f_nj xhat_nj)                   (..., d)
    dz_nk    = dy_nk gamma_k xhat_nk g'(z_nk)                             (..., d)
    dgamma_k = sum_n dy_nk xhat_nk s_nk                                   (d,)

and gate before norm, with f = gamma dy:

    du_nk    = r_n (f_nk - uhat_nk mean_j f_nj uhat_nj)
    dx_nk    = du_nk s_nk            dz_nk = du_nk x_nk g'(z_nk)          (..., d)
    dgamma_k = sum_n dy_nk uhat_nk                                        (d,)

The order is no detail: in the first a gate near 0 silences a feature, in the second it is made up for by r.

Cached: x, z, and 1 / r, one number for each group of an example. s and u are an exponential and a product away.

Numerical care: that of `rms_norm`; s, u and all that follows stay in float32 at least, and y, dx and dz are rounded
once, where a gate after a norm rounds twice. A gate that is 0 in all features has uhat = 0, r = 1 / sqrt(eps) and
finite gradients. About the tails of g, see `silu`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_flags, require_positive, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.norm.standardize import pull_divided_by_rms, pull_scale_and_shift, root_mean_square, scale_and_shift
from bpref.layer import Layer, Reals, each_position
from bpref.naive.activation import activation
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Interval, Real, Rule, called_as
from bpref.rules.activation.glu import GATES


class GatedRmsNormParams(NamedTuple):
    scale: Float[Array, " d"]


class Gated(NamedTuple):
    x: Float[Array, "*n d>0"]
    z: Float[Array, "*n d"]


class GatedRmsNormCache(NamedTuple):
    x: Float[Array, "*n d"]
    z: Float[Array, "*n d"]
    rms: Float[Array, "... 1"]


def gated_rms_norm(
    eps: float = 1e-6, norm_before_gate: bool = True, gate: str = "silu", groups: int = 1
) -> Layer[GatedRmsNormParams, tuple[Array, Array], Reals, GatedRmsNormCache]:
    """y = gamma rms(x) g(z), or gamma rms(x g(z)).

    Args:
      eps: what is added to the mean square, in units of x squared.
      norm_before_gate: whether what is normed is x, as in Gated DeltaNet, or x g(z), as in Mamba-2.
      gate: g: "silu", "sigmoid" (Kimi Linear), "gelu" (tanh form), "gelu_erf", "relu", "tanh" or "identity".
      groups: the number G of groups of features that are normed each by itself.

    Returns:
      A layer with params `GatedRmsNormParams(scale: (d,))`, ones at first, x `(x, z)`, both `(*n, d)`, and y of their
      shape.

    Raises:
      ValueError: an argument is out of its range; x and z are of different shapes, or have no features; groups do not
        divide them.
      TypeError: x is no pair; x or z is not floating-point, or not of scale's dtype.
    """
    who = "gated_rms_norm"
    require_flags(who, norm_before_gate=norm_before_gate)
    require_choice(who, "gate", gate, sorted(GATES))
    eps, groups = require_positive(who, "eps", eps), require_size(who, "groups", groups)
    g = GATES[gate]()

    def init(key, x):
        return GatedRmsNormParams(jnp.ones(x[0].shape[-1], x[0].dtype))

    def by_group(u):
        if u.shape[-1] % groups:
            raise ValueError(f"{who}: x has {u.shape[-1]} features in its last axis, not a multiple of {groups} groups")
        if groups == 1:  # XLA fuses nothing across a reshape, and takes 1.5 times as long
            return u
        return u.reshape(*u.shape[:-1], groups, u.shape[-1] // groups)

    def forward(params, x: Gated):
        v, z = x
        s = g.forward((), widen(z))[0]
        u = by_group(widen(v) if norm_before_gate else widen(v) * s)
        rms = root_mean_square(u, (u.ndim - 1,), eps)
        y = scale_and_shift((u / rms).reshape(v.shape), params.scale, None)
        return cast(y * s if norm_before_gate else y, v.dtype), GatedRmsNormCache(v, z, rms)

    def backward(params, cache, dy):
        v, z, rms = cache
        s, of_gate = g.forward((), widen(z))
        u = by_group(widen(v) if norm_before_gate else widen(v) * s)
        uhat = (u / rms).reshape(v.shape)
        of_norm = widen(dy) * s if norm_before_gate else widen(dy)
        f, dgamma, _ = pull_scale_and_shift(of_norm, uhat, params.scale, None)
        du = pull_divided_by_rms(by_group(f), u, rms, (u.ndim - 1,)).reshape(v.shape)
        if norm_before_gate:
            dx, ds = du, widen(dy) * scale_and_shift(uhat, params.scale, None)
        else:
            dx, ds = du * s, du * widen(v)
        dz = g.backward((), of_gate, ds)[1]
        assert dgamma is not None
        return GatedRmsNormParams(dgamma), (cast(dx, v.dtype), cast(dz, v.dtype))

    return Layer(init, forward, backward, who, decoding=each_position)


@called_as(gated_rms_norm)
def reference(params: GatedRmsNormParams, x: tuple[Array, Array], eps, norm_before_gate, gate, groups) -> Array:
    v, s = x[0], activation(gate)(x[1])
    of_groups = jnp.split(v if norm_before_gate else v * s, groups, -1)
    hats = [naive_norm(u, None, None, eps) for u in of_groups]
    y = jnp.concatenate(hats, -1) * jnp.broadcast_to(params.scale, v.shape)
    return y * s if norm_before_gate else y


_X = (Real("B T d"), Real("B T d", points=(0.0, 20.0, -20.0)))
_EPS = Interval(1e-6, 0.1, 1e-6)

RULE = Rule(
    "gated_rms_norm",
    gated_rms_norm,
    reference,
    cases=(
        Case("norm before gate", _X, {"eps": _EPS}, ("d",), timed={"B": 4, "T": 512, "d": 512}),
        Case(
            "gate before norm, groups",
            _X,
            {"eps": _EPS, "norm_before_gate": False, "groups": 2},
            ("d",),
            fixed={"d": 6},
        ),
        Case("sigmoid", _X, {"eps": _EPS, "gate": "sigmoid"}, ("d",)),
    ),
    cite="norm before gate: arXiv:2412.06464, figure 1 (section not checked); gate before norm: arXiv:2405.21060, "
    "section 7 (not checked); as both stand in their authors' code; sigmoid: arXiv:2510.26692",
    covers=("rms norm gated", "RMSNormGated", "fused_rms_norm_gated"),
)
