"""fused_linear_cross_entropy: the cross-entropy of a linear layer's logits, which are never held all at once.

Forward, with rows h of shape (N, d), labels y of shape (N,), W of shape (V, d), b of shape (V,), and t the soft cap:

    u_nc = sum_j h_nj W_cj + b_c
    z_nc = t tanh(u_nc / t)                   z = u without a soft cap    (N, V), by blocks
    l_n  = log sum_c exp(z_nc)                                            (N,)
    q_nc = (1 - s) [c = y_n] + s / V          s: `smoothing`
    J    = 1/M sum_n v_n (sum_c q_nc (l_n - z_nc) + a l_n^2)              a: `z_loss`, J: ()

v_n is 0 where the label is `ignored` and 1 elsewhere; M = sum_n v_n (1 if that is 0), or another `reduction`'s
(`bpref.formulas.terms`). With "none" J is (N,), and so is dJ.

Differential, with p_nc = exp(z_nc - l_n) and delta l_n = sum_c p_nc delta z_nc:

    delta J = sum_nc g_nc delta u_nc
    g_nc    = v_n / M ((1 + 2 a l_n) p_nc - q_nc) (1 - (z_nc / t)^2)      (N, V), by blocks

The sweep starts with dJ, a scalar. The factor of each perturbation of u = h W^T + b:

    dh_nj = dJ sum_c g_nc W_cj                                            (N, d)
    dW_cj = dJ sum_n g_nc h_nj                                            (V, d)
    db_c  = dJ sum_n g_nc                                                 (V,)

Both sweeps take one block of B classes after the other. The forward adds up R_n = sum over c != y of exp(z_nc - m_n),
m the largest logit so far, R rescaled whenever m grows. The backward makes the block's logits again, turns them into g,
adds to dh, and writes the block's rows of dW, each once: four products. The largest array beside W and dW is (B, N).
Cached: h, the labels, and of each row m, R, z_y, from which l = m + log(R + exp(z_y - m)); and M, so that a part of the
rows and of these gives its part of dW. A dJ for each row, an array like the labels, weighs the rows.

With r `rows` at once the forward goes on, after all blocks of classes of r rows, to g / dJ of the same logits, and adds
to dW: three products, and the backward multiplies by dJ. The largest array is then (V, r), and dW is read and written
once for every r rows. Cached: dW, db and dh for dJ = 1, not rounded yet. It is the faster form where a gradient
follows, and the larger one: at 1,024 rows of 256 and 32,000 classes 0.85 of the time of the other, and twice its memory
with r = 128. A forward that no backward follows pays for dW where it is not compiled together with that. Where all
logits fit into the processor's cache, as those of 128 rows and 4,096 classes, it is 1.2 times autodiff's time.

Without `rows` both sweeps are there in two forms, by `implementation`: "xla", the loops above, and "pallas", kernels in
which a block of logits never leaves the chip (`bpref/kernels/linear_cross_entropy.py`), for TPUs; a CPU interprets
them, slowly. As the compiler of a TPU v5e has scheduled them, kernels take 0.3 to 0.8 of the cycles of "xla"
(`benchmarks/README.md`); so "auto" is "pallas" in a process that has one TPU chip and no other device, for 128 rows and
classes at least and a `block` that is a multiple of 128, of as many features as fit into its vector memory, 1,792 with
one of 1024. It is "xla" else: that is divided among chips by itself, while kernels have to be put into a
`jax.shard_map`. A kernel's backward is differentiated once more as the same backward in XLA's form.

Numerical care: exponentials are shifted by m and never overflow; p_y - 1 = -R / S and l - z_y = log1p(R / E), with
E = exp(z_y - m) and S = R + E, do not cancel when the model is sure. p is exp(z - m) / S, and not exp(z - l), which
inherits the rounding of l. Products, sums and logits are in at least float32; each cotangent is rounded once. There is
no kink: m is a shift that cancels, and is held constant.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_choice, require_head, require_non_negative, require_share, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.class_blocks import Blocks, Classes, FeaturesAndLabels, Slopes, Sums, flat, pull_sums, sums_over
from bpref.formulas.labels import nats
from bpref.formulas.terms import require_reduction
from bpref.kernels.launch import IMPLEMENTATIONS
from bpref.kernels.linear_cross_entropy import is_better_by_kernel, pull_sums_by_kernel, sums_by_kernel
from bpref.layer import Layer, Reals
from bpref.loops import block_of, for_blocks
from bpref.naive.dense import naive_logits
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, Size, called_as
from bpref.rules.linear.linear import LinearParams, linear

FusedLinearCrossEntropyParams = LinearParams
"""W of shape (V, d) and b of shape (V,) or None: those of the layer whose logits these are."""


class FusedLinearCrossEntropyCache(NamedTuple):
    h: Float[Array, "... d"]
    label: Int[Array, "..."]
    largest: Float[Array, "..."]
    others: Float[Array, "..."]
    own: Float[Array, "..."]
    divisor: Float[Array, ""]


class FusedLinearCrossEntropyGradient(NamedTuple):
    """What is cached with `rows`: the cotangents for dJ = 1, in at least float32."""

    W: Float[Array, "V d"]
    b: Float[Array, " V"] | None
    h: Float[Array, "... d"]


def fused_linear_cross_entropy(
    vocabulary: int,
    bias: bool = False,
    reduction: str = "mean",
    ignored: int | None = None,
    soft_cap: float | None = None,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    block: int = 1024,
    rows: int | None = None,
    implementation: str = "auto",
) -> Layer[
    FusedLinearCrossEntropyParams,
    tuple[Array, Array],
    Reals,
    FusedLinearCrossEntropyCache | FusedLinearCrossEntropyGradient,
]:
    """J = mean over the rows of -log softmax(h W^T + b)_y, without an array of all logits.

    Args:
      vocabulary: the number of classes V.
      bias: whether there is a b.
      reduction: "mean" of the rows that count, the "sum" of all, "none" for the terms themselves, or "batch_mean",
        their sum divided by the size of the first axis.
      ignored: a label, such as -100, whose rows give no loss and no gradient, and do not count in the mean.
      soft_cap: t, the size that no logit reaches; the logits become t tanh(u / t) (Gemma 2: 30).
      smoothing: s in [0, 1]; the target becomes (1 - s) [c = y] + s / V.
      z_loss: the weight of the squared log-sum-exp (PaLM: 1e-4).
      block: how many classes B are taken at once; memory is the number of rows times this.
      rows: how many rows r are taken at once, their gradient made in the forward; memory is `vocabulary` times this.
        None takes all, and makes the logits again in the backward.
      implementation: "xla", "pallas" or "auto", see above; with `rows` there is no "pallas".

    Returns:
      A layer with params `FusedLinearCrossEntropyParams(W: (V, d), b: (V,) or None)`, x `(h, labels)` of shapes
      `(..., d)` and `(...)`, and y the scalar J, or the terms (...), in at least float32. Labels have the cotangent
      None. W is drawn as in `linear`. Where every row is ignored, and in a sum of no rows, J and all gradients are 0. A
      label outside `[0, V)` that is not `ignored` makes J, its row of dh, and dW and db NaN.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; a mean is over no rows; `rows` are given for
        terms of their own, whose dJ the forward cannot know.
      TypeError: x is no pair; h is not floating-point, or not of W's dtype; the labels are no integers.
    """
    who = "fused_linear_cross_entropy"
    J_of = require_reduction(who, reduction)
    of_head = require_head(who, vocabulary, bias, 1.0, ignored, soft_cap, block)
    vocabulary, bias, _, ignored, soft_cap, block = of_head
    if rows is not None:
        rows = require_size(who, "rows", rows)
    smoothing = require_share(who, "smoothing", smoothing)
    z_loss = require_non_negative(who, "z_loss", z_loss)
    require_choice(who, "implementation", implementation, IMPLEMENTATIONS)
    if rows is not None and not J_of.is_scalar:
        raise ValueError(f'{who}: rows is {rows}; reduction "none" has none, since each row has a dJ of its own')
    if rows is not None and implementation == "pallas":
        raise ValueError(f'{who}: rows is {rows}; implementation "pallas" has none, "xla" has')
    if implementation == "pallas" and jax.default_backend() == "gpu":
        raise ValueError(f'{who}: implementation "pallas" has no kernels for a GPU, "xla" is for all')
    blocks = Blocks(soft_cap, block, smoothing > 0)

    def init(key, x):
        return linear(vocabulary, bias).init(key, x[0])

    def forward(params, x: FeaturesAndLabels):
        h, label = x
        A, y = flat(h, label)
        v = _weights(y, widen(A))
        M = J_of.divisor(label.shape, None if ignored is None else jnp.maximum(jnp.sum(v != 0, dtype=v.dtype), 1))
        if rows is None:
            of_all = blocks, Classes(*params), A, y
            sums = sums_by_kernel(*of_all) if _is_by_kernel(params, A) else sums_over(*of_all)[0]
            kept = (s.reshape(label.shape) for s in sums[:3])
            J = J_of.of(_terms(sums, v).reshape(label.shape), M)
            return J, FusedLinearCrossEntropyCache(h, label, *kept, divisor=jnp.asarray(M, v.dtype))

        def add(carry, start, size):
            J, dW, db, dh = carry
            A_, y_, v_ = (block_of(a, start, size) for a in (A, y, v))
            sums, logits = sums_over(blocks, Classes(*params), A_, y_, keep=True)
            dW, db, of_rows = _pull(params, A_, y_, sums, v_ / M, (Classes(dW, db), logits))
            return J + jnp.sum(_terms(sums, v_)), dW, db, lax.dynamic_update_slice_in_dim(dh, of_rows, start, 0)

        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, v.dtype), (jnp.zeros(()), *params, A))
        J, dW, db, dh = for_blocks(y.size, rows, add, zeros)
        return J / M, FusedLinearCrossEntropyGradient(dW, db, dh.reshape(h.shape))

    def backward(params, cache, dJ):
        if rows is not None:
            dW, db, dh = jax.tree.map(lambda d: cast(jnp.where(d == 0, 0, widen(dJ) * d), params.W.dtype), tuple(cache))
            return FusedLinearCrossEntropyParams(dW, db), (dh, None)
        A, y = flat(cache.h, cache.label)
        m, R, own = (s.reshape(y.shape) for s in cache[2:5])
        v = _weights(y, m)
        weight = jnp.where(v == 0, 0, widen(dJ).reshape(-1) / cache.divisor * v)
        dW, db, dh = _pull(params, A, y, Sums(m, R, own, m), weight)
        return FusedLinearCrossEntropyParams(dW, db), (cast(dh, cache.h.dtype).reshape(cache.h.shape), None)

    def _is_by_kernel(params, A):
        return implementation == "pallas" or (
            implementation == "auto" and is_better_by_kernel(blocks, Classes(*params), A)
        )

    def _terms(sums, v):
        """Of these rows."""
        m, R, own, total = sums
        _, log_S, _ = _normalised(sums)
        terms = (1 - smoothing) * nats(R, own - m)
        if smoothing:
            terms += smoothing * (m + log_S - total / vocabulary)
        if z_loss:
            terms += z_loss * (m + log_S) ** 2
        return jnp.where(v == 0, 0, v * terms)

    def _pull(params, A, y, sums, weight, kept=None):
        """dW, db, and dh of these rows, whose terms weigh `weight`; added to the dW and db kept with their logits."""
        m, R = sums.m, sums.R
        E, log_S, S = _normalised(sums)
        pull = 2 * z_loss * (m + log_S)
        rate = weight * ((1 + pull) / S)
        at_own = weight * (((pull + smoothing) * E - (1 - smoothing) * R) / S)
        even = weight * (smoothing / vocabulary)
        of_all = blocks, Classes(*params), A, y, Slopes(m, rate, at_own, even)
        if kept is None and _is_by_kernel(params, A):
            return pull_sums_by_kernel(*of_all)
        return pull_sums(*of_all, *(kept or ()))

    def _weights(y, like):
        """v, NaN for a label that is no class."""
        counts = jnp.ones(y.shape, bool) if ignored is None else y != ignored
        v = jnp.where(counts, jnp.where((y >= 0) & (y < vocabulary), 1.0, jnp.nan), 0.0)
        return cast(v, like.dtype)

    return Layer(init, forward, backward, who)


def _normalised(sums: Sums) -> tuple[Array, Array, Array]:
    """E, log S and S."""
    E = jnp.exp(sums.own - sums.m)
    S = sums.R + E
    return E, jnp.log(S), S


@called_as(fused_linear_cross_entropy)
def reference(
    params: LinearParams, x: tuple[Array, Array], vocabulary, reduction, ignored, soft_cap, smoothing, z_loss, **_
) -> Array:
    h, label = x
    z = naive_logits(params.W, params.b, h, soft_cap)
    counts = jnp.ones(label.shape, bool) if ignored is None else label != ignored
    own = jax.nn.one_hot(jnp.where(counts, label, 0), vocabulary, dtype=z.dtype)
    q = (1 - smoothing) * own + smoothing / vocabulary
    terms = -jnp.sum(q * jax.nn.log_softmax(z), -1)
    if z_loss:
        terms += z_loss * jax.nn.logsumexp(z, axis=-1) ** 2
    return naive_reduction(jnp.where(counts, terms, 0), reduction, counts.astype(terms.dtype))


_LABELED = (Real("N d"), Integer("N", 0, "V"))

_SOME_IGNORED = Real("N d", -1.0, 1.0), Integer("N", 0, "V", points=(-1,))
_EVERYTHING = {
    "vocabulary": Size("V"),
    "bias": True,
    "ignored": -1,
    "soft_cap": Interval(2.0, 30.0, 5.0),
    "smoothing": Interval(0.0, 0.5, 0.1),
    "z_loss": Interval(0.0, 0.1, 1e-4),
    "block": 2,
}

RULE = Rule(
    "fused_linear_cross_entropy",
    fused_linear_cross_entropy,
    reference,
    cases=(
        Case(
            "blocks",
            _LABELED,
            {"vocabulary": Size("V"), "block": 2},
            ("N", "d", "V"),
        ),
        Case("each row", _LABELED, {"vocabulary": Size("V"), "block": 2, "reduction": "none"}, ("d", "V")),
        Case(
            "everything",
            _SOME_IGNORED,
            _EVERYTHING,
            ("N", "d", "V"),
        ),
        Case(
            "sequence, a sum, some rows at once",
            (Real("B T d"), Integer("B T", 0, "V")),
            {"vocabulary": Size("V"), "reduction": "sum", "rows": Size("r")},
            ("d", "V"),
            fixed={"r": 50},
            timed={"B": 4, "T": 256, "d": 128, "V": 16384, "r": 128},
        ),
        Case(
            "everything, a kernel",
            _SOME_IGNORED,
            _EVERYTHING | {"implementation": "pallas"},
            ("N", "d", "V"),
        ),
    ),
    cite="Wijmans et al., 'Cut Your Losses in Large-Vocabulary Language Models', arXiv:2411.09009; soft cap: "
    "Gemma 2, arXiv:2408.00118, section 2; z-loss: PaLM, arXiv:2204.02311, section 5",
    covers=("cut cross entropy", "linear cross entropy"),
)
