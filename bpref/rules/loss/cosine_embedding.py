"""cosine_embedding: pairs that belong together point the same way; the others, by a margin, do not.

The mean is that of all terms, one for each pair: what `reduction="none"` gives.

Forward, with N pairs of vectors a and b of d numbers, u = a / |a| and v = b / |b|, a label for each pair or none (all
belong together), and m the hyperparameter `margin`:

    c_n = u_n . v_n
    f_n = 1 - c_n                    where the label is +1
    f_n = max(0, c_n - m)            where it is -1
    J   = 1/N sum_n f_n                                                   J: ()

Differential, with delta u = (delta a - u (u . delta a)) / |a| and likewise for v; k_n = -1 where the label is +1, and
[c_n > m] where it is -1:

    delta c = ((v - c u) . delta a) / |a| + ((u - c v) . delta b) / |b|
    delta J = 1/N sum_n k_n delta c_n

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    da_n = g_n k_n (v_n - c_n u_n) / |a_n|                                (..., d)
    db_n = g_n k_n (u_n - c_n v_n) / |b_n|                                (..., d)

da is orthogonal to a: a cosine does not see lengths.

Kinks: at c = m the derivative jumps; 0 is taken, as `jax.nn.relu` does. A vector of length 0 has direction u = 0, so
that c = 0; its derivative is taken as 0.

Cached: a, b and the label. Lengths and cosines, three sums over d, are made again; XLA merges them under one jit.

Numerical care: 1 - c cancels for vectors that nearly agree. Where c > 1/2 it is computed as |u - v|^2 / 2, with an
error relative to |u - v| and not to 1, from u = a / |a|, which for d = 1 is exact. v - c u needs no such care: its
error is that of v and u, either way. Half precision is computed in float32. A NaN makes J NaN,
and the gradient of its pair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import is_number, plain
from bpref.dtypes import cast, widen
from bpref.formulas.loss.signs import is_positive
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.norm.unit_vectors import unit
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule


class Vectors(NamedTuple):
    a: Float[Array, "*n d>0"]
    b: Float[Array, "*n d"]


class LabelledVectors(NamedTuple):
    a: Float[Array, "*n d>0"]
    b: Float[Array, "*n d"]
    label: Int[Array, "*n"] | Bool[Array, "*n"]


def cosine_embedding(
    margin: float = 0.0, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, ...], Reals, Vectors | LabelledVectors]:
    """J = mean of 1 - cos(a, b), or of max(0, cos(a, b) - margin) for pairs labelled -1.

    Args:
      margin: the cosine that vectors which do not belong together may have, from -1 to 1.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(a, b)` or `(a, b, label)`, a and b of one shape `(..., d)`, the label `(...)`
      integer or boolean (positive is +1, anything else -1; its cotangent is None), and y the scalar J, or the
      terms, in at least float32.

    Raises:
      ValueError: margin is not within [-1, 1]; the reduction is none of these; the shapes do not fit; d is 0; a mean is
        over no pairs.
      TypeError: x is no such tuple; a is not floating-point; b has another dtype; the label is real.
    """
    who = "cosine_embedding"
    if not (is_number(margin) and -1 <= margin <= 1):
        raise ValueError(f"{who}: margin is {margin!r}, expected a number from -1 to 1")
    margin = plain(margin)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Vectors | LabelledVectors):
        a, b, *label = x
        (u, _), (v, _), c = _angle(a, b)
        f = jnp.where(c > 0.5, 0.5 * jnp.sum((u - v) ** 2, -1, keepdims=True), 1 - c)
        if label:
            f = jnp.where(_together(*label), f, jnp.where(c <= margin, 0, c - margin))
        return J_of.of(f[..., 0]), x

    def backward(params, cache, dJ):
        a, b, *label = cache
        (u, per_a), (v, per_b), c = _angle(a, b)
        g = -J_of.at_terms(dJ, u.shape[:-1], below=1)
        if label:
            g = jnp.where(_together(*label), g, jnp.where(c <= margin, 0, -g))
        da = cast((g * per_a) * (v - c * u), a.dtype)
        db = cast((g * per_b) * (u - c * v), a.dtype)
        return (), (da, db, None) if label else (da, db)

    return Layer(no_params, forward, backward, who)


def _together(label: Array) -> Array:
    return is_positive(label)[..., None]


def _angle(a: Array, b: Array) -> tuple[tuple[Array, Array], tuple[Array, Array], Array]:
    """(u, 1 / |a|), (v, 1 / |b|) and the cosine c, (..., 1), in at least float32."""
    (u, per_a), (v, per_b) = map(unit, (widen(a), widen(b)))
    return (u, per_a), (v, per_b), jnp.sum(u * v, -1, keepdims=True)


def reference(params: tuple[()], x: tuple[Array, ...], margin: float = 0.0, reduction: str = "mean") -> Array:
    a, b, *labels = x

    def length(z):
        square = jnp.sum(z**2, axis=-1)
        return jnp.where(square == 0, 1, jnp.sqrt(jnp.where(square == 0, 1, square)))

    is_zero = jnp.all(a == 0, axis=-1) | jnp.all(b == 0, axis=-1)
    cosine = jnp.where(is_zero, 0, jnp.sum(a * b, axis=-1) / (length(a) * length(b)))
    terms = 1 - cosine
    if labels:
        terms = jnp.where(labels[0].astype(int) > 0, terms, jax.nn.relu(cosine - margin))
    return naive_reduction(terms, reduction)


_MARGIN = Interval(-0.5, 0.5, 0.1)

RULE = Rule(
    "cosine_embedding",
    cosine_embedding,
    reference,
    cases=(
        Case("pairs", (Real("N d"), Real("N d")), {}, ("N", "d")),
        Case(
            "labels",
            (Real("N d"), Real("N d"), Integer("N", -1, 2)),
            {"margin": _MARGIN},
            ("N", "d"),
            timed={"N": 2048, "d": 256},
        ),
        Case("sequence", (Real("B T d"), Real("B T d"), Integer("B T", 0, 2)), {"reduction": "none"}, ("d",)),
    ),
    cite="PyTorch, CosineEmbeddingLoss; Grill et al., BYOL, arXiv:2006.07733, equation 2 (twice the distance)",
    covers=("cosine_distance", "cosine_similarity_loss"),
)
