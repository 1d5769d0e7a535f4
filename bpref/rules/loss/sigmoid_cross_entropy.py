"""sigmoid_cross_entropy: binary cross-entropy of logits, a mean over all elements.

Forward, with logits x and targets t of one shape, n elements in all, s(x) = 1 / (1 + exp(-x)):

    J = -1/n sum_i (t_i log s(x_i) + (1 - t_i) log s(-x_i))               J: ()

Every element is an answer of its own (yes or no), so the mean is over all of them, unlike `square`'s. Since
log s(-x) = log s(x) - x, and log s(x) = min(x, 0) - log(1 + exp(-|x|)), each term is

    max(x_i, 0) - x_i t_i + log(1 + exp(-|x_i|))

Differential, with d/dx log s(x) = s(-x) and d/dx log s(-x) = -s(x):

    delta J = 1/n sum_i (((1 - t_i) s(x_i) - t_i s(-x_i)) delta x_i - x_i delta t_i)

The sweep starts with dJ, a scalar. The factor of each perturbation:

    dx_i = dJ ((1 - t_i) s(x_i) - t_i s(-x_i)) / n = dJ (s(x_i) - t_i) / n   x's shape
    dt_i = -dJ x_i / n                                                       t's shape; None for labels

Cached: x and t. s(x) costs one exponential and is made again; keeping it would be as large as x, which dt needs.
Labels are kept as they came.

Numerical care: exp is only taken of -|x|, and log(1 + .) is log1p, so that no logit overflows and a confident right
answer keeps its small loss. dx is computed in its first form: s(x) - 1 would cancel for a large x with t = 1, where
-s(-x) is exact to the last bit. Half precision is computed in float32 and rounded once. An infinite logit makes J
infinite or NaN. There is no kink: max and |.| meet at x = 0 in a smooth sum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.dtypes import require_floating, widen
from bpref.layer import Layer, no_params
from bpref.pairs import as_pair, require_batch, require_one_dtype, require_one_shape
from bpref.rule import Case, Integer, Real, Rule


class SigmoidCrossEntropyCache(NamedTuple):
    logits: Float[Array, "..."]
    target: Float[Array, "..."] | Int[Array, "..."] | Bool[Array, "..."]


def sigmoid_cross_entropy() -> Layer:
    """J = mean of -(t log s(x) + (1 - t) log s(-x)), s the logistic function.

    Returns:
      A layer with params `()`, x `(logits, target)` of one shape, and y the scalar J in the logits' dtype. The
      target is a probability in [0, 1] of the logits' dtype, or an integer or boolean label 0 or 1, whose
      cotangent is None. Values outside are not looked for: the formula is applied to them.

    Raises:
      ValueError: logits and target differ in shape; there are no elements.
      TypeError: x is no pair; the logits are not floating-point; a floating target has another dtype.
    """
    who = "sigmoid_cross_entropy"

    def forward(params, pair):
        x, t = as_pair(who, pair)
        require_floating(who, "logits", x)
        require_one_shape(who, "logits", x, t)
        if not _is_label(t):
            require_one_dtype(who, "logits", x, t)
        n = require_batch(who, x.size)
        cache = SigmoidCrossEntropyCache(x, t)
        x, t = _in_wide(cache)
        J = jnp.sum(jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(jnp.minimum(x, -x)))) / n
        return J.astype(cache.logits.dtype), cache

    def backward(params, cache, dJ):
        x, t = _in_wide(cache)
        g = widen(dJ) / x.size
        dx = g * ((1 - t) * jax.nn.sigmoid(x) - t * jax.nn.sigmoid(-x))
        dt = None if _is_label(cache.target) else (-g * x).astype(cache.target.dtype)
        return (), (dx.astype(cache.logits.dtype), dt)

    return Layer(no_params, forward, backward, who)


def _is_label(t: Array) -> bool:
    return t.dtype == bool or jnp.issubdtype(t.dtype, jnp.integer)


def _in_wide(cache: SigmoidCrossEntropyCache) -> tuple[Array, Array]:
    x = widen(cache.logits)
    return x, cache.target.astype(x.dtype)


def reference(params: tuple[()], x: tuple[Array, Array]) -> Array:
    import optax

    return jnp.mean(optax.sigmoid_binary_cross_entropy(*x))


_FAR = (100.0, -100.0, 1e4, -1e4)

RULE = Rule(
    "sigmoid_cross_entropy",
    sigmoid_cross_entropy,
    reference,
    cases=(
        Case("labels", (Real("N", points=_FAR), Integer("N", 0, 2)), never_empty=("N",)),
        Case("probabilities", (Real("N d", points=(0.0, *_FAR)), Real("N d", 0.0, 1.0)), never_empty=("N", "d")),
        Case("sequence", (Real("B T d"), Integer("B T d", 0, 2)), never_empty=("B", "T", "d")),
    ),
    cite="Goodfellow, Bengio and Courville, 'Deep Learning' (2016), section 6.2.2.2",
)
