"""vocabulary_parallel_cross_entropy: that of the softmax and a label, each device with the logits of some classes.

Forward, with P devices, of which device p holds the logits z_p of C classes, of shape (..., C), the classes from p C
on; n runs over all leading axes (the positions). The labels y, of all P C classes, are alike on all devices:

    m_n = max_p max_c z_pnc                    over all devices           (...,)
    R_n = sum_p sum over c != y of exp(z_pnc - m_n)
    d_n = z_y - m_n                            of the device that has y, 0 on all others, summed
    S_n = R_n + exp(d_n)        l_n = m_n + log S_n                       (...,)
    J   = 1/N sum_n v_n (log S_n - d_n + a l_n^2)       a: `z_loss`       J: ()

v_n is 0 where the label is `ignored` and else 1, and N their sum, or 1 where that is 0.

Differential, with p_pnc = exp(z_pnc - m_n) / S_n the softmax over all classes of all devices:

    delta J = 1/N sum_pnc v_n ((1 + 2 a l_n) p_pnc - [p C + c = y_n]) delta z_pnc

The factor of each perturbation:

    dz_pnc = dJ v_n ((1 + 2 a l_n) p_pnc - [p C + c = y_n]) / N           (..., C)

J and dJ are alike on all devices, and z_p is one device's own. So the forward has two all-reduces, of one number and
then of two for each position: the maximum, and the pair R, d. In the backward nothing crosses: m, S and R say all that
a device has to know of the others.

Cached: logits and labels as they came, and m, S and R, three numbers for each position. The device's part of the
softmax is made again, as in `softmax_cross_entropy`. Without S, the backward would need an all-reduce of its own.

Numerical care: that of `softmax_cross_entropy`. R is the sum of the classes other than y on whichever device they are,
so that p_y - 1 = -R / S and log S - d = log(1 + R / exp(d)) lose nothing once the network is sure; half precision is
computed and summed, over the devices as well, in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_integer_or_none, require_non_negative
from bpref.dtypes import widen, widen_integers
from bpref.formulas.loss.labels import is_class, is_own, nats, own_score, sum_of_others
from bpref.formulas.loss.terms import require_terms
from bpref.layer import Layer, Reals, no_params
from bpref.naive.blocks import whole
from bpref.over_devices import ALIKE, SPLIT, axis_name, laid_out, require_alike
from bpref.rule import Case, Integer, Interval, Real, Rule, Size
from bpref.rules.loss.softmax_cross_entropy import Classification


class VocabularyParallelCache(NamedTuple):
    logits: Float[Array, "... C"]
    target: Int[Array, "..."]
    m: Float[Array, "... 1"]
    S: Float[Array, "... 1"]
    R: Float[Array, "... 1"]


def vocabulary_parallel_cross_entropy(
    axis: str | int, ignored: int | None = None, z_loss: float = 0.0
) -> Layer[tuple[()], tuple[Array, Array], Reals, VocabularyParallelCache]:
    """J = mean over the positions of -log softmax(z)_y, and z_loss times logsumexp(z)^2, z in blocks of classes.

    Args:
      axis: the name of the axis of the mesh, for `jax.shard_map`; or a number P of blocks, all on one device.
      ignored: a label, such as -1, whose positions give no loss and no gradient, and do not count in the mean.
      z_loss: the weight of the squared log-sum-exp, which keeps logits from drifting (PaLM: 1e-4).

    Returns:
      A layer with params `()`, x `(logits, target)` and y the scalar J in at least float32, alike on all devices. The
      logits are `(..., C)`, device p's those of the classes from p C on; the target is integer labels `(...)` from 0
      to P C - 1, alike on all devices, whose cotangent is None. With P blocks on one device, logits `(P, ..., C)`.

      A label that is no class is never silent: J is NaN, and so is the gradient of that position's logits.

    Example:
      >>> layer = bpref.vocabulary_parallel_cross_entropy(axis=2)
      >>> x = jnp.zeros((2, 3, 5)), jnp.array([0, 4, 9])
      >>> J, _, (dlogits, _) = bpref.backpropagate(layer, (), x)

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; there are no positions or no classes; the
        target varies along the axis by its type.
      TypeError: x is no pair; the logits are not floating-point; the target is not of integers.
    """
    who = "vocabulary_parallel_cross_entropy"
    name = axis_name(who, axis)
    z_loss = require_non_negative(who, "z_loss", z_loss)
    ignored = require_integer_or_none(who, "ignored", ignored)

    def forward(params, x: Classification):
        logits, target = x
        require_terms(who, target.size)
        require_alike(who, name, target=target)
        y = _own_label(logits, target)
        m = lax.stop_gradient(lax.pmax(lax.stop_gradient(jnp.max(widen(logits), -1, keepdims=True)), name))

        def exponential(z):
            return jnp.exp(widen(z) - m)

        others = sum_of_others(y, logits, exponential(logits), exponential)
        nearest = widen(own_score(y, logits)) - m
        is_here = is_class(y, logits)[..., None]
        R, d = lax.psum(
            jnp.stack((others + jnp.where(is_here, 0, jnp.exp(nearest)), jnp.where(is_here, nearest, 0))), name
        )
        S = R + jnp.exp(d)
        v, N = _positions(logits, target)
        terms = nats(R, d)
        if z_loss:
            terms += z_loss * (m + jnp.log(S)) ** 2
        return jnp.sum(_unless_ignored(target, v * terms)) / N, VocabularyParallelCache(logits, target, m, S, R)

    def backward(params, cache, dJ):
        logits, target, m, S, R = cache
        y = _own_label(logits, target)
        e = jnp.exp(widen(logits) - m)
        v, N = _positions(logits, target)
        g = v * (widen(dJ) / N) / S
        pull = 2 * z_loss * (m + jnp.log(S))
        slope = jnp.where(is_own(y, e), pull * e - R, (1 + pull) * e)
        return (), (_unless_ignored(target, g * slope).astype(logits.dtype), None)

    def _own_label(logits, target):
        """The number of the label among the device's own classes; of another device's, none of them."""
        return widen_integers(target) - lax.axis_index(name) * logits.shape[-1]

    def _positions(logits, target):
        """v, NaN for a label that is no class; and N."""
        y = widen_integers(target)
        is_known = (y >= 0) & (y < lax.axis_size(name) * logits.shape[-1])
        v = jnp.where(is_known, 1, jnp.full((), jnp.nan, widen(logits).dtype))[..., None]
        if ignored is None:
            return v, target.size
        N = jnp.sum(y != ignored, dtype=v.dtype)
        return _unless_ignored(target, v), jnp.where(N == 0, 1, N)

    def _unless_ignored(target, values):
        return values if ignored is None else jnp.where((widen_integers(target) != ignored)[..., None], values, 0)

    cache = VocabularyParallelCache(SPLIT, ALIKE, ALIKE, ALIKE, ALIKE)
    layer = Layer(no_params, forward, backward, who)
    return laid_out(layer, axis, params=ALIKE, x=Classification(SPLIT, ALIKE), cache=cache, y=ALIKE)


def reference(
    params: tuple[()], x: tuple[Array, Array], axis: str | int, ignored: int | None = None, z_loss: float = 0.0
) -> Array:
    import optax

    logits, target = whole(x[0], -1), x[1]
    kept = jnp.ones(target.shape, bool) if ignored is None else target != ignored
    terms = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(kept, target, 0))
    terms += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return jnp.sum(jnp.where(kept, terms, 0)) / jnp.maximum(jnp.sum(kept, dtype=logits.dtype), 1)


_NOT_EMPTY = ("P", "N", "C")
_HYPER = {"axis": Size("P")}

RULE = Rule(
    "vocabulary_parallel_cross_entropy",
    vocabulary_parallel_cross_entropy,
    reference,
    cases=(
        Case(
            "labels",
            (Real("P N C", points=(1e4, -1e4)), Integer("N", 0, "C")),
            _HYPER,
            _NOT_EMPTY,
            timed={"P": 4, "N": 256, "C": 2048},
        ),
        Case(
            "sequences, ignored, z-loss",
            (Real("P B T C"), Integer("B T", 0, 6, points=(-1, 5))),
            {**_HYPER, "ignored": -1, "z_loss": Interval(0.0, 0.1, 1e-4)},
            ("B", "T"),
            fixed={"P": 2, "C": 3},
        ),
    ),
    cite="Shoeybi et al., 'Megatron-LM', arXiv:1909.08053, section 3; z-loss: PaLM, arXiv:2204.02311, section 5",
    covers=("parallel_cross_entropy", "sharded_cross_entropy"),
)
