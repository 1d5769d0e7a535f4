"""ctc: how unlikely a labelling is, summed over all ways of spreading it over the frames.

Of each example, the frames t = 1..T have logits z over C classes, one of which is the blank, p = softmax(z), and there
are labels l_1..l_U, U <= T. A path is one class for each frame; B(path) merges equal neighbours, then removes blanks.

    J = -log P,   P = sum over the paths with B(path) = l of prod_t p_t(path_t)                             J: (B,)

Forward: a path stands, after each frame, in one of 2 U + 1 states: f_u, a blank after u labels (u = 0..U), or e_u, on
the label u. Let f and e stand for the probability of all beginnings that end there; before the first frame f_0 = 1.
With c_u = f_u + e_u, what has passed u labels, every frame makes of these (r_u says that l_u = l_{u-1}: then
a blank has to lie between)

    f_u <- p(blank) c_u                                                                                 (B, U + 1)
    e_u <- p(l_u) (e_u + (f_{u-1} if r_u else c_{u-1}))                                                     (B, U)

and P = c_U after the last.

Differential: P is linear in each frame's probabilities. So delta log P = sum_ts g_ts delta log p_t(class of s), where
g_ts, g^f_u or g^e_u, is the probability that a path of these labels stands in s after frame t. With delta log p_k =
delta z_k - sum_j p_j delta z_j:

    dz_tk = dJ (p_tk - sum over the states s of class k of g_ts)                                         (B, T, C)

and exactly 0 at frames beyond an example's length. After the last frame g is f_U / c_U and e_U / c_U. No endings have
to be summed up: which way a path has come to a state does not depend on how it goes on. Down from frame t, with f, e,
c of all beginnings before it, m_u = g^e_u - s_u what has come to label u from before it, and m_{U+1} = 0,

    s_u = g^e_u e_u / (e_u + (f_{u-1} if r_u else c_{u-1}))        h_u = g^f_u + (0 if r_{u+1} else m_{u+1})
    g^f_u <- h_u f_u / c_u + (m_{u+1} if r_{u+1} else 0)           g^e_u <- s_u + h_u e_u / c_u

and exactly 0 at frames beyond an example's length. Labels and lengths have no cotangent.

What has no path, P = 0: labels (and blanks between equal ones) that do not fit in the frames, a label that is the
blank, a label that is no class. J = +inf, which is never silent, and the gradient is 0, not NaN. No frames and no
labels: P = 1. A length beyond its array is the array's, a negative one is 0.

Cached: the logits, f and e before each frame, as logarithms, f_U / c_U after the last, and whether P > 0. p is made
again. Autodiff keeps every logarithm's and every maximum's operands.

Numerical care:
- All in logarithms: with confident logits a frame's probabilities are apart by more than float32's range. Each frame's
  largest state is subtracted and added up apart: errors are those of numbers near 0, and not of log P, which is
  hundreds. g is divided by its own sum at every frame: it would drift from 1 by the rounding of each.
- Where a class is all but certain p - g is the difference of two numbers near 1: minus the sum of all others' dz.
- A logarithm of p is (z - m) - log S, m the frame's largest logit: z - logsumexp(z) has the rounding of what all
  logits share. J is at least 0.
- log 0 is -1e30, so that no difference is NaN. A NaN within an example's lengths makes its J and gradient NaN, and is
  harmless beyond them. Half precision is computed in float32.
- The sums over labels of one class are a product with their one-hot rows, not a scatter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import require_count
from bpref.dtypes import cast, wide_dtype, widen, widen_integers
from bpref.formulas.lengths import require_label, used, within
from bpref.formulas.log_space import LOG_ZERO, balanced, is_possible, known, log_add, log_normaliser, nats
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.loops import scan
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Real, Rule


class Labelled(NamedTuple):
    logits: Float[Array, "B T C>1"]
    labels: Int[Array, "B U"]
    logit_lengths: Int[Array, " B"]
    label_lengths: Int[Array, " B"]


class CTCCache(NamedTuple):
    x: Labelled
    f: Float[Array, "T B U+1"]
    e: Float[Array, "T B U"]
    ends_blank: Float[Array, " B"]
    possible: Bool[Array, " B"]


def ctc(
    blank: int = 0, reduction: str = "none"
) -> Layer[tuple[()], tuple[Array, Array, Array, Array], Reals, CTCCache]:
    """J = -log of the probability that the frames' classes, merged and without blanks, are the labels.

    Args:
      blank: the class that stands for no label.
      reduction: "none" for one number for each example, their "mean" or "sum", or "batch_mean", which is the mean.

    Returns:
      A layer with params `()`, x `(logits, labels, logit_lengths, label_lengths)`: `(B, T, C)`, integers `(B, U)`,
      `(B,)` and `(B,)`; y is J `(B,)`, or `()`, in at least float32. What has no path (too many labels for the
      frames, a label that is the blank or no class) has J = +inf and a gradient of 0.

    Raises:
      ValueError: blank is no class; shapes do not fit; there is no class but the blank; a mean, and B is 0.
      TypeError: x is no such tuple; the logits are not floating-point; labels or lengths are not integers.
    """
    who = "ctc"
    J_of = require_reduction(who, reduction)
    blank = require_count(who, "blank", blank)

    def forward(params, x: Labelled):
        logits, labels = x.logits, widen_integers(x.labels)
        B, T, C = logits.shape
        require_label(who, "blank", blank, C)
        J_of.divisor((B,))
        frames, label_lengths = within(x.logit_lengths, T), within(x.label_lengths, labels.shape[1])
        U, dtype = labels.shape[1], wide_dtype(logits.dtype)
        repeated = _repeated(labels)

        def step(before, frame):
            f, e, total = before
            p_blank, p_label, live = frame
            c = _passed(f, e)
            f_next = c + p_blank
            e_next = log_add(e, jnp.where(repeated, f[:, :-1], c[:, :-1])) + p_label
            peak = jnp.maximum(jnp.max(f_next, 1, keepdims=True), jnp.max(e_next, 1, keepdims=True, initial=LOG_ZERO))
            after = f_next - peak, e_next - peak, total + peak
            after = tuple(jnp.where(live, new, old) for new, old in zip(after, before, strict=True))
            return after, before[:2]

        start = jnp.full((B, U + 1), LOG_ZERO, dtype).at[:, 0].set(0), jnp.full((B, U), LOG_ZERO, dtype)
        xs = (*_emissions(logits, labels, label_lengths, blank), used(frames, T, 0)[:, :, None])
        (f, e, total), (fs, es) = scan(step, (*start, jnp.zeros((B, 1), dtype)), xs)
        f_U, c_U = (jnp.take_along_axis(v, label_lengths[:, None], 1) for v in (f, _passed(f, e)))
        log_P = (total + c_U)[:, 0]
        possible = is_possible(log_P)
        J = J_of.of(jnp.where(possible, nats(log_P), jnp.inf))
        ends_blank = jnp.exp(f_U - c_U)[:, 0]
        return J, CTCCache(Labelled(logits, labels, frames, label_lengths), fs, es, ends_blank, possible)

    def backward(params, cache, dJ):
        (logits, labels, frames, label_lengths), fs, es, ends_blank, possible = cache
        B, T, C = logits.shape
        U, dtype = labels.shape[1], fs.dtype
        repeated = _repeated(labels)

        def step(after, frame):
            of_f, of_e = after
            f, e, live = frame
            c = _passed(f, e)
            staying, moving = (part * of_e for part in _parts(e, jnp.where(repeated, f[:, :-1], c[:, :-1])))
            from_f, from_e = _parts(f[:, 1:], e)
            of_c = of_f + _before(jnp.where(repeated, 0, moving))
            passed_f = jnp.concatenate([of_c[:, :1], of_c[:, 1:] * from_f], 1)
            before = passed_f + _before(jnp.where(repeated, moving, 0)), staying + of_c[:, 1:] * from_e
            all_of_it = sum(jnp.sum(v, 1, keepdims=True) for v in before)
            before = tuple(jnp.where(live, v / all_of_it, old) for v, old in zip(before, after, strict=True))
            return before, (jnp.sum(of_f, 1, keepdims=True), of_e)

        last = lax.broadcasted_iota(jnp.int32, (B, U + 1), 1) == label_lengths[:, None]
        end = jnp.where(last, ends_blank[:, None], 0), jnp.where(last, 1 - ends_blank[:, None], 0)[:, 1:]
        xs = fs, es, used(frames, T, 0)[:, :, None]
        _, (of_blank, of_labels) = scan(step, end, xs, reverse=True)
        rows = jax.nn.one_hot(labels, C, dtype=dtype)
        g = jnp.einsum("tbu,buc->btc", of_labels, rows, precision=lax.Precision.HIGHEST)
        g += of_blank.transpose(1, 0, 2) * jax.nn.one_hot(jnp.full((1, 1), blank), C, dtype=dtype)
        p = jax.nn.softmax(widen(logits), -1)
        slope = jnp.broadcast_to(J_of.at_terms(dJ, (B,)), (B,))[:, None, None] * balanced(p - g, p > 0.5)
        counts = used(frames, T)[:, :, None] & possible[:, None, None]
        return (), (cast(jnp.where(counts, slope, 0), logits.dtype), None, None, None)

    return Layer(no_params, forward, backward, who)


def _passed(f: Array, e: Array) -> Array:
    """c_u = f_u + e_u, in logarithms; e_0 is no state."""
    return jnp.concatenate([f[:, :1], log_add(f[:, 1:], e)], 1)


def _parts(a: Array, b: Array) -> tuple[Array, Array]:
    """What exp(a) and exp(b) are of their sum."""
    q = jnp.exp(-jnp.abs(a - b))
    more = 1 / (1 + q)
    return jnp.where(a > b, more, q * more), jnp.where(a > b, q * more, more)


def _before(v: Array) -> Array:
    """Of labels 1..U at u = 0..U - 1, and 0 at U."""
    return jnp.pad(v, ((0, 0), (0, 1)))


def _repeated(labels: Array) -> Array:
    """r_u, False for the first label."""
    return jnp.concatenate([jnp.zeros_like(labels[:, :1], bool), labels[:, 1:] == labels[:, :-1]], 1)


def _emissions(logits: Array, labels: Array, label_lengths: Array, blank: int) -> tuple[Array, Array]:
    """log p(blank): (T, B, 1), and log p(l_u): (T, B, U), that of 0 for what is no label."""
    C, U = logits.shape[2], labels.shape[1]
    z = widen(logits).transpose(1, 0, 2)
    m, log_S = log_normaliser(z)
    at = jnp.broadcast_to(jnp.clip(labels, 0, C - 1)[None], (*z.shape[:2], U))
    is_label = used(label_lengths, U) & (labels >= 0) & (labels < C) & (labels != blank)
    p_label = jnp.where(is_label[None], jnp.take_along_axis(z, at, 2) - m - log_S, LOG_ZERO)
    return known(z[:, :, blank : blank + 1] - m - log_S), known(p_label)


def reference(params: tuple[()], x: tuple[Array, ...], blank: int = 0, reduction: str = "none") -> Array:
    """Graves's alpha over one row of 2 U + 1 states, the labels with blanks between, an example at a time."""
    zero = -1e30

    def one(logits, labels, T, U):
        log_p = jax.nn.log_softmax(logits)
        states = jnp.full(2 * labels.size + 1, blank, labels.dtype).at[1::2].set(labels)
        odd = jnp.arange(states.size) % 2 == 1
        known_class = (states >= 0) & (states < logits.shape[1]) & ~(odd & (states == blank))
        two_back = jnp.concatenate([jnp.full(2, -1, states.dtype), states])[: states.size]
        may_skip = odd & (states != two_back)

        def step(alpha, frame):
            t, row = frame
            padded = jnp.concatenate([jnp.full(2, zero, row.dtype), alpha])
            stay, next_, skip = alpha, padded[1:-1], padded[:-2]
            entered = jnp.logaddexp(jnp.logaddexp(stay, next_), jnp.where(may_skip, skip, zero))
            first = jnp.where(jnp.arange(states.size) < 2, jnp.zeros_like(alpha), zero)
            emitted = jnp.where(known_class, jnp.take(row, states, mode="clip"), zero)
            new = jnp.where(t == 0, first, entered) + emitted
            return jnp.where(t < T, new, alpha), None

        nothing = jnp.where(jnp.arange(states.size) == 0, jnp.zeros(states.size, logits.dtype), zero)
        alpha, _ = lax.scan(step, nothing, (jnp.arange(logits.shape[0], dtype=T.dtype), log_p))
        T, U = jnp.clip(T, 0, logits.shape[0]), jnp.clip(U, 0, labels.size)
        before = jnp.where(U > 0, jnp.take(alpha, jnp.maximum(2 * U - 1, 0)), zero)
        log_P = jnp.logaddexp(alpha[2 * U], before)
        return jnp.where(log_P <= zero / 2, jnp.inf, -log_P)

    losses = jax.vmap(one)(*x)
    return naive_reduction(losses, reduction)


_LENGTHS = Integer("B", 0, "T", points=(99,)), Integer("B", 0, "U", points=(99, 1))
_TIMED = {"B": 16, "T": 128, "C": 64, "U": 24}

RULE = Rule(
    "ctc",
    ctc,
    reference,
    cases=(
        Case("", (Real("B T C"), Integer("B U", 1, "C"), *_LENGTHS), least={"C": 2}, timed=_TIMED),
        Case(
            "mean, another blank",
            (Real("B T C"), Integer("B U", 0, 2), Integer("B", 7, 8), Integer("B", 0, 3)),
            {"blank": 2, "reduction": "mean"},
            ("B",),
            fixed={"T": 7, "C": 3, "U": 3},
        ),
    ),
    cite="Graves, Fernandez, Gomez, Schmidhuber, 'Connectionist temporal classification' (ICML 2006), equations 3-16",
    covers=("connectionist_temporal_classification",),
)
