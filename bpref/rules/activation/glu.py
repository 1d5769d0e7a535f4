"""glu: half of the features, each gated by a function of its partner: the gated linear units.

Forward, with x = (a, b) the two halves of the last axis, as one linear layer of 2 m outputs makes them, and g the gate:

    y_i = a_i g(b_i)                                                      x: (..., 2 m), y: (..., m)

    gate        g         also known as
    sigmoid     1 / (1 + exp(-b))    glu
    identity    b                    bilinear
    relu        max(b, 0)            reglu
    gelu        b P(b)               geglu; the tanh form, and gelu_erf the erf form
    silu        b / (1 + exp(-b))    swiglu
    tanh        tanh(b)

Differential: delta y_i = g(b_i) delta a_i + a_i g'(b_i) delta b_i. The factor of each perturbation:

    da_i = dy_i g(b_i)                                                    (..., m)
    db_i = dy_i a_i g'(b_i)                                               (..., m)
    dx   = (da, db)                                                       (..., 2 m)

g and g' are the activation's own: its forward gives g(b), and its backward multiplies the cotangent dy a by g'(b).

Cached: x alone. g(b) is cheaper to compute again than to keep; products of the halves are not kept.

Numerical care: half precision is computed in float32 throughout and rounded once; what the gate does about its own
tails and kinks holds here, as does what `jax.nn.gelu` loses there: of a negative b near -4 it has
1.3e-11 left in float64, where this has 3e-15.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice
from bpref.dtypes import cast, widen
from bpref.formulas.joined import joined
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.naive.activation import activation
from bpref.rule import Case, Real, Rule
from bpref.rules.activation.gelu import gelu
from bpref.rules.activation.identity import identity
from bpref.rules.activation.relu import relu
from bpref.rules.activation.sigmoid import sigmoid
from bpref.rules.activation.silu import silu
from bpref.rules.activation.tanh import tanh

GATES: dict[str, Callable[[], Layer]] = {f.__name__: f for f in (gelu, identity, relu, sigmoid, silu, tanh)}
GATES["gelu_erf"] = partial(gelu, approximate=False)


class GluCache(NamedTuple):
    x: Float[Array, "... 2*m"]


def glu(gate: str = "sigmoid") -> Layer[tuple[()], Array, Reals, GluCache]:
    """y = a g(b) for the halves a, b of the last axis.

    Args:
      gate: g: "sigmoid", "identity", "relu", "gelu" (tanh form), "gelu_erf", "silu" or "tanh".

    Returns:
      A layer with params `()`, x `(..., 2 m)` and y `(..., m)`.

    Raises:
      ValueError: there is no such gate; the last axis of x cannot be halved.
      TypeError: x is not floating-point.
    """
    require_choice("glu", "gate", gate, sorted(GATES))
    return glu_layer(gate, joined)


def glu_layer(gate: str, join: Callable[[Array, Array], Array]) -> Layer[tuple[()], Array, Reals, GluCache]:
    """`glu`, whose backward puts da and db together by `join`.

    Alone it is fastest with `joined`. Where dx is read by products of matrices, as in `mlp_block`, XLA has all parts of
    that one as arrays, and a concatenation takes a third less memory and no more time.
    """
    who, g = "glu", GATES[gate]()

    def forward(params, x: Float[Array, "... 2*m"]):
        if x.shape[-1] % 2:
            raise ValueError(f"{who}: x has shape {x.shape}, expected (..., 2 m), an even number of features")
        a, b = _halves(x)
        return cast(a * g.forward((), b)[0], x.dtype), GluCache(x)

    def backward(params, cache, dy):
        a, b = _halves(cache.x)
        v = widen(dy)
        g_b, of_gate = g.forward((), b)
        da, db = v * g_b, g.backward((), of_gate, v * a)[1]
        return (), cast(join(da, db), dy.dtype)

    return Layer(no_params, forward, backward, who, decoding=each_position)


def _halves(x: Array) -> tuple[Array, Array]:
    """The two halves of the last axis, in at least float32."""
    m = x.shape[-1] // 2
    return widen(lax.slice_in_dim(x, 0, m, axis=-1)), widen(lax.slice_in_dim(x, m, 2 * m, axis=-1))


def reference(params: tuple[()], x: Array, gate: str = "sigmoid") -> Array:
    a, b = jnp.split(x, 2, -1)
    return a * activation(gate)(b)


_X = Real("N d", points=(0.0, 20.0, -20.0))
_EVEN = {"d": 12}

RULE = Rule(
    "glu",
    glu,
    reference,
    cases=(
        Case("sigmoid", _X, fixed=_EVEN),
        Case("swiglu", _X, {"gate": "silu"}, fixed=_EVEN, timed={"N": 512, "d": 2048}),
        Case("geglu", Real("B T d"), {"gate": "gelu"}, fixed=_EVEN),
        Case("geglu, erf form", _X, {"gate": "gelu_erf"}, fixed=_EVEN),
        Case("reglu", _X, {"gate": "relu"}, fixed=_EVEN),
    ),
    cite="arXiv:1612.08083, equation 1; arXiv:2002.05202, section 2",
    covers=("swiglu", "geglu", "reglu"),
)
