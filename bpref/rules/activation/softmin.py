"""softmin: y_c = exp(-x_c) / sum_k exp(-x_k) along one axis; what costs least is the likeliest.

Forward, with c and k along the axis and n over all others:

    S_n  = sum_k exp(-x_nk)
    y_nc = exp(-x_nc) / S_n                                               (..., C)

Differential, with delta log S_n = -sum_k y_nk delta x_nk:

    delta y_nc = -y_nc (delta x_nc - sum_k y_nk delta x_nk)

The matrix diag(y) - y y^T is symmetric, so the adjoint is the same map:

    dx_nc = y_nc (s_n - dy_nc),   s_n = sum_k y_nk dy_nk                  x, y, dy, dx: one shape

Cached: y alone, as in `softmax`, of which this is the mirror image: x stands in it as -x, and so does dx.

Numerical care: exponentials are of m - x, m the smallest x, and never overflow; m is a shift that cancels, and is held
constant. Half precision is computed and summed in float32. An x of inf has probability 0 and a gradient of 0; where all
are inf there is no distribution, and y is NaN.

There is no kink.
"""

import jax
from jax import Array
from jaxtyping import Float

from bpref.formulas.caches import OutputCache
from bpref.formulas.indexing.along_axis import require_axis, scalar_as_line
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule
from bpref.rules.activation.softmax import softmax


def softmin(axis: int = -1) -> Layer[tuple[()], Array, Reals, OutputCache]:
    """y = exp(-x) / sum exp(-x) along an axis.

    Args:
      axis: the one along which y sums to 1.

    Returns:
      A layer with params `()`, x of any shape with at least one element along the axis, or a scalar, which is a
      line of one, and y of x's shape.

    Raises:
      ValueError: x has no such axis, or nothing along it.
      TypeError: x is not floating-point.
    """
    who = "softmin"

    mirrored = softmax(axis)

    def forward(params, x: Float[Array, "..."]):
        require_axis(who, x, axis)
        return mirrored.forward((), -x)

    def backward(params, cache, dy):
        return (), -mirrored.backward((), cache, dy)[1]

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def reference(params: tuple[()], x: Array, axis: int = -1) -> Array:
    return jax.nn.softmax(-x, axis)


_X = Real("N C", points=(100.0, -100.0, -1e4))

RULE = Rule(
    "softmin",
    softmin,
    reference,
    cases=(
        Case("", _X, never_empty=("C",), timed={"N": 512, "C": 2048}),
        Case("another axis", Real("B C T"), {"axis": 1}, never_empty=("C",)),
    ),
    cite="torch.nn.Softmin; Bridle, 'Training stochastic model recognition algorithms as networks' (1990)",
)
