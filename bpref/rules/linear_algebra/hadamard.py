"""hadamard: the Walsh-Hadamard transform along the last axis, its own adjoint.

Forward, with n = 2^p elements along the axis, and k . t the number of places at which both k and t have a binary 1:

    y_k = c sum_t (-1)^(k . t) x_t                                        x, y: (..., n),   c = 1 / sqrt(n), or 1

H = ((-1)^(k . t)) is the p-fold Kronecker product of (1, 1; 1, -1): p steps, each of sums and differences of halves,

    y = (y' + y'', y' - y'')                                              y', y'' the transforms of both halves of x

Differential: delta y = c H delta x. H is symmetric, so that the adjoint is the transform itself:

    dx_t = c sum_k (-1)^(k . t) dy_k                                      (..., n)

With c = 1 / sqrt(n) it is orthogonal, too, and its own inverse: lengths stay as they are, and one element that is far
larger than the others is spread over all of them, as those who quantise wish.

Cached: nothing.

Numerical care: half precision is summed in float32 and rounded once. n log2 n sums in pairs, whose error grows with p.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Real, Rule


def hadamard(orthonormal: bool = True) -> Layer[tuple[()], Array, Reals, NoCache]:
    """y = H x, the Walsh-Hadamard transform of each row.

    Args:
      orthonormal: whether it is divided by sqrt(n), and so its own inverse.

    Returns:
      A layer with params `()`, x `(..., n)`, n a power of 2, and y of x's shape, in the natural (Hadamard) order.

    Raises:
      ValueError: x has no axis, or its last one is no power of 2.
      TypeError: x is not floating-point.
    """
    who = "hadamard"
    require_flags(who, orthonormal=orthonormal)

    def forward(params, x: Float[Array, "*b n>0"]):
        if (n := x.shape[-1]) & (n - 1):
            raise ValueError(f"{who}: x has {n} elements in its last axis, expected a power of 2")
        return transform(x), NoCache()

    def backward(params, cache, dy):
        return (), transform(dy)

    def transform(x):
        n, y = x.shape[-1], widen(x)
        for p in range(n.bit_length() - 1):
            halves = y.reshape(*x.shape[:-1], n >> (p + 1), 2, 1 << p)
            first, second = halves[..., 0, :], halves[..., 1, :]
            y = jnp.stack([first + second, first - second], -2)
        y = y.reshape(x.shape)
        return cast(y / math.sqrt(n) if orthonormal else y, x.dtype)

    return Layer(no_params, forward, backward, who, decoding=each_position)


def reference(params: tuple[()], x: Array, orthonormal: bool = True) -> Array:
    """The product with H, each sign by the parity of k and t's common ones."""
    n = x.shape[-1]
    H = np.array([[(-1) ** (k & t).bit_count() for t in range(n)] for k in range(n)])
    y = jnp.einsum("kt,...t->...k", jnp.asarray(H, x.dtype), x)
    return y / math.sqrt(n) if orthonormal else y


RULE = Rule(
    "hadamard",
    hadamard,
    reference,
    cases=(
        Case("orthonormal", Real("B T n"), fixed={"n": 8}, timed={"B": 8, "T": 128, "n": 1024}),
        Case("signs alone", Real("n"), {"orthonormal": False}, fixed={"n": 4}),
    ),
    cite="Fino and Algazi, 'Unified matrix treatment of the fast Walsh-Hadamard transform' (1976); before quantising: "
    "QuaRot, arXiv:2404.00456",
    covers=("walsh-hadamard", "fwht"),
)
