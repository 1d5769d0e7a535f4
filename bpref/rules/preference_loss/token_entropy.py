"""token_entropy: how undecided a policy is about each token, the bonus that keeps it exploring.

Forward, with logits z of shape (..., C), n running over the positions, c and k over the classes, and t the temperature:

    p_nc = exp(z_nc / t) / sum_k exp(z_nk / t)                            (..., C)
    H_n  = -sum_c p_nc log p_nc                                           (...,)

from 0, all probability on one class, to log C.

Differential, with delta p_c = p_c / t (delta z_c - sum_k p_k delta z_k), whose sum over c is 0:

    delta H_n = -sum_c log p_nc delta p_nc = -1/t sum_c p_nc (log p_nc - sum_k p_nk log p_nk) delta z_nc

The factor of each perturbation:

    dz_nc = -dH_n / t p_nc (log p_nc + H_n)                               (..., C)

Cached: the logits as they came. The softmax is made again from them.

Numerical care, with m the largest z of a position, d = (z - m) / t, a count K of classes with d = 0, and the mean
D = sum_c p_c d_c, a sum of numbers of one sign:

- exponentials of d never overflow. S = K + R is their sum, R that over the classes below m. What is subtracted is z and
  not z / t: that is 0 exactly where z is m, whichever way a quotient is rounded where it is made once more.
- H = log S - D, a sum of two positive numbers. log S is log1p(K - 1 + R): near a decided policy, where S is 1 + R, the
  logarithm of S has lost R.
- log p_c + H = d_c - D, in which log S has cancelled: of the largest class it is -D, small and precise, where log p + H
  is a difference of two numbers near 0.
- d is held above -1000, where p is 0 in any dtype: a logit of -inf is a class of probability 0, and adds nothing. A
  position whose logits are all -inf is NaN.
- Half precision is computed and summed in float32, and rounded once. There is no kink: m is a shift that cancels, and
  is held constant.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Real, Rule

LOWEST = -1000.0


class TokenEntropyCache(NamedTuple):
    logits: Float[Array, "... C"]


def token_entropy(temperature: float = 1.0) -> Layer[tuple[()], Array, Reals, TokenEntropyCache]:
    """H = -sum_c p_c log p_c with p = softmax(z / t), for each position.

    Args:
      temperature: t, what the logits are divided by.

    Returns:
      A layer with params `()`, x the logits `(..., C)`, and y `(...)` in their dtype, in nats.

    Raises:
      ValueError: the temperature is not positive; there are no classes.
      TypeError: the logits are not floating-point.
    """
    who = "token_entropy"
    temperature = require_positive(who, "temperature", temperature)

    def forward(params, z: Float[Array, "... C>0"]):
        d, e = shifted(z)
        is_largest = d == 0
        # e - 1 is 0 there, but has the slope of e for whoever differentiates this
        K, R = jnp.sum(is_largest, -1, dtype=e.dtype), jnp.sum(jnp.where(is_largest, e - 1, e), -1)
        H = jnp.log1p(K - 1 + R) - jnp.sum(e * d, -1) / (K + R)
        return cast(H, z.dtype), TokenEntropyCache(z)

    def backward(params, cache, dH):
        z = cache.logits
        d, e = shifted(z)
        S = jnp.sum(e, -1, keepdims=True)
        D = jnp.sum(e * d, -1, keepdims=True) / S
        g = widen(dH)[..., None] / temperature
        return (), cast(g * (e / S) * (D - d), z.dtype)

    def shifted(z):
        """d, and exp(d)."""
        z = widen(z)
        d = jnp.maximum((z - lax.stop_gradient(jnp.max(z, -1, keepdims=True))) / temperature, LOWEST)
        return d, jnp.exp(d)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], z: Array, temperature: float = 1.0) -> Array:
    log_p = jax.nn.log_softmax(z / temperature, axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, -1)


_LOGITS = Real("C", -2.0, 2.0)
"""No farther apart: of a policy that is nearly decided the reference has lost the digits, and can be no judge."""

RULE = Rule(
    "token_entropy",
    token_entropy,
    reference,
    cases=(
        Case(
            "sequence",
            _LOGITS._replace(axes="B T C"),
            {"temperature": Interval(0.5, 2.0, 1.0)},
            ("C",),
            timed={"B": 2, "T": 128, "C": 8192},
        ),
        Case("one token", _LOGITS, never_empty=("C",)),
    ),
    cite="Williams and Peng, 'Function optimization using connectionist reinforcement learning algorithms' (1991); "
    "arXiv:1707.06347, equation 9",
    covers=("entropy bonus", "policy entropy"),
)
