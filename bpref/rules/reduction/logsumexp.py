"""logsumexp: the logarithm of the sum of exponentials over some axes, a smooth maximum.

Forward, with i over the reduced axes:

    m = max_i x_i
    S = sum_i exp(x_i - m)
    y = log sum_i exp(x_i) = m + log S                                    x's shape without the reduced axes

Differential: delta y = sum_i exp(x_i) delta x_i / sum_j exp(x_j), the softmax of x as weights:

    dx_i = dy p_i,      p_i = exp(x_i - y) = exp(x_i - m) / S             x's shape

m is a shift that cancels, and is held constant.

Cached: x and S. p would be as large as x, and in half precision rounded; m is found again, which under one jit is no
work, and is else one pass over x without an exponential.

Numerical care:
- Exponentials are of x - m, at most 1, and never overflow.
- p is exp(x - m) / S and not exp(x - y), which inherits the rounding of y: 1e-3 for values of 1e4 in float32.
- Values of -inf add nothing and have a gradient of 0. Where all are -inf, or where there is none, y is -inf, and dx is
  0 (`jax.nn.logsumexp` gives NaN): nothing finite that is done to -inf changes the sum.
- A value of inf makes y inf; its own gradient is NaN, that of finite values beside it 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.norm.reduced import Axis, numbered, require_axes, restored, without
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class LogsumexpCache(NamedTuple):
    x: Float[Array, "..."]
    S: Float[Array, "..."]


def logsumexp(axis: Axis = None, keepdims: bool = False) -> Layer[tuple[()], Array, Reals, LogsumexpCache]:
    """y = log of the sum of exp(x) over some axes.

    Args:
      axis: one axis, several, or None for all of them.
      keepdims: whether y keeps the reduced axes, with size 1.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. Where all values are -inf
      y is -inf, and dx is 0.

    Raises:
      ValueError: x has no such axis, or an axis is named twice.
      TypeError: x is not floating-point.
    """
    who = "logsumexp"
    require_flags(who, keepdims=keepdims)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        m = shift_of(x, axes)
        S = jnp.sum(jnp.exp(widen(x) - m), axes, keepdims=True)
        return cast(without(m + jnp.log(S), axes, keepdims), x.dtype), LogsumexpCache(x, S)

    def backward(params, cache, dy):
        x, S = cache
        axes = numbered(axis, x.ndim)
        share = restored(widen(dy), axes, keepdims) / jnp.where(S == 0, 1, S)
        return (), cast(share * jnp.exp(widen(x) - shift_of(x, axes)), x.dtype)

    def shift_of(x, axes):
        """m, or 0 where that is infinite."""
        m = lax.stop_gradient(jnp.max(x, axes, keepdims=True, initial=-jnp.inf))
        return widen(jnp.where(jnp.isfinite(m), m, 0))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    return jax.nn.logsumexp(x, axis=axis, keepdims=keepdims)


_FAR = (1e4, -1e4, -jnp.inf)

RULE = Rule(
    "logsumexp",
    logsumexp,
    reference,
    cases=(
        Case("last axis", Real("N d", points=_FAR), {"axis": -1}, timed={"N": 512, "d": 1024}),
        Case("several axes, kept", Real("N d T"), {"axis": (0, 2), "keepdims": True}),
        Case("of all", Real("N d")),
    ),
    cite="Blanchard, Higham and Higham, 'Accurately computing the log-sum-exp and softmax functions' (2021), eq. 3",
)
