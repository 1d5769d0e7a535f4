"""fused_linear_policy_loss: a loss of policies on top of the head, from hidden states to J, no logits kept.

Forward, with rows h of shape (..., T, d), labels y of shape (..., T), W and b of the head, L the loss, and m_t whether
token t counts, [y_t != `ignored`]:

    g    = log softmax((h W^T + b) / temperature)_y                       (..., T), 0 where m is False
    a    = sum_t g_t   or   sum_t g_t / sum_t m_t                         (...,)
    J    = L(g, ..., m)                    of "grpo", "gspo" and "ppo", of tokens
    J    = L(a, ...)                       of "kto", of answers
    J    = L(a_0, a_1, ...)                of "dpo", "cpo", "simpo" and "orpo", of pairs: chosen and rejected

It is built of `fused_linear_log_probability`, of `answer_log_probability`, whose mean "simpo" and "orpo" are given and
whose sum all others are, and of L, whose other inputs stand where they stand there. A loss of tokens may have a bonus
for the policy's entropy H, (..., T), which the head gives too, e being `entropy_weight`:

    J    = L(g, ..., m) - e sum_t w_t H_t

with the weights w by which L itself takes the mean of its tokens, 0 where m is False: those of its `normalization`,
and of "gspo" that of the answers' means.

Differential: delta J = <L's dg, delta g>, or <L's da, delta a> with delta a = sum_t m_t delta g_t over the same number,
and delta g is the head's. So the sweep is theirs in reverse. It starts with dJ, a scalar; dg, (..., T), is what L's
backward gives, or of its da what `answer_log_probability`'s gives. The bonus, -e sum_t w_t delta H_t, makes

    dH_t = -e w_t dJ                                                      (..., T)

and dh, dW and db are the backward of `fused_linear_log_probability`, of dg and dH, one sweep over the classes for both.

The log-sum-exp has no cotangent, nor has the entropy where e = 0, and their sums are not made. What L's other inputs
have, None or not, they have here. Labels have the cotangent None.

Cached: what each of the three keeps; the mask is made again of the labels, and w of the mask.

Numerical care: theirs. g is of at least float32, and so is all after it: other inputs may be of another dtype than h,
as log-probabilities of a reference are, and are brought to g's. Kinks: L's.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Inexact, Int, PyTree

from bpref.checks.hyperparameters import is_integer, plain, require_choice, require_head, require_non_negative
from bpref.dtypes import cast, require_floating, widen, widen_integers
from bpref.formulas.loss.clipped_ratio import token_weights, weighted_sum
from bpref.formulas.loss.losses_by_name import made
from bpref.formulas.loss.pairs import of_no_size
from bpref.layer import Layer, Reals
from bpref.naive.reduction import naive_token_mean
from bpref.rule import Boolean, Case, Integer, Interval, Real, Rule, Size, called_as
from bpref.rules.linear.linear import LinearParams
from bpref.rules.preference_loss.answer_log_probability import AnswerLogProbabilityCache, answer_log_probability
from bpref.rules.preference_loss.answer_log_probability import reference as answer_reference
from bpref.rules.preference_loss.cpo import cpo
from bpref.rules.preference_loss.cpo import reference as cpo_reference
from bpref.rules.preference_loss.dpo import dpo
from bpref.rules.preference_loss.dpo import reference as dpo_reference
from bpref.rules.preference_loss.fused_linear_log_probability import (
    FusedLinearLogProbabilityCache,
    fused_linear_log_probability,
)
from bpref.rules.preference_loss.fused_linear_log_probability import reference as head_reference
from bpref.rules.preference_loss.grpo import grpo
from bpref.rules.preference_loss.grpo import reference as grpo_reference
from bpref.rules.preference_loss.gspo import gspo
from bpref.rules.preference_loss.gspo import reference as gspo_reference
from bpref.rules.preference_loss.kto import kto
from bpref.rules.preference_loss.kto import reference as kto_reference
from bpref.rules.preference_loss.orpo import orpo
from bpref.rules.preference_loss.orpo import reference as orpo_reference
from bpref.rules.preference_loss.ppo import ppo
from bpref.rules.preference_loss.ppo import reference as ppo_reference
from bpref.rules.preference_loss.simpo import reference as simpo_reference
from bpref.rules.preference_loss.simpo import simpo

FusedLinearPolicyLossParams = LinearParams
"""W of shape (V, d) and b of shape (V,) or None: those of the layer whose logits these are."""


class FeaturesOfPairs(NamedTuple):
    h: Float[Array, "2 some=*n T d>0"]
    labels: Int[Array, "2 *n T"]


class FeaturesOfJudgedPairs(NamedTuple):
    h: Float[Array, "2 some=*n T d>0"]
    labels: Int[Array, "2 *n T"]
    reference_chosen: Inexact[Array, "*n"]
    reference_rejected: Inexact[Array, "*n"]


class FeaturesOfAnswers(NamedTuple):
    h: Float[Array, "some=*n T d>0"]
    labels: Int[Array, "*n T"]
    reference: Inexact[Array, "*n"]
    mismatched: Inexact[Array, "*n"]
    desirable: Bool[Array, "*n"]


class FeaturesOfGroups(NamedTuple):
    h: Float[Array, "some=*n G>0 T>0 d>0"]
    labels: Int[Array, "*n G T"]
    old: Inexact[Array, "*n G T"]
    reference: Inexact[Array, "*n G T"] | None
    rewards: Inexact[Array, "*n G"]


class FeaturesOfTokens(NamedTuple):
    h: Float[Array, "some=*n T>0 d>0"]
    labels: Int[Array, "*n T"]
    old: Inexact[Array, "*n T"]
    reference: Inexact[Array, "*n T"] | None
    advantages: Inexact[Array, "*n T"]


class Of(NamedTuple):
    """What makes a loss, and what its form on top of a head is given."""

    make: Callable[..., Layer]
    x: type


LOSSES = {
    "cpo": Of(cpo, FeaturesOfPairs),
    "dpo": Of(dpo, FeaturesOfJudgedPairs),
    "grpo": Of(grpo, FeaturesOfGroups),
    "gspo": Of(gspo, FeaturesOfGroups),
    "kto": Of(kto, FeaturesOfAnswers),
    "orpo": Of(orpo, FeaturesOfPairs),
    "ppo": Of(ppo, FeaturesOfTokens),
    "simpo": Of(simpo, FeaturesOfPairs),
}
OF_TOKENS, OF_PAIRS, OF_MEANS = ("grpo", "gspo", "ppo"), ("cpo", "dpo", "orpo", "simpo"), ("orpo", "simpo")
"""Those of tokens, all others being of answers; those of pairs of answers; those of means over an answer's tokens."""


class FusedLinearPolicyLossCache(NamedTuple):
    head: FusedLinearLogProbabilityCache
    loss: PyTree


def fused_linear_policy_loss(
    vocabulary: int,
    loss: str,
    hyper: Mapping[str, float | str | bool | None] | None = None,
    bias: bool = False,
    temperature: float = 1.0,
    ignored: int = -100,
    soft_cap: float | None = None,
    block: int = 1024,
    entropy_weight: float = 0.0,
) -> Layer[FusedLinearPolicyLossParams, tuple[Array | None, ...], Reals, FusedLinearPolicyLossCache]:
    """J of a loss of policies, of hidden states and the head's W.

    Args:
      vocabulary: the number of classes V.
      loss: "cpo", "dpo", "grpo", "gspo", "kto", "orpo", "ppo" or "simpo", the rule of that name.
      hyper: what that rule is made with, such as `{"beta": 0.3}`.
      bias, temperature, soft_cap, block: as in `fused_linear_log_probability`.
      ignored: the label of tokens that belong to no answer: prompts and padding.
      entropy_weight: e, of "grpo", "gspo" and "ppo", what the mean entropy of the policy, in nats and at its
        temperature, is multiplied by before J is less by it.

    Returns:
      A layer with params `FusedLinearPolicyLossParams(W: (V, d), b: (V,) or None)` and y the scalar J, or what the
      loss's `reduction` makes of its terms, in at least float32. x is `(h, labels, ...)`, h `(..., T, d)` and labels
      `(..., T)`, and what the loss is given beside the policy's log-probabilities: for "dpo" `reference_chosen` and
      `reference_rejected`, for "kto" `reference`,
      `mismatched` and `desirable`, for "grpo" and "gspo" `old`, `reference` and `rewards`, for "ppo" `old`, `reference`
      and `advantages`. Of pairs h and labels begin with an axis of two, the chosen and the rejected answers. A mask is
      made of the labels. As the second layer of `objective` h comes from the first, and y is a tuple of the others.

    Raises:
      ValueError: there is no such loss; a hyperparameter is out of its range, or none of the loss's; a loss of answers
        has an entropy_weight; shapes do not fit.
      TypeError: x is no such tuple; dtypes do not fit.

    Example:
      >>> head = fused_linear_policy_loss(32_000, "dpo", {"beta": 0.3})
      >>> J = bpref.objective(body=body, head=head)
      >>> x = ids, (labels, reference_chosen, reference_rejected)   # ids and labels (2, N, T)
    """
    who = "fused_linear_policy_loss"
    of = LOSSES[require_choice(who, "loss", loss, LOSSES)]
    judge = made(who, of.make, hyper)
    if not is_integer(ignored):
        raise ValueError(f"{who}: ignored is {ignored!r}, expected an integer")
    ignored = plain(ignored)
    entropy_weight = require_non_negative(who, "entropy_weight", entropy_weight)
    if entropy_weight and loss not in OF_TOKENS:
        raise ValueError(f"{who}: entropy_weight is {entropy_weight}, which {loss!r}, a loss of answers, does not have")
    normalization = _normalization(loss, hyper)
    of_head = require_head(who, vocabulary, bias, temperature, ignored, soft_cap, block)
    head = fused_linear_log_probability(*of_head)
    answer = answer_log_probability(loss in OF_MEANS)

    def init(key, x):
        return head.init(key, x[:2])

    def forward(params, x):
        # as x's are already: NumPy's in the dtype that JAX has for them
        (g, H, _), head_cache = head.forward(jax.tree.map(jnp.asarray, params), x[:2])
        beside = tuple(_beside(who, name, v, g) for name, v in zip(of.x._fields[2:], x[2:], strict=True))
        mask = _mask(x[1])
        if loss in OF_TOKENS:
            given = (g, *beside, mask)
        else:
            a = answer.forward((), (g, mask))[0]
            given = (*((a[0], a[1]) if loss in OF_PAIRS else (a,)), *beside)
        try:
            J, cache = judge.forward((), given)
        except TypeError as error:  # a reference that has a weight and is missing: the loss alone knows it
            raise TypeError(f"{who}: {error}") from error
        if entropy_weight:
            J -= entropy_weight * weighted_sum(token_weights(mask, normalization, H.dtype), H, mask)
        return J, FusedLinearPolicyLossCache(head_cache, (cache, tuple(_like(v) for v in x[2:])))

    def backward(params, cache, dJ):
        loss_cache, like = cache.loss
        d = judge.backward((), loss_cache, dJ)[1]
        mask, dH = _mask(cache.head.label), None
        if entropy_weight:
            dH = -entropy_weight * widen(dJ) * token_weights(mask, normalization, dJ.dtype)
        if loss in OF_TOKENS:
            dg, *others = d[:-1]
        else:
            da, *others = (jnp.stack(d[:2]), *d[2:]) if loss in OF_PAIRS else d
            dg = answer.backward((), AnswerLogProbabilityCache(mask, of_no_size(da)), da)[1][0]
        dparams, (dh, _) = head.backward(params, cache.head, (dg, dH, None))
        back = (None if v is None or w is None else cast(v, w.dtype) for v, w in zip(others, like, strict=True))
        return dparams, (dh, None, *back)

    def _mask(label):
        return widen_integers(label) != ignored

    forward.__annotations__["x"] = of.x
    return Layer(init, forward, backward, who, couples=judge.couples)


def _normalization(loss: str, hyper: Mapping | None) -> str:
    """How a loss of tokens takes their mean."""
    named = inspect.signature(LOSSES[loss].make).parameters.get("normalization")
    return "sequence" if named is None else (hyper or {}).get("normalization", named.default)


def _beside(who: str, name: str, v: Array | None, g: Array) -> Array | None:
    if v is None or v.dtype == bool:
        return v
    require_floating(who, name, v)
    return cast(v, g.dtype)


def _like(v: Array | None) -> Array | None:
    return of_no_size(v) if v is not None and jnp.issubdtype(v.dtype, jnp.floating) else None


@called_as(fused_linear_policy_loss)
def reference(
    params: LinearParams, x: tuple, loss, hyper, vocabulary, temperature, ignored, soft_cap, entropy_weight, **_
) -> Array:
    of_loss = _reference_of(loss)
    g, H, _ = head_reference(params, x[:2], vocabulary, temperature=temperature, ignored=ignored, soft_cap=soft_cap)
    mask = x[1] != ignored
    beside = [v if v is None or v.dtype == bool else v.astype(g.dtype) for v in x[2:]]
    if loss in OF_TOKENS:
        of_itself = {"normalization": "token" if loss == "ppo" else "sequence"} | (hyper or {})
        bonus = entropy_weight * naive_token_mean(H, mask, of_itself["normalization"])
        return of_loss((), (g, *beside, mask), **(hyper or {})) - bonus
    a = answer_reference((), (g, mask), loss in OF_MEANS)
    return of_loss((), (*(a if loss in OF_PAIRS else (a,)), *beside), **(hyper or {}))


def _reference_of(loss: str) -> Callable[..., Array]:
    return {
        "cpo": cpo_reference,
        "dpo": dpo_reference,
        "grpo": grpo_reference,
        "gspo": gspo_reference,
        "kto": kto_reference,
        "orpo": orpo_reference,
        "ppo": ppo_reference,
        "simpo": simpo_reference,
    }[loss]


def _case(loss: str, beside: tuple = (), hyper: Mapping | None = None, axes: str = "N T", **more) -> Case:
    x = Real(f"{axes} d", -1.0, 1.0), Integer(axes, 0, "V", points=(-1,)), *beside
    of_head = {"vocabulary": Size("V"), "loss": loss, "hyper": hyper, "ignored": -1, "block": 3}
    of_answers = () if loss not in OF_TOKENS else ("T", "G") if "G" in axes else ("T",)
    return Case(loss, x, of_head | more.pop("also", {}), ("N", "d", "V", *of_answers), **more)


_PAIRS = {"axes": "p N T", "fixed": {"p": 2}}
_LOG = Real("N", -8.0, 0.0)
_TOKENS, _GROUPS = Real("N T", -4.0, 0.0), Real("N G T", -4.0, 0.0)

RULE = Rule(
    "fused_linear_policy_loss",
    fused_linear_policy_loss,
    reference,
    cases=(
        _case(
            "dpo",
            (_LOG, _LOG),
            {"beta": 0.3},
            **_PAIRS,
            also={"bias": True, "temperature": Interval(0.5, 2.0, 0.8), "soft_cap": Interval(2.0, 30.0, 5.0)},
        ),
        _case("cpo", **_PAIRS),
        _case("simpo", **_PAIRS),
        _case("orpo", **_PAIRS),
        _case("kto", (_LOG, Real("N"), Boolean("N"))),
        _case(
            "grpo",
            (_GROUPS, _GROUPS, Real("N G")),
            axes="N G T",
            also={"entropy_weight": Interval(0.0, 0.5, 0.1), "temperature": 0.8},
        ),
        _case("gspo", (_GROUPS, None, Real("N G")), {"clip": 0.2, "clip_high": 0.3}, axes="N G T"),
        _case(
            "ppo", (_TOKENS, None, Real("N T")), also={"block": 1024}, timed={"N": 4, "T": 256, "d": 128, "V": 16384}
        ),
    ),
    cite="Wijmans et al., 'Cut Your Losses in Large-Vocabulary Language Models', arXiv:2411.09009; the bonus: "
    "arXiv:1707.06347, equation 9; each loss: its rule",
    covers=("fused linear dpo", "fused linear grpo", "chunked policy loss"),
)
