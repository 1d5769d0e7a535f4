"""softmax_cross_entropy: how many nats the target is from the softmax of the logits.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with logits z of shape (..., C), n running over all leading axes (the positions), c and k over the classes,
for each position a target distribution t, which a label y stands for as t_c = [c = y], and for each class a weight w_c
(1 if nothing is said):

    q_nc = w_c ((1 - s) t_nc + s / C)         s: `smoothing`              (..., C)
    l_n  = log sum_c exp(z_nc)                                            (...,)
    J    = 1/N sum_n (sum_c q_nc (l_n - z_nc) + v_n a l_n^2)              a: `z_loss`, J: ()

A position with a label counts by its class's weight, v_n = w_y, and N = sum_n v_n: the mean is weighted, as PyTorch's.
Positions whose label is `ignored` add nothing, neither to the sum nor to N. Of a sum of 0 the N is 1, so that a batch
of nothing but ignored labels has J = 0 and a gradient of 0. With distributions v_n = 1, and N counts the positions.

Differential, with p_nc = exp(z_nc - l_n), delta l_n = sum_c p_nc delta z_nc and Q_n = sum_c q_nc (1 for a label
without weights; for a dense target nothing is assumed):

    delta J = 1/N sum_nc ((Q_n + 2 v_n a l_n) p_nc - q_nc) delta z_nc + w_c (1 - s) (l_n - z_nc) delta t_nc

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dz_nc = g_n ((Q_n + 2 v_n a l_n) p_nc - q_nc)                         (..., C)
    dt_nc = g_n w_c (1 - s) (l_n - z_nc)          None for labels         (..., C)

Both are 0 where the label is ignored. Once more, with a = 0, the Hessian in z has for each position the block
Q_n / N (diag p_n - p_n p_n^T), 0 too where the label is ignored; its square root stands in `bpref.formulas.loss.root`.

Cached: the logits and the target; labels as they came. The softmax is made again from them in the backward. To
keep p as well would double the cache, and in half precision round every probability; a loss is where the sweep
turns round, so that under one jit XLA merges the second softmax with the first. Compiled apart from its forward, the
backward pays for it with two more passes over the logits.

Numerical care:
- Exponentials are of d = z - m, m the position's largest logit, and never overflow.
- With a label, 1 - p_y cancels once the network is confident. What is summed is R = sum over c != y of exp(d_c),
  the classes other than y; with E = exp(d_y) the sum over all is S = R + E, and

      p_y - 1 = -R / S          l - z_y = log(1 + R / E)

  have full relative precision, where the textbook forms lose it as R / S becomes small, and are 0 below 1e-7.
- p is exp(d) / S and not exp(z - l), which inherits the rounding of l: 1e-3 for logits of 1e4 in float32.
- Half precision is computed and summed in float32 and rounded once.
- A logit of -inf is a class of probability 0: it has a gradient of 0 (-q_c in general) and, where q_c is 0, no
  loss, since 0 times infinity is taken as 0. A position whose logits are all -inf, or of
  which one is +inf, has no softmax, and is NaN.

There is no kink: m is a shift that cancels, and is held constant.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_non_negative, require_share
from bpref.dtypes import widen, widen_integers
from bpref.formulas.loss.counted_labels import require_counting
from bpref.formulas.loss.labels import is_label, is_own, nats, own_score, sum_of_others
from bpref.formulas.loss.root import softmax_root
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as


class Classification(NamedTuple):
    logits: Float[Array, "*n C>0"]
    target: Int[Array, "*n"] | Float[Array, "*n C"]


def softmax_cross_entropy(
    smoothing: float = 0.0,
    ignored: int | None = None,
    z_loss: float = 0.0,
    class_weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> Layer[tuple[()], tuple[Array, Array], Reals, Classification]:
    """J = mean over the positions of -sum_c q_c log softmax(z)_c, and z_loss times logsumexp(z)^2.

    Args:
      smoothing: s in [0, 1]; the target t becomes q = (1 - s) t + s / C, as in `optax.smooth_labels`.
      ignored: a label, such as -1, whose positions give no loss and no gradient, and do not count in the mean.
      z_loss: the weight of the squared log-sum-exp, which keeps logits from drifting (PaLM: 1e-4).
      class_weights: w, how much each class counts, C numbers; of labels the mean is weighted by them as well. An array
        that is traced is taken as it is: its values cannot be seen.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(logits, target)` and y the scalar J, or the terms (...), in at least float32: the
      nats of each position, times its weight, and 0 of an ignored one. The logits are
      `(..., C)`; the target is integer labels `(...)`, whose cotangent is None, or distributions `(..., C)` of the
      logits' dtype: the dtype tells which.

      A label outside `[0, C)` cannot be seen while tracing. It is never silent: J is NaN, and so is the gradient
      of that position's logits (of no other), which tells where it stands.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; there are no classes; a mean is over no
        positions.
      TypeError: x is no pair; the logits are not floating-point; the target is neither integer nor of the logits'
        dtype; `ignored` is given with distributions.
    """
    who = "softmax_cross_entropy"
    smoothing = require_share(who, "smoothing", smoothing)
    z_loss = require_non_negative(who, "z_loss", z_loss)
    J_of = require_reduction(who, reduction)
    counting = require_counting(who, ignored, class_weights)
    ignored, w, _weighted, _unless_ignored = counting.ignored, counting.w, counting.weighted, counting.unless_ignored

    def forward(params, x: Classification):
        logits, target = x
        counting.require_classes("logits", logits)
        if ignored is not None and not is_label(target):
            raise TypeError(f"{who}: ignored is {ignored}, which needs integer labels; target is {target.dtype}")
        J = _of_labels(logits, target) if is_label(target) else _of_distributions(logits, target)
        return J, x

    def backward(params, cache, dJ):
        adjoint = _from_labels if is_label(cache.target) else _from_distributions
        dlogits, dtarget = adjoint(cache.logits, cache.target, widen(dJ))
        return (), (dlogits.astype(cache.logits.dtype), dtarget)

    def _of_labels(logits, label):
        y = widen_integers(label)
        m, d = _shifted(logits)
        d_y = widen(own_score(y, logits)) - m
        R = sum_of_others(y, logits, jnp.exp(d), lambda z: jnp.exp(widen(z) - m))
        log_S = jnp.log(R + jnp.exp(d_y))
        terms = (1 - smoothing) * nats(R, d_y)
        if z_loss:
            terms += z_loss * (m + log_S) ** 2
        v, N = counting.positions(y, logits)
        terms *= v
        if smoothing:
            terms += smoothing * jnp.mean(_weighted(log_S - d), -1, keepdims=True)
        return J_of.of(_unless_ignored(y, terms)[..., 0], N)

    def _from_labels(logits, label, dJ):
        y = widen_integers(label)
        m, d = _shifted(logits)
        e = jnp.exp(d)
        R = sum_of_others(y, logits, e, lambda z: jnp.exp(widen(z) - m))
        E = jnp.exp(widen(own_score(y, logits)) - m)
        S = R + E
        v, N = counting.positions(y, logits)
        g = J_of.at_terms(dJ, y.shape, N, below=1)
        pull = v * (2 * z_loss * (m + jnp.log(S))) if z_loss else jnp.zeros_like(S)
        even = smoothing * (1.0 if w is None else w.mean().astype(S.dtype))
        at_y = g * (((pull + even) * E - (1 - smoothing) * v * R) / S)
        rate = g * (((1 - smoothing) * v + even + pull) / S)
        slope = jnp.where(is_own(y, d), at_y, rate * e)
        if smoothing:
            slope -= g * _weighted(jnp.full_like(d, smoothing / d.shape[-1]))
        return _unless_ignored(y, slope), None

    def _of_distributions(logits, t):
        m, d = _shifted(logits)
        q = _smooth(t)
        log_S = jnp.log(jnp.sum(jnp.exp(d), -1, keepdims=True))
        terms = jnp.sum(q * jnp.where((q == 0) & jnp.isinf(d), 0, log_S - d), -1, keepdims=True)
        if z_loss:
            terms += z_loss * (m + log_S) ** 2
        return J_of.of(terms[..., 0])

    def _from_distributions(logits, t, dJ):
        m, d = _shifted(logits)
        q = _smooth(t)
        e = jnp.exp(d)
        S = jnp.sum(e, -1, keepdims=True)
        log_S = jnp.log(S)
        Q = jnp.sum(q, -1, keepdims=True)
        p = e / S
        slope = Q * p - q
        if z_loss:
            slope += 2 * z_loss * (m + log_S) * p
        g = J_of.at_terms(dJ, S.shape[:-1], below=1)
        dlogits = g * slope
        dt = g * (1 - smoothing) * _weighted(log_S - d)
        return dlogits, dt.astype(t.dtype)

    def _smooth(t):
        return _weighted((1 - smoothing) * widen(t) + smoothing / t.shape[-1])

    def _counts(cache):
        """The logits, and Q / N."""
        logits, target = cache
        if not is_label(target):
            Q = jnp.sum(_smooth(target), -1)
            return logits, Q / J_of.divisor(Q.shape)
        y = widen_integers(target)
        v, N = counting.positions(y, logits)
        even = smoothing * (1.0 if w is None else w.mean().astype(v.dtype))
        return logits, _unless_ignored(y, ((1 - smoothing) * v + even) / J_of.divisor(y.shape, N))[..., 0]

    root = softmax_root(_counts) if J_of.is_scalar and not z_loss else None
    return Layer(no_params, forward, backward, who, root=root)


def _shifted(logits: Array) -> tuple[Array, Array]:
    """m and d = z - m, in at least float32."""
    z = widen(logits)
    m = lax.stop_gradient(jnp.max(z, -1, keepdims=True))
    return m, z - m


@called_as(softmax_cross_entropy)
def reference(params: tuple[()], x: tuple[Array, Array], smoothing, ignored, z_loss, class_weights, reduction) -> Array:
    import optax

    logits, target = x
    C, dtype = logits.shape[-1], logits.dtype
    w = jnp.ones(C, dtype) if class_weights is None else jnp.asarray(class_weights, dtype)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        t = label = target
        kept, v = True, jnp.ones(target.shape[:-1], dtype)
    else:
        kept = jnp.ones(target.shape, bool) if ignored is None else target != ignored
        label = jnp.where(kept, target, 0)
        t, v = jax.nn.one_hot(label, C, dtype=dtype), jnp.where(kept, w[label], 0)
    if t is not target and not smoothing and class_weights is None:
        terms = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    else:
        terms = optax.softmax_cross_entropy(logits, jnp.broadcast_to(w, t.shape) * optax.smooth_labels(t, smoothing))
    if z_loss:
        terms += v * (z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2)
    return naive_reduction(jnp.where(kept, terms, 0), reduction, v)


_SMOOTHING = Interval(0.0, 0.5, 0.1)
_Z_LOSS = Interval(0.0, 0.1, 1e-4)
_FAR = (1e4, -1e4)
_WEIGHTS = (0.5, 1.0, 2.5)

RULE = Rule(
    "softmax_cross_entropy",
    softmax_cross_entropy,
    reference,
    cases=(
        Case(
            "labels",
            (Real("N C", points=_FAR), Integer("N", 0, "C")),
            never_empty=("N", "C"),
            timed={"N": 256, "C": 8192},
        ),
        Case(
            "labels, smoothing",
            (Real("N C"), Integer("N", 0, "C")),
            {"smoothing": _SMOOTHING, "reduction": "batch_mean"},
            never_empty=("N", "C"),
        ),
        Case(
            "labels, ignored",
            (Real("N C"), Integer("N", 0, "C", points=(-1,))),
            {"ignored": -1, "reduction": "sum"},
            never_empty=("C",),
        ),
        Case("labels, z-loss", (Real("N C"), Integer("N", 0, "C")), {"z_loss": _Z_LOSS}, never_empty=("N", "C")),
        Case(
            "labels, class weights",
            (Real("N C"), Integer("N", 0, "C")),
            {"class_weights": _WEIGHTS},
            never_empty=("N",),
            fixed={"C": len(_WEIGHTS)},
        ),
        Case(
            "sequence, everything",
            (Real("B T C"), Integer("B T", 0, "C", points=(-1,))),
            {"smoothing": _SMOOTHING, "ignored": -1, "z_loss": _Z_LOSS, "class_weights": _WEIGHTS, "reduction": "none"},
            fixed={"C": len(_WEIGHTS)},
        ),
        Case("distributions", (Real("N C"), Real("N C", simplex=True, points=(0.0, 1.0))), never_empty=("N", "C")),
        Case(
            "distributions, not normalised, everything",
            (Real("B T C"), Real("B T C", 0.0, 1.0)),
            {"smoothing": _SMOOTHING, "z_loss": _Z_LOSS, "class_weights": _WEIGHTS, "reduction": "none"},
            fixed={"C": len(_WEIGHTS)},
        ),
        Case("one example", (Real("C"), Integer("", 0, "C")), never_empty=("C",)),
    ),
    cite="Bridle, 'Training stochastic model recognition algorithms as networks' (1990); smoothing: "
    "arXiv:1512.00567, section 7; z-loss: PaLM, arXiv:2204.02311, section 5",
)
