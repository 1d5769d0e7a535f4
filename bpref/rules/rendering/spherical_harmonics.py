"""spherical_harmonics: the real ones of a direction, whose derivatives are harmonics of one degree less.

Forward, for v = (x, y, z) of shape (*n, 3), which with `normalize` is made a unit vector first. With r^2 = v . v, for
degrees l = 0, ..., L and orders m = 0, ..., l:

    A_m + i B_m = (x + i y)^m
    Q_00 = sqrt(1 / 4 pi),   Q_11 = sqrt(3) Q_00,   Q_mm = sqrt((2 m + 1) / (2 m)) Q_{m-1,m-1}
    Q_lm = sqrt((4 l^2 - 1) / (l^2 - m^2)) (z Q_{l-1,m} - sqrt(((l - 1)^2 - m^2) / (4 (l - 1)^2 - 1)) r^2 Q_{l-2,m})
    C_lm = Q_lm A_m,   S_lm = Q_lm B_m
    Y    = (..., S_ll, ..., S_l1, C_l0, C_l1, ..., C_ll, ...)             (*n, (L + 1)^2)

With `condon_shortley` those of odd m are negative. Of unit vectors Y is orthonormal over the sphere; of any others each
C_lm and S_lm is r^l times that, a homogeneous polynomial.

Differential. Such a polynomial solves Laplace's equation, its derivatives do too and are of degree l - 1, and so sums
of the harmonics there. With F = C + i S, S_l0 = 0, and g = (2 l + 1) / (2 l - 1),

    dF_lm / dz = sqrt(g (l^2 - m^2)) F_{l-1,m}
    (d/dx + i d/dy) F_lm = -sqrt(g (l - m) (l - m - 1)) F_{l-1,m+1}       divided by sqrt(2) where m = 0
    (d/dx - i d/dy) F_lm = sqrt(g (l + m) (l + m - 1)) F_{l-1,m-1}        times sqrt(2) where m = 1, for m > 0

so that there are three constant matrices D_i, with at most two entries a row, and delta Y = sum_i (D_i Y) delta v_i.
The sweep starts with dY:

    dv_i = dY . D_i Y                                                     (*n, 3)

and with `normalize`, r being |v| and u = v / r, that of `l2_normalize`: (dv - u (u . dv)) / r.

Cached: v. Y is made again: polynomials, to which rounded ones would lend their error.

Numerical care: half precision is computed in float32. At v = 0 a direction is taken as 0, all Y but the first are 0,
and so is the cotangent.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_count, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.norm.unit_vectors import from_unit, unit
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule, called_as


class SphericalHarmonicsCache(NamedTuple):
    v: Float[Array, "... 3"]


def spherical_harmonics(
    degree: int, normalize: bool = True, condon_shortley: bool = False
) -> Layer[tuple[()], Array, Reals, SphericalHarmonicsCache]:
    """The real spherical harmonics of a direction, of all degrees up to one.

    Args:
      degree: L, the highest degree.
      normalize: whether v is made a unit vector first; without, each harmonic is r^l times that of the direction.
      condon_shortley: whether those of odd order are negative, as in Gaussian splatting.

    Returns:
      A layer with params `()`, x `(*n, 3)` and y `(*n, (degree + 1)^2)`, by degree and in each by order from -l to l.

    Raises:
      ValueError: degree is no integer of at least 0; x does not have three coordinates in its last axis.
      TypeError: x is not floating-point.
    """
    who = "spherical_harmonics"
    L = require_count(who, "degree", degree)
    require_flags(who, normalize=normalize, condon_shortley=condon_shortley)
    D = derivatives(L, condon_shortley)

    def forward(params, v: Float[Array, "*n 3"]):
        u = unit(widen(v))[0] if normalize else widen(v)
        return cast(jnp.stack(harmonics(u), -1), v.dtype), SphericalHarmonicsCache(v)

    def backward(params, cache, dY):
        v = widen(cache.v)
        u, per_length = unit(v) if normalize else (v, None)
        Y, dY = harmonics(u), jnp.unstack(widen(dY), axis=-1)
        terms = ([factor * dY[k] * Y[j] for factor, k, j in entries] for entries in D)
        dv = jnp.stack([sum(of_i, jnp.zeros_like(Y[0])) for of_i in terms], -1)
        return (), cast(dv if per_length is None else from_unit(u, per_length, dv), cache.v.dtype)

    def harmonics(v):
        """Each of Y."""
        x, y, z = jnp.unstack(v, axis=-1)
        square = x * x + y * y + z * z
        A, B = [jnp.ones_like(x)], [jnp.zeros_like(x)]
        for m in range(L):
            A, B = [*A, x * A[m] - y * B[m]], [*B, x * B[m] + y * A[m]]
        Y = {}
        for m in range(L + 1):
            sign = -1 if condon_shortley and m % 2 else 1
            before, Q = None, jnp.full_like(x, sign * first(m))
            for l in range(m, L + 1):
                Y[l, m] = Q * A[m]
                if m:
                    Y[l, -m] = Q * B[m]
                if l < L:
                    before, Q = Q, step(l + 1, m, z, square, Q, before)
        return [Y[l, m] for l in range(L + 1) for m in range(-l, l + 1)]

    def first(m):
        """Q_mm."""
        return math.sqrt((2 if m else 1) / (4 * math.pi) * math.prod((2 * k + 1) / (2 * k) for k in range(1, m + 1)))

    def step(l, m, z, square, Q, before):
        """Q_lm, of those of degrees l - 1 and l - 2."""
        scale = math.sqrt((4 * l**2 - 1) / (l**2 - m**2))
        if before is None:
            return scale * z * Q
        return scale * (z * Q - math.sqrt(((l - 1) ** 2 - m**2) / (4 * (l - 1) ** 2 - 1)) * (square * before))

    return Layer(no_params, forward, backward, who)


def derivatives(L: int, condon_shortley: bool) -> tuple[list[tuple[float, int, int]], ...]:
    """What is not 0 of D_x, D_y and D_z: a factor, and the places of a harmonic and of the one in its derivative."""
    D: tuple[list[tuple[float, int, int]], ...] = ([], [], [])

    def add(i, l, m, order, factor):
        if abs(order) < l:
            sign = -1 if condon_shortley and (m + order) % 2 else 1
            D[i].append((sign * factor, l * l + l + m, (l - 1) ** 2 + l - 1 + order))

    for l in range(1, L + 1):
        g = (2 * l + 1) / (2 * l - 1)
        for m in range(-l, l + 1):
            k, s = abs(m), -1 if m < 0 else 1
            add(2, l, m, m, math.sqrt(g * (l * l - k * k)))
            up = -math.sqrt(g * (l - k) * (l - k - 1)) / 2
            if m == 0:
                add(0, l, 0, 1, math.sqrt(2) * up)
                add(1, l, 0, -1, math.sqrt(2) * up)
                continue
            down = math.sqrt(g * (l + k) * (l + k - 1)) / 2 * (math.sqrt(2) if k == 1 else 1)
            add(0, l, m, s * (k + 1), up)
            add(1, l, m, -s * (k + 1), s * up)
            if k > 1 or s > 0:
                add(0, l, m, s * (k - 1), down)
            if k > 1 or s < 0:
                add(1, l, m, -s * (k - 1), -s * down)
    return D


@called_as(spherical_harmonics)
def reference(params: tuple[()], x: Array, degree, normalize, condon_shortley) -> Array:
    """The polynomials written out, up to degree 4, each with its constant."""
    if normalize:
        square = jnp.sum(x * x, -1, keepdims=True)
        x = jnp.where(square > 0, x / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    x, y, z = x[..., 0], x[..., 1], x[..., 2]
    xx, yy, zz = x * x, y * y, z * z
    rr = xx + yy + zz
    polynomials = [
        (1 / 4, jnp.ones_like(x)),
        (3 / 4, y), (3 / 4, z), (3 / 4, x),
        (15 / 4, x * y), (15 / 4, y * z), (5 / 16, 3 * zz - rr), (15 / 4, x * z), (15 / 16, xx - yy),
        (35 / 32, y * (3 * xx - yy)), (105 / 4, x * y * z), (21 / 32, y * (5 * zz - rr)),
        (7 / 16, z * (5 * zz - 3 * rr)), (21 / 32, x * (5 * zz - rr)), (105 / 16, z * (xx - yy)),
        (35 / 32, x * (xx - 3 * yy)),
        (315 / 16, x * y * (xx - yy)), (315 / 32, y * z * (3 * xx - yy)), (45 / 16, x * y * (7 * zz - rr)),
        (45 / 32, y * z * (7 * zz - 3 * rr)), (9 / 256, 35 * zz * zz - 30 * zz * rr + 3 * rr * rr),
        (45 / 32, x * z * (7 * zz - 3 * rr)), (45 / 64, (xx - yy) * (7 * zz - rr)),
        (315 / 32, x * z * (xx - 3 * yy)), (315 / 256, xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
    ]  # fmt: skip
    Y = [math.sqrt(constant / math.pi) * p for constant, p in polynomials[: (degree + 1) ** 2]]
    if condon_shortley:
        odd = [abs(m) % 2 for l in range(degree + 1) for m in range(-l, l + 1)]
        Y = [-p if is_odd else p for p, is_odd in zip(Y, odd, strict=True)]
    return jnp.stack(Y, -1)


RULE = Rule(
    "spherical_harmonics",
    spherical_harmonics,
    reference,
    cases=(
        Case(
            "directions",
            Real("N three", points=(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)),
            {"degree": 3, "condon_shortley": True},
            fixed={"three": 3},
            timed={"N": 16384, "three": 3},
        ),
        Case(
            "solid harmonics",
            Real("B T three", -1.5, 1.5),
            {"degree": 4, "normalize": False},
            fixed={"B": 2, "three": 3},
        ),
    ),
    cite="Blanco, Florez and Bermejo, 'Evaluation of the rotation matrices in the basis of real spherical harmonics' "
    "(1997); derivatives: Bigi et al., 'Fast evaluation of spherical harmonics with sphericart', arXiv:2302.08381",
    covers=("sh", "solid harmonics", "e3nn.o3.spherical_harmonics"),
)
