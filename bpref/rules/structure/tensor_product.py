"""tensor_product: two sets of irreducible representations of rotations coupled to a third, by Clebsch and Gordan.

Forward, for x of degrees l1 = 0, ..., L1 in c channels and y of l2 = 0, ..., L2 in e, each degree being 2 l + 1 real
components by order from -l to l, as `spherical_harmonics` has them; e divides c, and c / e channels share one y. A path
p is a triple of degrees with |l1 - l2| <= l3 <= l1 + l2 and l3 <= L3, and w_p its weight, or 1:

    t^p_m3    = sum_m1,m2 C^p_m3,m1,m2 x_l1,m1 y_l2,m2                    (*n, c, 2 l3 + 1)
    z_l3,m3   = sum_p w_p t^p_m3                                          (*n, c, (L3 + 1)^2)

C^p is the one tensor, up to a factor, with which z turns as x and y are turned. Of complex harmonics it is Clebsch and
Gordan's G^p = <l1 m1 l2 m2 | l3 m3>, for which Racah has a sum, a rational number times the root of another. With U the
unitary matrices that make real harmonics of complex ones, for k > 0 R_k = ((-1)^k Y_k + Y_-k) / sqrt(2) and R_-k =
((-1)^k Y_k - Y_-k) / (i sqrt(2)),

    C^p = i^(l3 - l1 - l2) sum_k1,k2,k3 U_m3,k3 G^p_k3,k1,k2 conj(U_m1,k1) conj(U_m2,k2)

which is real, and sum_m1,m2 C^p_m3 C^p'_m3' = 1 where the p that end in l3, and m3, are the same, else 0. So (1, 1, 0)
is x . y / sqrt(3) and (1, 1, 1) the cross product over sqrt(2). C is the same where harmonics of odd order are
negative, and sqrt(2 l3 + 1) times e3nn's `wigner_3j`.

Differential, bilinear in x and y, and in t and w:

    delta z = sum_p w_p C^p(delta x, y) + w_p C^p(x, delta y) + t^p delta w_p

The factors, with dt^p = w_p dz of the p's degree, and a running over the channels that share y:

    M^p_m3,m1 = sum_m2 C^p_m3,m1,m2 y_m2                                  (*n, e, rows of t, (L1 + 1)^2)
    dx_m1  = sum_p,m3 dt^p_m3 M^p_m3,m1                                   (*n, c, (L1 + 1)^2)
    dM^p_m3,m1 = sum_a dt^p_a,m3 x_a,m1                                   of M's shape
    dy_m2  = sum_p,m3,m1 C^p_m3,m1,m2 dM^p_m3,m1                          (*n, e, (L2 + 1)^2)
    dw_p   = sum_m3 dz_m3 t^p_m3                                          (*n, c, paths)

Without weights and not apart the C of all p that end in one l3 are one tensor, and t is z.

Cached: x, y and w. M and t, which autodiff keeps, are many times larger, and made again.

Numerical care: Racah's sum is of Python's fractions, and has no rounding, of whatever degree, though its terms cancel.
Half precision is computed in float32.
"""

import math
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_count, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.affine import times, times_transposed
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule, called_as, specs


class PairOfIrreps(NamedTuple):
    x: Float[Array, "*n c p"]
    y: Float[Array, "*n e q"]
    w: Float[Array, "*n c paths"] | None = None


class TensorProductCache(NamedTuple):
    of: PairOfIrreps


Path = tuple[int, int, int]
"""The degrees l1, l2 and l3."""


def tensor_product(
    left: int, right: int, out: int, even: bool = False, apart: bool = False
) -> Layer[tuple[()], PairOfIrreps, Reals, TensorProductCache]:
    """The equivariant product of features by degree and order, as e3nn's and MACE's.

    Args:
      left, right: L1 and L2, the highest degrees of x and of y.
      out: L3, the highest degree of z; paths beyond are left out.
      even: whether only paths of even l1 + l2 + l3 are taken: of harmonics, whose parity is (-1)^l, the others have
        the parity of a cross product.
      apart: whether each path has its place in z, one after the other, in place of their sum.

    Returns:
      A layer with params `()`, x `PairOfIrreps(x: (*n, c, (left + 1)^2), y: (*n, e, (right + 1)^2), w: (*n, c, paths)
      or None)`, where e divides c, and y `(*n, c, (out + 1)^2)`, or `(*n, c, the sum of 2 l3 + 1)` apart. Paths are
      sorted by l1, then l2, then l3.

    Raises:
      ValueError: a degree is no integer of at least 0; an axis does not fit the degrees; e does not divide c.
      TypeError: x is no `PairOfIrreps`; an array is not floating-point, or not of x's dtype.

    Example:
      >>> layer = tensor_product(1, 1, 1, apart=True)  # paths (0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)
      >>> a, b = (jnp.array([[0.0, *v]]) for v in ((1.0, 2.0, 3.0), (0.0, 1.0, -1.0)))
      >>> z, _ = layer.forward((), PairOfIrreps(a, b))
      >>> jnp.sqrt(3) * z[0, 7], jnp.sqrt(2) * z[0, 8:]  # a . b and a x b
      (Array(-1., dtype=float32), Array([-5.,  1.,  1.], dtype=float32))
    """
    who = "tensor_product"
    L1, L2, L3 = (require_count(who, name, l) for name, l in (("left", left), ("right", right), ("out", out)))
    require_flags(who, even=even, apart=apart)
    paths = paths_of(L1, L2, L3, even)
    path_of_row = np.repeat(np.arange(len(paths), dtype=np.int32), [2 * l3 + 1 for _, _, l3 in paths])
    C = np.concatenate([_placed(path, coupling(*path), L1, L2) for path in paths])
    to_path = np.equal.outer(path_of_row, np.arange(len(paths)))
    to_degree = np.equal.outer(
        np.concatenate([l3**2 + np.arange(2 * l3 + 1) for _, _, l3 in paths]), np.arange((L3 + 1) ** 2)
    )
    summed = np.einsum("rk,rij->kij", to_degree, C)

    def forward(params, of: PairOfIrreps):
        require_degrees(of)
        x, y, w = grouped(of)
        tensor = tensor_of(of, x.dtype)
        t = coupled(x, met(tensor, y))
        z = ended(t if w is None else t * rows_of(w), w)
        return cast(z.reshape(*of.x.shape[:-1], z.shape[-1]), of.x.dtype), TensorProductCache(of)

    def backward(params, cache, dz):
        x, y, w = grouped(cache.of)
        tensor = tensor_of(cache.of, x.dtype)
        M = met(tensor, y)
        ds = begun(widen(dz).reshape(*x.shape[:-1], dz.shape[-1]), w)
        dw = None if w is None else times(ds * coupled(x, M), jnp.asarray(to_path, x.dtype))
        dt = ds if w is None else ds * rows_of(w)
        dx = jnp.einsum("...ki,...ak->...ai", M, dt)
        dM = jnp.einsum("...ak,...ai->...ki", dt, x)
        dy = jnp.einsum("...ki,kij->...j", dM, tensor)
        of = cache.of
        return (), PairOfIrreps(like(dx, of.x), like(dy, of.y), None if dw is None else like(dw, of.w))

    def require_degrees(of):
        expected = {"x": (L1 + 1) ** 2, "y": (L2 + 1) ** 2, "w": len(paths)}
        for name, v in of._asdict().items():
            if v is not None and v.shape[-1] != expected[name]:
                raise ValueError(f"{who}: {name} has shape {v.shape}, expected {expected[name]} in its last axis")
        c, e = of.x.shape[-2], of.y.shape[-2]
        if not e or c % e:
            raise ValueError(f"{who}: x has {c} channels and y {e}, expected a divisor of x's")

    def grouped(of):
        """x and w by the e channels of y, (*n, e, c / e, ...), and y, in at least float32."""
        e = of.y.shape[-2]

        def by_y(v):
            return widen(v).reshape(*v.shape[:-2], e, v.shape[-2] // e, v.shape[-1])

        return by_y(of.x), widen(of.y), None if of.w is None else by_y(of.w)

    def like(d, v):
        return cast(d.reshape(v.shape), v.dtype)

    def tensor_of(of, dtype):
        return jnp.asarray(C if apart or of.w is not None else summed, dtype)

    def met(tensor, y):
        """M."""
        return jnp.einsum("kij,...j->...ki", tensor, y)

    def coupled(x, M):
        """t, or z."""
        return jnp.einsum("...ki,...ai->...ak", M, x)

    def rows_of(w):
        return jnp.take(w, path_of_row, axis=-1)

    def ended(s, w):
        """The rows of z: of all paths, or their sums."""
        return s if apart or w is None else times(s, jnp.asarray(to_degree, s.dtype))

    def begun(dz, w):
        """The adjoint of `ended`."""
        return dz if apart or w is None else times_transposed(dz, jnp.asarray(to_degree, dz.dtype))

    return Layer(no_params, forward, backward, who)


def paths_of(L1: int, L2: int, L3: int, even: bool) -> list[Path]:
    """The paths in their order."""
    return [
        (l1, l2, l3)
        for l1, l2 in product(range(L1 + 1), range(L2 + 1))
        for l3 in range(abs(l1 - l2), min(l1 + l2, L3) + 1)
        if not (even and (l1 + l2 + l3) % 2)
    ]


def coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """C of a path, (2 l3 + 1, 2 l1 + 1, 2 l2 + 1)."""
    C = np.zeros((2 * l3 + 1, 2 * l1 + 1, 2 * l2 + 1))
    for m1, m2 in product(range(-l1, l1 + 1), range(-l2, l2 + 1)):
        for m3 in {s * abs(abs(m1) + t * abs(m2)) for s, t in product((-1, 1), repeat=2)} & set(range(-l3, l3 + 1)):
            terms = (
                u3 * u1.conjugate() * u2.conjugate() * clebsch_gordan((l1, M1), (l2, M2), (l3, M3))
                for (M1, u1), (M2, u2), (M3, u3) in product(*map(_of_complex, (m1, m2, m3)))
                if M1 + M2 == M3
            )
            C[l3 + m3, l1 + m1, l2 + m2] = (1j ** (l3 - l1 - l2) * sum(terms)).real
    return C


def clebsch_gordan(one: tuple[int, int], other: tuple[int, int], both: tuple[int, int]) -> float:
    """<l1 m1 l2 m2 | l3 m3> of three (l, m), m1 + m2 = m3, by Racah's formula, rounded once."""
    (l1, m1), (l2, m2), (l3, _) = one, other, both
    f = math.factorial
    square = Fraction((2 * l3 + 1) * f(l1 + l2 - l3) * f(l1 - l2 + l3) * f(l2 - l1 + l3), f(l1 + l2 + l3 + 1))
    square *= math.prod(f(l + m) * f(l - m) for l, m in (one, other, both))
    total = Fraction(0)
    for k in range(l1 + l2 - l3 + 1):
        below = (k, l1 + l2 - l3 - k, l1 - m1 - k, l2 + m2 - k, l3 - l2 + m1 + k, l3 - l1 - m2 + k)
        if min(below) >= 0:
            total += Fraction((-1) ** k, math.prod(map(f, below)))
    return math.copysign(math.sqrt(square * total**2), total)


def _of_complex(m: int) -> list[tuple[int, complex]]:
    """A row of U: the orders of the complex harmonics that a real one is made of, and their factors."""
    if m == 0:
        return [(0, 1 + 0j)]
    k, factor = abs(m), (1 if m > 0 else -1j) / math.sqrt(2)
    return [(k, (-1) ** k * factor), (-k, factor if m > 0 else -factor)]


def _placed(path: Path, C: np.ndarray, L1: int, L2: int) -> np.ndarray:
    """The C of a path among all orders of all degrees of x and y."""
    around = [(0, 0), *((l**2, (L + 1) ** 2 - (l + 1) ** 2) for l, L in zip(path[:2], (L1, L2), strict=True))]
    return np.pad(C, around)


@called_as(tensor_product)
def reference(params: tuple[()], x: PairOfIrreps, left, right, out, even, apart) -> Array:
    """Path by path; each C by lowering the highest state, in matrices of complex numbers."""
    c, e = x.x.shape[-2], x.y.shape[-2]
    y = jnp.repeat(x.y, c // e, -2)
    ended = []
    sums = [jnp.zeros((*x.x.shape[:-1], 2 * l3 + 1), x.x.dtype) for l3 in range(out + 1)]
    for l1 in range(left + 1):
        for l2 in range(right + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, out) + 1):
                if even and (l1 + l2 + l3) % 2:
                    continue
                C = jnp.asarray(_by_lowering(l1, l2, l3), x.x.dtype)
                a, b = x.x[..., l1**2 : (l1 + 1) ** 2], y[..., l2**2 : (l2 + 1) ** 2]
                t = jnp.einsum("kij,...i,...j->...k", C, a, b)
                if x.w is not None:
                    t = t * x.w[..., len(ended), None]
                ended.append(t)
                sums[l3] = sums[l3] + t
    return jnp.concatenate(ended if apart else sums, -1)


def _by_lowering(l1: int, l2: int, l3: int) -> np.ndarray:
    def lowering(l):
        return np.diag([math.sqrt(l * (l + 1) - m * (m - 1)) for m in range(1 - l, l + 1)], 1)

    def real(l):
        U = np.zeros((2 * l + 1, 2 * l + 1), complex)
        U[l, l] = 1
        for m in range(1, l + 1):
            U[l + m, [l + m, l - m]] = (-1) ** m / math.sqrt(2), 1 / math.sqrt(2)
            U[l - m, [l + m, l - m]] = -1j * (-1) ** m / math.sqrt(2), 1j / math.sqrt(2)
        return U

    n1, n2 = 2 * l1 + 1, 2 * l2 + 1
    down = np.kron(lowering(l1), np.eye(n2)) + np.kron(np.eye(n1), lowering(l2))
    M = np.add.outer(np.arange(-l1, l1 + 1), np.arange(-l2, l2 + 1)).reshape(-1)
    state = np.zeros(n1 * n2)
    state[l3 == M] = np.linalg.svd(down.T[:, l3 == M])[2][-1]  # which nothing raises
    states = [state * np.sign(state[l3 == M][-1])]  # positive where m1 = l1
    for m in range(l3, -l3, -1):
        states.append(down @ states[-1] / math.sqrt(l3 * (l3 + 1) - m * (m - 1)))
    C = np.stack(states[::-1]).reshape(-1, n1, n2)
    C = np.einsum("kc,cab,ia,jb->kij", real(l3), C, real(l1).conj(), real(l2).conj())
    return (1j ** (l3 - l1 - l2) * C).real


RULE = Rule(
    "tensor_product",
    tensor_product,
    reference,
    cases=(
        Case(
            "channels that share a direction, weights",
            specs(PairOfIrreps, Real("N c p"), Real("N e q"), Real("N c paths")),
            {"left": 1, "right": 2, "out": 2},
            fixed={"p": 4, "e": 1, "q": 9, "paths": 9},
            timed={"N": 512, "c": 32, "p": 4, "e": 1, "q": 9, "paths": 9},
        ),
        Case(
            "each its own, paths apart",
            specs(PairOfIrreps, Real("c p"), Real("c q"), None),
            {"left": 2, "right": 1, "out": 3, "apart": True},
            fixed={"c": 2, "p": 9, "q": 4},
        ),
        Case(
            "groups of channels, even paths",
            specs(PairOfIrreps, Real("B T c p"), Real("B T e q"), None),
            {"left": 2, "right": 2, "out": 1, "even": True},
            fixed={"B": 2, "c": 4, "p": 9, "e": 2, "q": 9},
        ),
    ),
    cite="Racah, 'Theory of complex spectra II' (1942), equation 16; as in arXiv:1802.08219 (tensor field networks), "
    "arXiv:2207.09453 (e3nn) and arXiv:2206.07697 (MACE)",
    covers=("clebsch_gordan", "equivariant product", "bispectrum", "o3.TensorProduct", "FullTensorProduct"),
)
