"""fused_linear_log_probability: what a policy's head says of each token, without an array of all logits.

Forward, with rows h of shape (..., d), n running over them, labels y of shape (...), W of shape (V, d), b of shape
(V,), t the soft cap and T the temperature:

    u_nc = sum_j h_nj W_cj + b_c
    z_nc = t tanh(u_nc / t)                   z = u without a soft cap    (N, V), by blocks
    l_n  = log sum_c exp(z_nc / T)            `log_sum_exp`               (...,)
    p_nc = exp(z_nc / T - l_n)
    g_n  = z_(n, y_n) / T - l_n               `log_probability`           (...,)
    H_n  = l_n - 1/T sum_c p_nc z_nc          `entropy`                   (...,)

All three are 0 where the label is `ignored`. H is -sum_c p_nc log p_nc, since log p_nc is z_nc / T - l_n.

Differential, with delta l_n = 1/T sum_c p_nc delta z_nc and delta p_nc = p_nc (delta z_nc / T - delta l_n), whose sum
over c is 0, so that in delta H what l is and what it changes by cancel:

    delta g_n = 1/T sum_c ([c = y_n] - p_nc) delta z_nc
    delta H_n = -1/T sum_c p_nc (log p_nc + H_n) delta z_nc

With the cotangents dg, dH, dl of the three, each (...,), the factor of each perturbation:

    a_nc  = 1/T (1 - (z_nc / t)^2) (dg_n ([c = y_n] - p_nc)
            + p_nc (dl_n - dH_n (log p_nc + H_n)))                        (N, V), by blocks
    dh_nj = sum_c a_nc W_cj                                               (..., d)
    dW_cj = sum_n a_nc h_nj                                               (V, d)
    db_c  = sum_n a_nc                                                    (V,)

Labels have the cotangent None. What is not used has no cotangent and no part in a.

Both sweeps take one block of B classes after the other. With d = (z - m) / T, m the largest z of a row so far, the
forward adds up S = sum_c exp(d_c) and F = sum_c d_c exp(d_c); where m grows to m', with b = (m - m') / T, S becomes
exp(b) S and F exp(b) (F + b S). The backward makes the block's logits again, turns them into a, adds to dh, and writes
the block's rows of dW, each once: four products. The largest array beside W and dW is (B, N).

Cached: h, the labels, and of each row m, S - 1, the mean D = F / S and z_y: four numbers, whatever V is.

Numerical care:
- d <= 0, and no exponential overflows. z is subtracted before the division by T, as in `token_log_probability`.
- Of a policy that is sure S is 1 and a little. Summed is Q = S - 1, to which the largest class gives nothing: then
  H = log1p(Q) - D is a sum of two positive numbers, and l = m / T + log1p(Q).
- 1 - p_y = R / S with R = Q + (1 - E), E = exp(d_y): where y is the largest class 1 - E is 0, and elsewhere R is at
  least 1. g = -log(1 + R / E).
- log p_c + H = d_c - D, in which l has cancelled: of the largest class it is -D, small and precise.
- p is exp(d) / S, and not exp(z / T - l), which inherits the rounding of l. A logit of -inf is a class of probability
  0, and adds nothing.
- Products, sums, logits and all three outputs are in at least float32; each cotangent is rounded once. There is no
  kink: m is a shift that cancels, and is held constant.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_head
from bpref.dtypes import cast
from bpref.formulas.loss.class_blocks import Blocks, Classes, FeaturesAndLabels, flat, peaks_over, pull_logits, shifted
from bpref.formulas.loss.labels import nats
from bpref.layer import Layer
from bpref.naive.dense import naive_logits
from bpref.rule import Case, Integer, Interval, Real, Rule, Size, called_as
from bpref.rules.linear.linear import LinearParams, linear

FusedLinearLogProbabilityParams = LinearParams
"""W of shape (V, d) and b of shape (V,) or None: those of the layer whose logits these are."""


class OfTokens(NamedTuple):
    """Of each token, in at least float32 and in nats."""

    log_probability: Float[Array, "*n"]
    entropy: Float[Array, "*n"]
    log_sum_exp: Float[Array, "*n"]


class FusedLinearLogProbabilityCache(NamedTuple):
    h: Float[Array, "... d"]
    label: Int[Array, "..."]
    largest: Float[Array, "..."]
    others: Float[Array, "..."]
    mean: Float[Array, "..."]
    own: Float[Array, "..."]


def fused_linear_log_probability(
    vocabulary: int,
    bias: bool = False,
    temperature: float = 1.0,
    ignored: int | None = None,
    soft_cap: float | None = None,
    block: int = 1024,
) -> Layer[FusedLinearLogProbabilityParams, tuple[Array, Array], OfTokens, FusedLinearLogProbabilityCache]:
    """log softmax(z / T)_y, its entropy and its log-sum-exp of each token, z = h W^T + b never held all at once.

    What `linear`, `token_log_probability`, `token_entropy` and `logsumexp` give one after the other, for losses of
    policies: `fused_linear_policy_loss` puts one behind it.

    Args:
      vocabulary: the number of classes V.
      bias: whether there is a b.
      temperature: T, what the logits are divided by.
      ignored: a label, such as -100, of tokens that do not count: all three are 0, and h there is not read.
      soft_cap: t, the size that no logit reaches; the logits become t tanh(u / t) (Gemma 2: 30).
      block: how many classes B are taken at once; memory is the number of rows times this.

    Returns:
      A layer with params `FusedLinearLogProbabilityParams(W: (V, d), b: (V,) or None)`, x `(h, labels)` of shapes
      `(..., d)` and `(...)`, and y `OfTokens(log_probability, entropy, log_sum_exp)`, each `(...)` in at least float32.
      Each may be left unused, and has the cotangent `None`. Labels have the cotangent None. W is drawn as in `linear`.
      A label outside `[0, V)` that is not `ignored` has a log-probability of NaN; where that is used, its row of dh,
      and dW and db, are NaN.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit.
      TypeError: x is no pair; h is not floating-point, or not of W's dtype; the labels are no integers.
    """
    who = "fused_linear_log_probability"
    of_head = require_head(who, vocabulary, bias, temperature, ignored, soft_cap, block)
    vocabulary, bias, temperature, ignored, soft_cap, block = of_head
    blocks = Blocks(soft_cap, block, has_total=False)

    def init(key, x):
        return linear(vocabulary, bias).init(key, x[0])

    def forward(params, x: FeaturesAndLabels):
        h, label = x
        A, y = _rows(h, label)
        m, Q, F, own = (s.reshape(label.shape) for s in peaks_over(blocks, Classes(*params), A, y, temperature))
        D, log_S = F / (1 + Q), jnp.log1p(Q)
        d, E = shifted(own, m, temperature)
        y = y.reshape(label.shape)
        g = jnp.where((y >= 0) & (y < vocabulary), -nats(Q + (1 - E), d), jnp.nan)
        of_tokens = (jnp.where(_counts(y), v, 0) for v in (g, log_S - D, m / temperature + log_S))
        return OfTokens(*of_tokens), FusedLinearLogProbabilityCache(h, label, m, Q, D, own)

    def backward(params, cache, dy):
        A, y = _rows(cache.h, cache.label)
        m, Q, D, own = (s.reshape(y.shape) for s in cache[2:])
        counts = _counts(y)
        dg, dH, dl = (None if v is None else jnp.where(counts, v.reshape(y.shape), 0) for v in dy)
        d_y, E = shifted(own, m, temperature)
        rate = 1 / (temperature * (1 + Q))
        even, at_own = jnp.zeros_like(m), jnp.zeros_like(m)
        if dg is not None:
            dg = jnp.where(~counts | ((y >= 0) & (y < vocabulary)), dg, jnp.nan)
            even, at_own = even - dg, at_own + dg * (Q + (1 - E))
        if dl is not None:
            even, at_own = even + dl, at_own + dl * E
        if dH is not None:
            even, at_own = even + dH * D, at_own + dH * (E * (D - d_y))

        def slope_of(z, is_own):
            d, e = shifted(z, m[None], temperature)
            of_class = (rate * even)[None] if dH is None else (rate * even)[None] - (rate * dH)[None] * d
            return e * of_class if dg is None else jnp.where(is_own, (rate * at_own)[None], e * of_class)

        dW, db, dh = pull_logits(blocks, Classes(*params), A, y, slope_of)
        return FusedLinearLogProbabilityParams(dW, db), (cast(dh, cache.h.dtype).reshape(cache.h.shape), None)

    def _counts(y):
        return jnp.ones(y.shape, bool) if ignored is None else y != ignored

    def _rows(h, label):
        A, y = flat(h, label)
        return (A, y) if ignored is None else (jnp.where(_counts(y)[:, None], A, 0), y)

    return Layer(init, forward, backward, who)


@called_as(fused_linear_log_probability)
def reference(params: LinearParams, x: tuple[Array, Array], temperature, ignored, soft_cap, **_) -> OfTokens:
    h, label = x
    z = naive_logits(params.W, params.b, h, soft_cap) / temperature
    log_p = jax.nn.log_softmax(z)
    counts = jnp.ones(label.shape, bool) if ignored is None else label != ignored
    own = jnp.take_along_axis(log_p, jnp.where(counts, label, 0)[..., None], -1)[..., 0]
    of_tokens = own, -jnp.sum(jnp.exp(log_p) * log_p, -1), jax.nn.logsumexp(z, axis=-1)
    return OfTokens(*(jnp.where(counts, v, 0) for v in of_tokens))


_NEAR = Real("N d", -1.0, 1.0)
"""No farther: of a policy that is nearly decided the reference has lost the digits, and can be no judge."""

RULE = Rule(
    "fused_linear_log_probability",
    fused_linear_log_probability,
    reference,
    cases=(
        Case(
            "blocks",
            (_NEAR, Integer("N", 0, "V")),
            {"vocabulary": Size("V"), "temperature": Interval(0.5, 2.0, 1.0), "block": 2},
            ("d", "V"),
        ),
        Case(
            "everything",
            (_NEAR, Integer("N", 0, "V", points=(-1,))),
            {
                "vocabulary": Size("V"),
                "bias": True,
                "temperature": Interval(0.5, 2.0, 0.8),
                "ignored": -1,
                "soft_cap": Interval(2.0, 30.0, 5.0),
                "block": 2,
            },
            ("d", "V"),
        ),
        Case(
            "sequence",
            (_NEAR._replace(axes="B T d"), Integer("B T", 0, "V")),
            {"vocabulary": Size("V")},
            ("d", "V"),
            timed={"B": 4, "T": 256, "d": 128, "V": 16384},
        ),
    ),
    cite="Wijmans et al., 'Cut Your Losses in Large-Vocabulary Language Models', arXiv:2411.09009; entropy: "
    "arXiv:1707.06347, equation 9; soft cap: Gemma 2, arXiv:2408.00118, section 2",
    covers=("fused log-probability", "selective log softmax", "logprobs"),
)
