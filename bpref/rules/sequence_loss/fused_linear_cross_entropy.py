"""fused_linear_cross_entropy: the cross-entropy of a linear layer's logits, which are never held all at once.

Forward, with rows h of shape (N, d), W of shape (V, d), b of shape (V,), t the soft cap, for each row a target
distribution T of shape (N, V), which a label y_n stands for as T_nc = [c = y_n], and for each class a weight w_c (1 if
nothing is said):

    u_nc = sum_j h_nj W_cj + b_c
    z_nc = t tanh(u_nc / t)                   z = u without a soft cap    (N, V), by blocks
    l_n  = log sum_c exp(z_nc)                                            (N,)
    q_nc = w_c ((1 - s) T_nc + s / V)         s: `smoothing`              (N, V), by blocks
    J    = 1/M sum_n (sum_c q_nc (l_n - z_nc) + v_n a l_n^2)              a: `z_loss`, J: ()

With labels v_n = w_y and M = sum_n v_n (1 if that is 0), or another `reduction`'s (`bpref.formulas.loss.terms`); a row
whose label is `ignored` adds nothing to either. With distributions v_n = 1 and M = N. With "none" J is (N,), and so is
dJ. With more `axes` *K a row has a softmax over the classes for each place k of them, by a W_ck and b_ck of its own,
labels are (N, *K) and distributions (N, *K, V): below n stands for (n, k) then, c for (c, k) in W and b, and dh_n is
summed over k too.

Differential, with p_nc = exp(z_nc - l_n), delta l_n = sum_c p_nc delta z_nc, and Q_n = sum_c q_nc:

    delta J = sum_nc g_nc delta u_nc + 1/M sum_nc w_c (1 - s) (l_n - z_nc) delta T_nc
    g_nc    = 1/M ((Q_n + 2 v_n a l_n) p_nc - q_nc) (1 - (z_nc / t)^2)    (N, V), by blocks

The sweep starts with dJ, a scalar. The factor of each perturbation of u = h W^T + b, and of T where it is given:

    dh_nj = dJ sum_c g_nc W_cj                                            (N, d)
    dW_cj = dJ sum_n g_nc h_nj                                            (V, d)
    db_c  = dJ sum_n g_nc                                                 (V,)
    dT_nc = dJ / M w_c (1 - s) (l_n - z_nc)                               (N, V), by blocks

Both sweeps take one block of B classes after the other. The forward adds up R_n = sum over c != y of exp(z_nc - m_n),
m the largest logit so far, R rescaled whenever m grows. The backward makes the block's logits again, turns them into g,
adds to dh, and writes the block's rows of dW, each once: four products. The largest array beside W and dW is (B, N),
with `axes` (B, *K, N): W is (V, *K, d), classes first, so that a block of it is one piece, and one product for all k.
Cached: h, the labels, and of each row m, R, z_y, from which l = m + log(R + exp(z_y - m)); and M, so that a part of the
rows and of these gives its part of dW. A dJ for each row, an array like the labels, weighs the rows. Of distributions
T is kept instead of the labels, and of each row m, S = sum_c exp(z_nc - m_n) and Q; sum_c q_nc (m_n - z_nc) is added up
as R is. Neither q nor z is ever made as a whole, but T and dT are as large as all logits.

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

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, PyTree

from bpref.checks.hyperparameters import require_axes, require_head, require_non_negative, require_share, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.loss.class_blocks import (
    Blocks,
    Classes,
    Sums,
    features_and_target,
    flat,
    pull_sums,
    rows_first,
    rows_last,
    sums_over,
)
from bpref.formulas.loss.class_targets import ClassTargets
from bpref.formulas.loss.counted_labels import require_counting
from bpref.formulas.loss.labels import is_label
from bpref.formulas.loss.row_blocks import HeadGradient, scaled_gradient
from bpref.formulas.loss.terms import require_reduction
from bpref.kernels.linear_cross_entropy import is_better_by_kernel, pull_sums_by_kernel, require_form, sums_by_kernel
from bpref.layer import Layer, Reals
from bpref.loops import block_of, for_blocks
from bpref.naive.dense import naive_logits
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, Size, called_as
from bpref.rules.linear.linear import LinearParams, linear

FusedLinearCrossEntropyParams = LinearParams
"""W of shape (V, *K, d) and b of shape (V, *K) or None: those of the layer whose logits these are."""


class FusedLinearCrossEntropyCache(NamedTuple):
    h: Float[Array, "... d"]
    label: Int[Array, "..."]
    largest: Float[Array, "..."]
    others: Float[Array, "..."]
    own: Float[Array, "..."]
    divisor: Float[Array, ""]


class FusedLinearCrossEntropySoftCache(NamedTuple):
    """What is cached of distributions."""

    h: Float[Array, "... d"]
    target: Float[Array, "... V"]
    largest: Float[Array, "..."]
    sum: Float[Array, "..."]
    mass: Float[Array, "..."]


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
    class_weights: Sequence[float] | None = None,
    axes: Sequence[int] = (),
) -> Layer[
    FusedLinearCrossEntropyParams,
    tuple[Array, Array],
    Reals,
    FusedLinearCrossEntropyCache | FusedLinearCrossEntropySoftCache | HeadGradient,
]:
    """J = mean over the rows of -sum_c q_c log softmax(h W^T + b)_c, without an array of all logits.

    Args:
      vocabulary: the number of classes V.
      bias: whether there is a b.
      reduction: "mean" of the rows that count, the "sum" of all, "none" for the terms themselves, or "batch_mean",
        their sum divided by the size of the first axis.
      ignored: a label, such as -100, whose rows give no loss and no gradient, and do not count in the mean.
      soft_cap: t, the size that no logit reaches; the logits become t tanh(u / t) (Gemma 2: 30).
      smoothing: s in [0, 1]; the target becomes (1 - s) T + s / V.
      z_loss: the weight of the squared log-sum-exp (PaLM: 1e-4).
      block: how many classes B are taken at once; memory is the number of rows times this.
      rows: how many rows r are taken at once, their gradient made in the forward; memory is `vocabulary` times this.
        None takes all, and makes the logits again in the backward. Distributions have none.
      implementation: "xla", "pallas" or "auto", see above; with `rows` or `axes`, of distributions, and of weighted
        classes that are smoothed there is no "pallas".
      class_weights: w, how much each class counts, V numbers; of labels the mean is weighted by them as well.
      axes: the sizes *K of more axes, at each place of which a row has a target of its own.

    Returns:
      A layer with params `FusedLinearCrossEntropyParams(W: (V, *K, d), b: (V, *K) or None)`, x `(h, target)` of shapes
      `(..., d)` and `(..., *K)`, integer labels, whose cotangent is None, or `(..., *K, V)`, distributions of h's
      dtype: the dtype tells which. y is the scalar J, or the terms (..., *K), in at least float32. W is drawn as in
      `linear`. Where every row is ignored, and in a sum of no rows, J and all gradients are 0. A label outside `[0, V)`
      that is not `ignored` makes J, its row of dh, and dW and db NaN.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; a mean is over no rows; `rows` are given for
        terms of their own, whose dJ the forward cannot know, or with distributions.
      TypeError: x is no pair; h is not floating-point, or not of W's dtype; the target is neither integer nor of that
        dtype; `ignored` is given with distributions.
    """
    who = "fused_linear_cross_entropy"
    J_of = require_reduction(who, reduction)
    of_head = require_head(who, vocabulary, bias, 1.0, ignored, soft_cap, block)
    vocabulary, bias, _, ignored, soft_cap, block = of_head
    if rows is not None:
        rows = require_size(who, "rows", rows)
    smoothing = require_share(who, "smoothing", smoothing)
    z_loss = require_non_negative(who, "z_loss", z_loss)
    axes = require_axes(who, axes)
    implementation = require_form(who, implementation, rows=rows, axes=axes)
    if rows is not None and not J_of.is_scalar:
        raise ValueError(f'{who}: rows is {rows}; reduction "none" has none, since each row has a dJ of its own')
    counting = require_counting(who, ignored, class_weights)
    counting.require_classes("the head", jax.ShapeDtypeStruct((vocabulary,), jnp.float32))
    targets = ClassTargets(vocabulary, smoothing, z_loss, counting)
    if smoothing > 0 and counting.w is not None:
        if implementation == "pallas":
            raise ValueError(
                f'{who}: class_weights are smoothed, for which implementation "pallas" has none, "xla" has'
            )
        implementation = "xla"
    blocks = Blocks(soft_cap, block, smoothing > 0)

    def init(key, x):
        W, b = linear(vocabulary * math.prod(axes), bias).init(key, x[0])
        W = W.reshape(vocabulary, *axes, -1)
        return FusedLinearCrossEntropyParams(W, None if b is None else b.reshape(W.shape[:-1]))

    def forward(params, x):
        h, target = x
        if not is_label(target):
            return _of_distributions(params, h, target)
        A, y = flat(h, target)
        v, M = targets.counts(y, A)
        M = J_of.divisor(target.shape, M)
        if rows is None:
            of_all = blocks, Classes(*params), A, y
            sums = sums_by_kernel(*of_all) if _is_by_kernel(params, A) else sums_over(*of_all, w=targets.w(A))[0]
            *kept, terms = (rows_first(s, target.shape) for s in (*sums[:3], targets.terms(sums, y, v)))
            J = J_of.of(terms, M)
            return J, FusedLinearCrossEntropyCache(h, target, *kept, divisor=jnp.asarray(M, v.dtype))

        def add(carry, start, size):
            J, dW, db, dh = carry
            A_, y_, v_ = block_of(A, start, size), *(block_of(a, start, size, -1) for a in (y, v))
            sums, logits = sums_over(blocks, Classes(*params), A_, y_, keep=True, w=targets.w(A))
            slopes = targets.slopes(sums, y_, v_, jnp.full_like(v_, 1 / M))
            dW, db, of_rows = _pull(params, A_, y_, slopes, (Classes(dW, db), logits))
            J += jnp.sum(targets.terms(sums, y_, v_))
            return J, dW, db, lax.dynamic_update_slice_in_dim(dh, of_rows, start, 0)

        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, v.dtype), (jnp.zeros(()), *params, A))
        J, dW, db, dh = for_blocks(len(A), rows, add, zeros)
        return J / M, HeadGradient(dW, db, dh.reshape(h.shape))

    def backward(params, cache, dJ):
        if isinstance(cache, FusedLinearCrossEntropySoftCache):
            return _from_distributions(params, cache, dJ)
        if rows is not None:
            dW, db, dh = jax.tree.map(lambda d: scaled_gradient(dJ, d, params.W), tuple(cache))
            return FusedLinearCrossEntropyParams(dW, db), (dh, None)
        A, y = flat(cache.h, cache.label)
        g = jnp.broadcast_to(widen(dJ) / cache.divisor, cache.label.shape)
        m, R, own, g = (rows_last(s, axes) for s in (*cache[2:5], g))
        slopes = targets.slopes(Sums(m, R, own, m), y, targets.counts(y, A)[0], g)
        dW, db, dh = _pull(params, A, y, slopes)
        return FusedLinearCrossEntropyParams(dW, db), (cast(dh, cache.h.dtype).reshape(cache.h.shape), None)

    def _is_by_kernel(params, A):
        is_better = implementation == "auto" and is_better_by_kernel(blocks, Classes(*params), A)
        return is_better or implementation == "pallas"

    def _pull(params, A, y, slopes, kept=None):
        """dW, db, and dh of these rows; added to the dW and db kept with their logits."""
        of_all = blocks, Classes(*params), A, y, slopes
        if kept is None and _is_by_kernel(params, A):
            return pull_sums_by_kernel(*of_all)
        return pull_sums(*of_all, *(kept or ()), w=targets.w(A))

    def _of_distributions(params, h, target):
        if target.shape[-1] != vocabulary:
            raise ValueError(f"{who}: target has {target.shape[-1]} classes, expected the vocabulary's {vocabulary}")
        if ignored is not None:
            raise TypeError(f"{who}: ignored is {ignored}, which needs integer labels; target is {target.dtype}")
        for name, given in (("rows", rows), ("implementation", implementation)):
            if given not in (None, "auto", "xla"):
                raise ValueError(f"{who}: {name} is {given!r}, which needs integer labels; target is {target.dtype}")
        terms, sums = targets.soft_terms(blocks, Classes(*params), h, target)
        return J_of.of(terms), FusedLinearCrossEntropySoftCache(h, target, *sums)

    def _from_distributions(params, cache, dJ):
        g = jnp.broadcast_to(J_of.at_terms(dJ, cache.largest.shape), cache.largest.shape)
        dW, db, dh, dT = targets.pull_soft(blocks, Classes(*params), g, *cache)
        return FusedLinearCrossEntropyParams(dW, db), (dh, dT)

    forward.__annotations__["x"] = features_and_target(axes)
    return Layer(init, forward, backward, who)


@called_as(fused_linear_cross_entropy)
def reference(
    params: LinearParams, x: PyTree, vocabulary, reduction, ignored, soft_cap, smoothing, z_loss, class_weights, **_
) -> Array:
    h, target = x
    z = naive_logits(params.W, params.b, h, soft_cap)
    w = jnp.ones(vocabulary, z.dtype) if class_weights is None else jnp.asarray(class_weights, z.dtype)
    counts, T, v = jnp.ones(z.shape[:-1], bool), target, jnp.ones(z.shape[:-1], z.dtype)
    if jnp.issubdtype(target.dtype, jnp.integer):
        counts = counts if ignored is None else target != ignored
        label = jnp.where(counts, target, 0)
        T, v = jax.nn.one_hot(label, vocabulary, dtype=z.dtype), jnp.where(counts, w[label], 0)
    q = jnp.broadcast_to(w, T.shape) * ((1 - smoothing) * T + smoothing / vocabulary)
    terms = -jnp.sum(q * jax.nn.log_softmax(z), -1)
    if z_loss:
        terms += z_loss * v * jax.nn.logsumexp(z, axis=-1) ** 2
    return naive_reduction(jnp.where(counts, terms, 0), reduction, v)


_LABELED = (Real("N d"), Integer("N", 0, "V"))

_WEIGHTS = (0.5, 1.0, 2.5)
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
        Case("blocks", _LABELED, {"vocabulary": Size("V"), "block": 2}, ("N", "d", "V")),
        Case(
            "each row, weighted classes",
            _LABELED,
            {"vocabulary": Size("V"), "block": 2, "smoothing": 0.1, "class_weights": _WEIGHTS, "reduction": "none"},
            ("d",),
            fixed={"V": len(_WEIGHTS)},
        ),
        Case("everything", _SOME_IGNORED, _EVERYTHING, ("N", "d", "V")),
        Case(
            "distributions, a sequence",
            (Real("B T d", -1.0, 1.0), Real("B T V", 0.0, 1.0)),
            {key: v for key, v in _EVERYTHING.items() if key != "ignored"} | {"class_weights": _WEIGHTS},
            ("B", "T", "d"),
            fixed={"V": len(_WEIGHTS)},
        ),
        Case(
            "a softmax for each place of more axes",
            (Real("N d", -1.0, 1.0), Integer("N K L", 0, "V", points=(-1,))),
            _EVERYTHING | {"axes": (2, 3)},
            ("N", "d", "V"),
            fixed={"K": 2, "L": 3},
        ),
        Case(
            "sequence, a sum, some rows at once",
            (Real("B T d"), Integer("B T", 0, "V")),
            {"vocabulary": Size("V"), "reduction": "sum", "rows": Size("r")},
            ("d", "V"),
            fixed={"r": 50},
            timed={"B": 4, "T": 256, "d": 128, "V": 16384, "r": 128},
        ),
        Case("everything, a kernel", _SOME_IGNORED, _EVERYTHING | {"implementation": "pallas"}, ("N", "d", "V")),
    ),
    cite="Wijmans et al., 'Cut Your Losses in Large-Vocabulary Language Models', arXiv:2411.09009; soft cap: "
    "Gemma 2, arXiv:2408.00118, section 2; z-loss: PaLM, arXiv:2204.02311, section 5",
    covers=("cut cross entropy", "linear cross entropy"),
)
