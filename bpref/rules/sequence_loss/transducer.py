"""transducer: how unlikely labels are, summed over all ways of emitting each of them while reading some frame (RNN-T).

Of each example, the joint network has logits z_tu over V classes for every frame t = 0..T-1 and number u = 0..U of
labels emitted before; p_tu = softmax(z_tu). A path goes from (0, 0) by steps (t, u) -> (t + 1, u), with
b_tu = p_tu(blank), and (t, u) -> (t, u + 1), with y_tu = p_tu(l_u+1); its last step is the blank of (T - 1, U).

    J = -log P,   P = sum over the paths of the product of their steps                                      J: (B,)

Forward: f_tu is the probability of all beginnings up to (t, u), f_00 = 1,

    f_tu = f_t-1,u b_t-1,u + f_t,u-1 y_t,u-1                                                            (B, T, U + 1)

All (t, u) with one t + u = d depend on the diagonal d - 1 alone: T + U steps of one array each. An array is laid out by
diagonals by padding its rows by one and reading them with another width. Endings likewise, from F = 1 after the last
step down, F_tu = b_tu F_t+1,u + y_tu F_t,u+1.

Differential: P is linear in each step's probability; the paths through it weigh, as a part of P,

    B_tu = f_tu b_tu F_t+1,u / P        Y_tu = f_tu y_tu F_t,u+1 / P        g_tu = B_tu + Y_tu

and every path crosses each diagonal once, so that g sums to 1 there. From delta log P = sum_tu B delta log b + Y delta
log y and delta log p_k = delta z_k - sum_j p_j delta z_j,

    dz_tuk = dJ (g_tu p_tuk - [k = blank] B_tu - [k = l_u+1] Y_tu)                                   (B, T, U + 1, V)

one pass over the logits, and exactly 0 beyond an example's lengths. Labels and lengths have no cotangent.

What has no path, P = 0: no frames, since a path ends with a blank; a label that is the blank or no class. J = +inf,
and the gradient is 0, not NaN. A length beyond its array is the array's, a negative one is 0.

Cached: the logits, f by diagonals in logarithms, and whether P > 0. b, y and the softmax are made again, F in the
reverse scan. Autodiff keeps the softmax of all logits beside them, and each sum's operands.

Numerical care: all in logarithms, log 0 being -1e30; each diagonal's largest f is subtracted and added up apart, and B
and Y are normalised by their own sum over the diagonal, so that errors are those of numbers near 0, not of log P. A
logarithm of p is (z - m) - log S, m the largest of its logits, and free of what they share. J is at least 0. Where a
class is all but certain g p - B cancels: dz of the blank is Y p - B (1 - p), 1 - p the sum of all other classes over S,
and that of the label likewise.
A NaN within an example's lengths makes its J and gradient NaN, and is harmless beyond them. Half precision is computed
in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import require_count
from bpref.dtypes import cast, wide_dtype, widen, widen_integers
from bpref.formulas.lengths import require_label, used, within
from bpref.formulas.log_space import LOG_ZERO, is_possible, known, log_add, log_normaliser, nats
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.loops import scan
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Real, Rule


class Labelled(NamedTuple):
    logits: Float[Array, "B T U+1 V>1"]
    labels: Int[Array, "B U"]
    logit_lengths: Int[Array, " B"]
    label_lengths: Int[Array, " B"]


class TransducerCache(NamedTuple):
    x: Labelled
    f: Float[Array, "T+U B U+1"]
    possible: Bool[Array, " B"]


def transducer(
    blank: int = 0, reduction: str = "none"
) -> Layer[tuple[()], tuple[Array, Array, Array, Array], Reals, TransducerCache]:
    """J = -log of the probability that the labels are emitted, summed over when each of them is.

    Args:
      blank: the class that stands for reading the next frame.
      reduction: "none" for one number for each example, their "mean" or "sum", or "batch_mean", which is the mean.

    Returns:
      A layer with params `()`, x `(logits, labels, logit_lengths, label_lengths)`: `(B, T, U + 1, V)`, integers
      `(B, U)`, `(B,)` and `(B,)`; y is J `(B,)`, or `()`, in at least float32. What has no path (no frames, a label
      that is the blank or no class) has J = +inf and a gradient of 0.

    Raises:
      ValueError: blank is no class; shapes do not fit; there is no class but the blank; a mean, and B is 0.
      TypeError: x is no such tuple; the logits are not floating-point; labels or lengths are not integers.
    """
    who = "transducer"
    J_of = require_reduction(who, reduction)
    blank = require_count(who, "blank", blank)

    def forward(params, x: Labelled):
        logits, labels = x.logits, widen_integers(x.labels)
        B, T, U1, V = logits.shape
        require_label(who, "blank", blank, V)
        J_of.divisor((B,))
        frames, label_lengths = within(x.logit_lengths, T), within(x.label_lengths, U1 - 1)
        dtype = wide_dtype(logits.dtype)
        b, y = _steps(logits, labels, frames, label_lengths, blank)

        def step(before, diagonal):
            f, total = before
            b, y, live = diagonal
            emitted = jnp.concatenate([jnp.full((B, 1), LOG_ZERO, dtype), (f + y)[:, :-1]], 1)
            new = log_add(f + b, emitted)
            peak = jnp.max(new, 1, keepdims=True)
            after = new - peak, total + peak
            return tuple(jnp.where(live, v, old) for v, old in zip(after, before, strict=True)), f

        start = jnp.full((B, U1), LOG_ZERO, dtype).at[:, 0].set(0), jnp.zeros((B, 1), dtype)
        live = used(frames + label_lengths, b.shape[0], 0)[:, :, None]
        (f, total), fs = scan(step, start, (b, y, live))
        log_P = (total + jnp.take_along_axis(f, label_lengths[:, None], 1))[:, 0]
        possible = is_possible(log_P) & (frames > 0)
        J = J_of.of(jnp.where(possible, nats(log_P), jnp.inf))
        return J, TransducerCache(Labelled(logits, labels, frames, label_lengths), fs, possible)

    def backward(params, cache, dJ):
        (logits, labels, frames, label_lengths), fs, possible = cache
        B, T, U1, _ = logits.shape
        b, y = _steps(logits, labels, frames, label_lengths, blank)
        dtype = fs.dtype

        def step(F, diagonal):
            f, b, y, live = diagonal
            by_blank = b + F
            by_label = y + jnp.concatenate([F[:, 1:], jnp.full((B, 1), LOG_ZERO, dtype)], 1)
            peak = jnp.max(jnp.maximum(f + by_blank, f + by_label), 1, keepdims=True)
            w_blank, w_label = jnp.exp(f + by_blank - peak), jnp.exp(f + by_label - peak)
            total = jnp.sum(w_blank + w_label, 1, keepdims=True)
            new = log_add(by_blank, by_label)
            return jnp.where(live, new - jnp.max(new, 1, keepdims=True), F), (w_blank / total, w_label / total)

        end = lax.broadcasted_iota(jnp.int32, (B, U1), 1) == label_lengths[:, None]
        live = used(frames + label_lengths, b.shape[0], 0)[:, :, None]
        diagonals = (fs, b, y, live)
        _, parts = scan(step, jnp.where(end, 0, LOG_ZERO).astype(dtype), diagonals, reverse=True)
        of_blank, of_label = (_by_frames(v, T)[..., None] for v in parts)
        k = lax.broadcasted_iota(labels.dtype, logits.shape, 3)
        label = jnp.concatenate([labels, jnp.full((B, 1), -1, labels.dtype)], 1)[:, None, :, None]
        is_blank, is_label = k == blank, k == label
        z = widen(logits)
        m = lax.stop_gradient(jnp.max(z, 3, keepdims=True))
        at = jnp.broadcast_to(jnp.clip(label, 0, logits.shape[3] - 1), m.shape)
        e, e_blank, e_label = (jnp.exp(v - m) for v in (z, z[..., blank, None], jnp.take_along_axis(z, at, 3)))
        e_label = jnp.where((label == at) & (label != blank), e_label, 0)
        e = lax.optimization_barrier(jnp.where(is_blank | is_label, 0, e))
        rest = jnp.sum(e, 3, keepdims=True)
        S = rest + e_blank + e_label
        on_blank = of_label * (e_blank / S) - of_blank * ((rest + e_label) / S)
        on_label = of_blank * (e_label / S) - of_label * ((rest + e_blank) / S)
        slope = e * ((of_blank + of_label) / S)
        slope = jnp.where(is_blank, on_blank, jnp.where(is_label, on_label, slope))
        slope *= jnp.broadcast_to(J_of.at_terms(dJ, (B,)), (B,))[:, None, None, None]
        counts = _counts(frames, label_lengths, T, U1) & possible[:, None, None]
        return (), (cast(jnp.where(counts[..., None], slope, 0), logits.dtype), None, None, None)

    return Layer(no_params, forward, backward, who)


def _counts(frames: Array, label_lengths: Array, T: int, U1: int) -> Array:
    """Which (t, u) lie within an example's lengths: (B, T, U + 1)."""
    return used(frames, T)[:, :, None] & used(label_lengths + 1, U1)[:, None, :]


def _steps(logits: Array, labels: Array, frames: Array, label_lengths: Array, blank: int) -> tuple[Array, Array]:
    """log b and log y by diagonals: (T + U, B, U + 1); `LOG_ZERO` where there is no such step."""
    B, T, U1, V = logits.shape
    z = widen(logits)
    m, log_S = (v[..., 0] for v in log_normaliser(z))
    at = jnp.broadcast_to(jnp.clip(labels, 0, V - 1)[:, None, :, None], (B, T, U1 - 1, 1))
    y = jnp.take_along_axis(z[:, :, :-1], at, 3)[..., 0] - m[:, :, :-1] - log_S[:, :, :-1]
    is_label = used(label_lengths, U1 - 1) & (labels >= 0) & (labels < V) & (labels != blank)
    y = jnp.pad(jnp.where(is_label[:, None, :], y, LOG_ZERO), ((0, 0), (0, 0), (0, 1)), constant_values=LOG_ZERO)
    counts = _counts(frames, label_lengths, T, U1)
    skip, y = (_by_diagonals(jnp.where(counts, known(v), LOG_ZERO)) for v in (z[..., blank] - m - log_S, y))
    return skip, y


def _by_diagonals(v: Array) -> Array:
    """(B, T, U + 1) -> (T + U, B, U + 1), t + u first; `LOG_ZERO` where t is none."""
    B, T, U1 = v.shape
    D = T + U1 - 1
    rows = jnp.pad(v.transpose(0, 2, 1), ((0, 0), (0, 0), (0, U1)), constant_values=LOG_ZERO)
    return rows.reshape(B, U1 * (D + 1))[:, : U1 * D].reshape(B, U1, D).transpose(2, 0, 1)


def _by_frames(v: Array, T: int) -> Array:
    """(T + U, B, U + 1) -> (B, T, U + 1)."""
    D, B, U1 = v.shape
    flat = jnp.pad(v.transpose(1, 2, 0).reshape(B, U1 * D), ((0, 0), (0, U1)))
    return flat.reshape(B, U1, D + 1)[:, :, :T].transpose(0, 2, 1)


def reference(params: tuple[()], x: tuple[Array, ...], blank: int = 0, reduction: str = "none") -> Array:
    """Graves's alpha, row by row and label by label, an example at a time."""
    zero = -1e30

    def one(logits, labels, T, U):
        frames, U1, V = logits.shape
        log_p = jax.nn.log_softmax(logits)
        b = log_p[:, :, blank]
        picked = jnp.take_along_axis(log_p[:, :-1], jnp.broadcast_to(labels[None, :, None], (frames, U1 - 1, 1)), 2)
        y = jnp.where(((labels >= 0) & (labels < V) & (labels != blank))[None], picked[:, :, 0], zero)

        def row(before, frame):
            t, b_before, y_t = frame
            nothing = jnp.where(jnp.arange(U1) == 0, jnp.zeros_like(b_before), zero)
            read = jnp.where(t == 0, nothing, before + b_before)

            def label(left, at):
                y_before, from_above = at
                new = jnp.logaddexp(from_above, left + y_before)
                return new, new

            _, rest = lax.scan(label, read[0], (y_t, read[1:]))
            new = jnp.concatenate([read[:1], rest])
            return jnp.where(t < T, new, before), None

        T, U = jnp.clip(T, 0, frames), jnp.clip(U, 0, U1 - 1)
        shifted = jnp.concatenate([jnp.zeros_like(b[:1]), b[:-1]]) if frames else b
        start = jnp.full(U1, zero, logits.dtype)
        alpha, _ = lax.scan(row, start, (jnp.arange(frames, dtype=T.dtype), shifted, y))
        log_P = alpha[U] + (jnp.where(T > 0, b[jnp.maximum(T - 1, 0), U], 0) if frames else 0)
        return jnp.where(log_P <= zero / 2, jnp.inf, -log_P)

    losses = jax.vmap(one)(*x)
    return naive_reduction(losses, reduction)


_X = Real("B T U1 V"), Integer("B U", 1, "V"), Integer("B", 0, "T", points=(99, 1))

RULE = Rule(
    "transducer",
    transducer,
    reference,
    cases=(
        Case(
            "",
            (*_X, Integer("B", 0, 4, points=(99, 0))),
            fixed={"U1": 4, "U": 3},
            least={"V": 2},
            timed={"B": 4, "T": 64, "U1": 16, "V": 64, "U": 15},
        ),
        Case(
            "no labels, mean, another blank",
            (Real("B T U1 V"), Integer("B U", 0, 1), Integer("B", 0, "T", points=(99, 1)), Integer("B", 0, 2)),
            {"blank": 1, "reduction": "mean"},
            ("B",),
            fixed={"U1": 1, "U": 0},
            least={"V": 2},
        ),
    ),
    cite="Graves, 'Sequence transduction with recurrent neural networks' (2012), arXiv:1211.3711, sections 2.4 and 2.5",
    covers=("rnnt", "rnn_transducer"),
)
