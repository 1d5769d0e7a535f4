"""fused_linear_distillation: a student's head learns from a teacher's, of whose logits neither's are held all at once.

Forward, with rows h of the student of shape (..., d), n running over them, W (V, d) and b (V,) of its head, h', W' and
b' of the teacher, labels y of shape (...), and v_n = 0 where the label is `ignored` and 1 elsewhere:

    z_n  = h_n W^T + b                                                    (V,), by rows
    z'_n = h'_n W'^T + b'                                                 (V,), by rows
    J    = 1/M sum_n v_n L(z_n, z'_n, y_n)                                M = sum_n v_n (1 if that is 0), J: ()

L is the term of one position of "distillation", a divergence of softened softmaxes and the cross-entropy with the
labels, of "total_variation" or of "jensen_shannon".

Differential. The teacher is held. With s_n = dL / dz_n, of L's own derivation:

    delta J = 1/M sum_nc v_n s_nc delta z_nc

The sweep starts with dJ, a scalar. The factor of each perturbation:

    dh_nj = dJ / M v_n sum_c s_nc W_cj                                    (..., d)
    dW_cj = dJ / M sum_n v_n s_nc h_nj                                    (V, d)
    db_c  = dJ / M sum_n v_n s_nc                                         (V,)

h', W', b' and the labels have the cotangent None.

The forward takes r `rows` at once: both logits of these, L, its s, and while that is there its part of dh, dW and db,
for dJ = 1. The largest arrays are (V, r), and those like W. What the teacher's logits would have for a cotangent is not
used, and a compiler leaves it out, as it leaves out dh, dW and db where no backward follows.

Cached: dW, db and dh for dJ = 1, in at least float32, not rounded yet.

Numerical care: that of L. Logits, products and sums are in at least float32, and each cotangent is rounded once. Rows
whose label is `ignored` are not read. Kinks: L's.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_choice, require_head, require_size
from bpref.dtypes import widen
from bpref.formulas.loss.class_blocks import Classes, flat
from bpref.formulas.loss.losses_by_name import made
from bpref.formulas.loss.row_blocks import HeadGradient, by_rows, logits, scaled_gradient
from bpref.formulas.loss.terms import require_terms
from bpref.layer import Layer, Reals
from bpref.loops import block_of
from bpref.naive.dense import naive_logits
from bpref.rule import Case, Integer, Real, Rule, Size, called_as
from bpref.rules.linear.linear import LinearParams, linear
from bpref.rules.loss.jensen_shannon import jensen_shannon
from bpref.rules.loss.jensen_shannon import reference as jensen_shannon_reference
from bpref.rules.loss.total_variation import reference as total_variation_reference
from bpref.rules.loss.total_variation import total_variation
from bpref.rules.sequence_loss.distillation import distillation
from bpref.rules.sequence_loss.distillation import reference as distillation_reference

FusedLinearDistillationParams = LinearParams
"""W of shape (V, d) and b of shape (V,) or None: those of the student's head."""


class TwoHeads(NamedTuple):
    h: Float[Array, "*n d>0"]
    teacher_h: Float[Array, "*n e>0"]
    teacher_W: Float[Array, "V e"]
    teacher_b: Float[Array, " V"] | None
    labels: Int[Array, "*n"]


LOSSES = {"distillation": distillation, "jensen_shannon": jensen_shannon, "total_variation": total_variation}


def fused_linear_distillation(
    vocabulary: int,
    loss: str = "distillation",
    hyper: Mapping[str, float | bool | None] | None = None,
    bias: bool = False,
    ignored: int | None = None,
    rows: int = 128,
) -> Layer[FusedLinearDistillationParams, tuple[Array | None, ...], Reals, HeadGradient]:
    """J = mean over the rows of a loss between the logits of a student's head and of a teacher's.

    Args:
      vocabulary: the number of classes V.
      loss: "distillation", "jensen_shannon" or "total_variation", the rule of that name.
      hyper: what that rule is made with, such as `{"temperature": 1.0, "reverse": True}`; J is the mean, without
        another `reduction`.
      bias: whether the student's head has a b; the teacher's has one where one is given.
      ignored: a label, such as -100, whose rows give no loss and no gradient, and do not count in the mean.
      rows: how many rows r are taken at once; memory is a few times `vocabulary` times this.

    Returns:
      A layer with params `FusedLinearDistillationParams(W: (V, d), b: (V,) or None)`, x `(h, teacher_h, teacher_W,
      teacher_b, labels)` of shapes `(..., d)`, `(..., e)`, `(V, e)`, `(V,)` or None, and `(...)`, and y the scalar J in
      at least float32. Only h has a cotangent. Of "jensen_shannon" and "total_variation" labels say what is ignored.
      Where every row is ignored J and all gradients are 0.

    Raises:
      ValueError: there is no such loss; a hyperparameter is out of its range, or none of the loss's; shapes do not
        fit; there are no rows.
      TypeError: x is no tuple of five; dtypes do not fit.
    """
    who = "fused_linear_distillation"
    vocabulary, bias, _, ignored, *_ = require_head(who, vocabulary, bias, ignored=ignored)
    rows = require_size(who, "rows", rows)
    of_one = made(who, LOSSES[require_choice(who, "loss", loss, LOSSES)], hyper, without="reduction")

    def init(key, x):
        return linear(vocabulary, bias).init(key, x[0])

    def forward(params, x: TwoHeads):
        h, teacher_h, teacher_W, teacher_b, label = x
        if len(teacher_W) != vocabulary:
            raise ValueError(f"{who}: teacher_W has {len(teacher_W)} classes, expected the vocabulary's {vocabulary}")
        require_terms(who, label.size)
        A, y = flat(h, label)
        held = lax.stop_gradient((flat(teacher_h, label)[0], Classes(teacher_W, teacher_b)))
        counts = jnp.ones(y.shape, bool) if ignored is None else y != ignored
        A, B = (jnp.where(counts[:, None], v, 0) for v in (A, held[0]))
        y = jnp.where(counts, y, 0)
        M = jnp.maximum(jnp.sum(counts, dtype=widen(A).dtype), 1)

        def terms_of(z, start, size):
            of_teacher = logits(held[1], block_of(B, start, size))
            given = (z, of_teacher, block_of(y, start, size)) if loss == "distillation" else (z, of_teacher)
            return jax.vmap(term_and_slope)(given)

        J, gradient = by_rows(rows, Classes(*params), A, counts.astype(M.dtype) / M, terms_of)
        return J, gradient._replace(h=gradient.h.reshape(h.shape))

    def term_and_slope(x):
        l, cache = of_one.forward((), x)
        return l, of_one.backward((), cache, jnp.ones_like(l))[1][0]

    def backward(params, cache, dJ):
        dW, db, dh = jax.tree.map(lambda d: scaled_gradient(dJ, d, params.W), tuple(cache))
        return FusedLinearDistillationParams(dW, db), (dh, None, None, None, None)

    return Layer(init, forward, backward, who)


@called_as(fused_linear_distillation)
def reference(params: LinearParams, x: tuple[Array, ...], loss, hyper, ignored, **_) -> Array:
    h, label = x[0], x[-1]
    teacher_h, teacher_W, teacher_b = map(lax.stop_gradient, x[1:4])
    a, b = naive_logits(params.W, params.b, h), naive_logits(teacher_W, teacher_b, teacher_h)
    counts = jnp.ones(label.shape, bool) if ignored is None else label != ignored
    given = (a, b, jnp.where(counts, label, 0))[: 3 if loss == "distillation" else 2]
    rows = [v.reshape(label.size, *v.shape[label.ndim :]) for v in given]
    terms = jax.vmap(lambda *row: _reference_of(loss)((), row, **(hyper or {})))(*rows)
    J = jnp.sum(jnp.where(counts.reshape(-1), terms, 0))
    return J / jnp.maximum(jnp.sum(counts, dtype=J.dtype), 1)


def _reference_of(loss: str) -> Callable[..., Array]:
    if loss == "distillation":
        return distillation_reference
    return total_variation_reference if loss == "total_variation" else jensen_shannon_reference


def _x(axes: str, teacher_b: Real | None, labels: Integer) -> tuple:
    return Real(f"{axes} d", -1, 1), Real(f"{axes} e", -1, 1), Real("V e", -1, 1), teacher_b, labels


_NEVER_EMPTY = ("d", "e", "V")
_ROWS = _x("N", None, Integer("N", 0, "V"))
_SOME_IGNORED = _x("N", Real("V", -1, 1), Integer("N", 0, "V", points=(-1,)))

RULE = Rule(
    "fused_linear_distillation",
    fused_linear_distillation,
    reference,
    cases=(
        Case("forward", _ROWS, {"vocabulary": Size("V"), "rows": 3}, ("N", *_NEVER_EMPTY)),
        Case(
            "mixture, some ignored",
            _SOME_IGNORED,
            {
                "vocabulary": Size("V"),
                "hyper": {"temperature": 1.5, "soft_weight": 0.7, "mixture": 0.3},
                "bias": True,
                "ignored": -1,
                "rows": 4,
            },
            ("N", *_NEVER_EMPTY),
        ),
        Case(
            "reverse, a sequence",
            _x("B T", None, Integer("B T", 0, "V")),
            {"vocabulary": Size("V"), "hyper": {"reverse": True}},
            ("B", "T", *_NEVER_EMPTY),
            timed={"B": 4, "T": 256, "d": 128, "e": 128, "V": 8192},
        ),
        Case(
            "total variation",
            _SOME_IGNORED,
            {"vocabulary": Size("V"), "loss": "total_variation", "ignored": -1, "rows": 3},
            ("N", *_NEVER_EMPTY),
        ),
        Case(
            "jensen-shannon",
            _ROWS,
            {"vocabulary": Size("V"), "loss": "jensen_shannon", "rows": 3},
            ("N", *_NEVER_EMPTY),
        ),
    ),
    cite="arXiv:1503.02531, section 2; by rows: Hsu et al., 'Liger Kernel', arXiv:2410.10989",
    covers=("fused distillation", "chunked distillation", "fused tvd"),
)
