"""identity: y = x, element by element.

Differential: delta y = delta x, so the adjoint hands the cotangent on:

    dx = dy                                                               x, y, dy, dx: one shape

The activation of a linear output layer, `A[L] = Z[L]`.

Cached: nothing; the derivative is 1 everywhere.

Numerical care: none; the forward and the backward are exact.
"""

from jax import Array
from jaxtyping import Float

from bpref.formulas.caches import NoCache
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Real, Rule


def identity() -> Layer[tuple[()], Array, Reals, NoCache]:
    """y = x for x of any shape; raises `TypeError` when x is not floating-point."""

    def forward(params, x: Float[Array, "..."]):
        return x, NoCache()

    def backward(params, cache, dy):
        return (), dy

    return Layer(no_params, forward, backward, "identity", decoding=each_position)


def reference(params: tuple[()], x: Array) -> Array:
    return x


RULE = Rule(
    "identity",
    identity,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Goodfellow, Bengio and Courville, 'Deep Learning' (2016), section 6.2.2.1",
)
