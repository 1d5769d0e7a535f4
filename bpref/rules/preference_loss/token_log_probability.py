"""token_log_probability: the log-probability of each token that was sampled, which preference losses are given.

Forward, with logits z of shape (..., C), labels y of shape (...), n running over the positions, c over the classes,
and t the temperature:

    l_n    = log sum_c exp(z_nc / t)                                      (...,)
    logp_n = z_(n, y_n) / t - l_n                                         (...,)

Differential, with p_nc = exp(z_nc / t - l_n) and delta l_n = 1/t sum_c p_nc delta z_nc:

    delta logp_n = 1/t sum_c ([c = y_n] - p_nc) delta z_nc

The factor of each perturbation:

    dz_nc = dlogp_n ([c = y_n] - p_nc) / t                                (..., C)

Labels have the cotangent None.

Cached: the logits and the labels as they came. The softmax is made again from them: under one jit XLA merges its sums
with the forward's, and the pass that writes dz reads the logits anyway.

Numerical care:
- Exponentials are of d = (z - m) / t, m the largest logit, and never overflow. What is subtracted is z and not z / t: a
  quotient may be rounded in two ways where it is made twice, and of 2^31 the difference is no small number.
- 1 - p_y cancels once the policy is sure. With R the sum of exp(d_c) over the classes other than y, E = exp(d_y) and
  S = R + E, 1 - p_y = R / S and logp = -log(1 + R / E) have full relative precision.
- p is exp(d) / S, and not exp(z / t - l), which inherits the rounding of l.
- Half precision is computed and summed in float32, and rounded once. There is no kink: m is a shift that cancels, and
  is held constant.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.loss.labels import is_class, is_own, nats, own_score, sum_of_others
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Interval, Real, Rule


class LogitsAndLabels(NamedTuple):
    logits: Float[Array, "*n C>0"]
    labels: Int[Array, "*n"]


def token_log_probability(temperature: float = 1.0) -> Layer[tuple[()], tuple[Array, Array], Reals, LogitsAndLabels]:
    """logp = log softmax(z / t)_y, for each position.

    Args:
      temperature: t, what the logits are divided by.

    Returns:
      A layer with params `()`, x `(logits, labels)` of shapes `(..., C)` and `(...)`, and y `(...)` in the logits'
      dtype. Labels have the cotangent None. A label outside `[0, C)` has a log-probability of NaN, and so has its row
      of the gradient; no other position has.

    Raises:
      ValueError: the temperature is not positive; shapes do not fit; there are no classes.
      TypeError: x is no pair; the logits are not floating-point; the labels are no integers.
    """
    who = "token_log_probability"
    temperature = require_positive(who, "temperature", temperature)

    def forward(params, x: LogitsAndLabels):
        z, label = x
        _, d_y, R = _shifted(z, label)
        logp = -nats(R, d_y)[..., 0]
        return cast(jnp.where(is_class(label, z), logp, jnp.nan), z.dtype), x

    def backward(params, cache, dlogp):
        z, label = cache
        g = jnp.where(is_class(label, z), widen(dlogp) / temperature, jnp.nan)[..., None]
        e, d_y, R = _shifted(z, label)
        rate = g / (R + jnp.exp(d_y))
        return (), (cast(jnp.where(is_own(label, z), rate * R, -rate * e), z.dtype), None)

    def _shifted(z, label):
        """exp(d), d_y and R."""
        m = lax.stop_gradient(jnp.max(widen(z), -1, keepdims=True))

        def d(z):
            return (widen(z) - m) / temperature

        e = jnp.exp(d(z))
        return e, d(own_score(label, z)), sum_of_others(label, z, e, lambda z: jnp.exp(d(z)))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], temperature: float = 1.0) -> Array:
    z, label = x
    return jnp.take_along_axis(jax.nn.log_softmax(z / temperature, axis=-1), label[..., None], -1)[..., 0]


RULE = Rule(
    "token_log_probability",
    token_log_probability,
    reference,
    cases=(
        Case(
            "sequence",
            (Real("B T C"), Integer("B T", 0, "C")),
            {"temperature": Interval(0.5, 2.0, 1.0)},
            ("C",),
            timed={"B": 2, "T": 128, "C": 8192},
        ),
        Case("one token", (Real("C", points=(1e4, -1e4)), Integer("", 0, "C")), never_empty=("C",)),
    ),
    cite="Bridle, 'Training stochastic model recognition algorithms as networks' (1990); arXiv:1707.06347, equation 1",
)
