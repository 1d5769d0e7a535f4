"""gradient_reversal: the identity forwards; backwards, the cotangent times -l.

Forward, element by element:

    y_i = x_i                                                             x, y: one shape

Differential: delta y_i = delta x_i, and the adjoint of that is the identity. By decision the backward hands on another
cotangent, that of an adversary: what is below the layer climbs the slope of the objective which what is above descends,

    dx_i = -l dy_i                                                        x, y, dy, dx: one shape

No function has y for its value and this for its derivative; "-l x, plus the constant (1 + l) x" has both.

Cached: nothing; the derivative is one number.

Numerical care: dx rounds once, in float32 for half precision. The forward is x exactly, infinite ones too, and tells
whoever differentiates the forward itself what the backward does.
"""

from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite
from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Interval, Real, Rule
from bpref.tangents import by_decision


def gradient_reversal(strength: float = 1.0) -> Layer[tuple[()], Array, Reals, NoCache]:
    """y = x, with the backward dx = -strength dy.

    Args:
      strength: l, finite; 0 stops the gradient.

    Returns:
      A layer with params `()`, x of any shape, and y = x.

    Raises:
      ValueError: `strength` is not finite.
      TypeError: x is not floating-point.
    """
    who = "gradient_reversal"
    strength = require_finite(who, "strength", strength)

    def forward(params, x: Float[Array, "..."]):
        return by_decision(lambda x: x, reversed_)(x), NoCache()

    def backward(params, cache, dy):
        return (), reversed_(dy)

    def reversed_(v):
        return cast(-strength * widen(v), v.dtype)

    return Layer(no_params, forward, backward, who, decoding=each_position)


def reference(params: tuple[()], x: Array, strength: float = 1.0) -> Array:
    return -strength * x + lax.stop_gradient((1 + strength) * x)


RULE = Rule(
    "gradient_reversal",
    gradient_reversal,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 1e4, -1e4)),
            {"strength": Interval(-2.0, 5.0, 0.7)},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="arXiv:1409.7495, equations 7 and 8",
    covers=("domain_adversarial",),
)
