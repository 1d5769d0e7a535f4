"""answer_log_probability: that of a whole answer, of its tokens': what preference losses are given.

Forward, with the log-probabilities g of tokens of shape (..., T), a mask m of those that belong to the answer, and
n running over the answers:

    a_n = 1/L_n sum_t m_nt g_nt                                           (...,)

L_n is 1, or with `mean` the number of tokens of the answer, sum_t m_nt (1 if that is 0): the length-averaged form that
`simpo` and `orpo` are given, where `dpo`, `cpo` and `kto` are given sums.

Differential: delta a_n = 1/L_n sum_t m_nt delta g_nt. The factor of the perturbation:

    dg_nt = m_nt da_n / L_n                                               (..., T)

The mask has the cotangent None.

Cached: the mask, a byte for each token. L is counted again.

Numerical care: tokens outside the mask are replaced, not multiplied by 0: padding of any value adds 0 and not NaN. Half
precision is summed in float32, and rounded once. There is no kink.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import of_no_size
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Boolean, Case, Real, Rule


class AnswerTokens(NamedTuple):
    log_probability: Float[Array, "*n T"]
    mask: Bool[Array, "*n T"]


class AnswerLogProbabilityCache(NamedTuple):
    mask: Bool[Array, "... T"]
    like: Float[Array, "0"]


def answer_log_probability(
    mean: bool = False,
) -> Layer[tuple[()], tuple[Array, Array], Reals, AnswerLogProbabilityCache]:
    """a = the sum, or the mean, of the log-probabilities of an answer's tokens.

    Args:
      mean: whether the sum is divided by the number of the answer's tokens.

    Returns:
      A layer with params `()`, x `(log_probability, mask)`, both `(..., T)`, the mask of booleans, and y `(...)` in at
      least float32. The mask has the cotangent None. An answer without tokens has 0, and moves nothing.

    Raises:
      ValueError: shapes differ.
      TypeError: x is no pair; the log-probabilities are not floating-point, or the mask is not of booleans.
    """
    who = "answer_log_probability"
    require_flags(who, mean=mean)

    def forward(params, x: AnswerTokens):
        g, mask = x
        g = jnp.where(mask, widen(g), 0)
        return jnp.sum(g, -1) / _length(mask, g), AnswerLogProbabilityCache(mask, of_no_size(x.log_probability))

    def backward(params, cache, da):
        mask, like = cache
        d = widen(da) / _length(mask, da)
        return (), (cast(jnp.where(mask, d[..., None], 0), like.dtype), None)

    def _length(mask, like):
        return jnp.maximum(jnp.sum(mask, -1, dtype=like.dtype), 1) if mean else jnp.ones((), like.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], mean: bool = False) -> Array:
    g, mask = x
    total = jnp.sum(jnp.where(mask, g, 0), -1)
    return total / jnp.maximum(jnp.sum(mask.astype(g.dtype), -1), 1) if mean else total


_TOKENS = (Real("N T", -8.0, 0.0), Boolean("N T"))

RULE = Rule(
    "answer_log_probability",
    answer_log_probability,
    reference,
    cases=(Case("sum", _TOKENS, timed={"N": 64, "T": 8192}), Case("mean", _TOKENS, {"mean": True})),
    cite="sums: arXiv:2305.18290, equation 7; means: arXiv:2405.14734, equation 4",
    covers=("sequence log-probability", "length-normalized reward"),
)
