"""tied_embedding: one table at both ends of a model: ids to rows at its input, features to logits at its output.

Forward, with integer ids x of shape (...), a table W of shape (V, d), an inner layer f that keeps the last axis, n and
p running over the positions:

    E_n  = W_(x_n)                            the embedding               (..., d)
    H    = f(E)                               what lies in between        (..., d)
    z_ni = sum_j H_nj W_ij                    the logits, z = H W^T       (..., V)

Differential. The table is perturbed at both places at once:

    delta z_ni = sum_j (delta H_nj) W_ij + sum_j H_nj (delta W_ij)
    delta E_nj = sum_i [x_n = i] delta W_ij

H's cotangent goes through the inner layer's own backward, which gives dE. The factors of delta W_ij, one from each
end, add up:

    dH_nj = sum_i dz_ni W_ij                  dH = dz W                   (..., d)
    dE    = f's backward of dH                                            (..., d)
    dW_ij = sum_n dz_ni H_nj + sum_n [x_n = i] dE_nj                      (V, d)

The first term reaches every row, whether its id occurs or not; the second those that do. Ids have the cotangent
`None`.

Cached: the ids, f's cache, and H. E is what f reads, and f keeps it if it needs it.

The layer is one leaf, with f inside it: what is done with the gradients of leaves needs the sum dW, which neither end
alone knows. The rows of E are added into the product of the output, and no second table is made.

Numerical care: products of half-precision matrices accumulate in float32, and both terms of dW are added up in float32
before they are rounded. An id outside [0, V), negative ones too, is never silent: its E is NaN; of dW no row gets its
second term.
"""

from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bpref.apart import sealed_by
from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast, require_array
from bpref.formulas.affine import times, times_transposed, transposed_times
from bpref.formulas.indexing.table import add_to_rows, as_ids, normal_table, rows
from bpref.layer import Layer, Reals, in_evaluation, require_layer, require_no_state
from bpref.rule import Case, Integer, Rule, Size
from bpref.rules.activation.tanh import tanh
from bpref.rules.linear.linear import linear


class TiedEmbeddingParams(NamedTuple):
    W: Float[Array, "V d"]
    inner: PyTree


class TiedEmbeddingCache(NamedTuple):
    x: Int[Array, "..."]
    inner: PyTree
    H: Float[Array, "... d"]


def tied_embedding(
    vocabulary: int, features: int, inner: Layer
) -> Layer[TiedEmbeddingParams, SupportsIndex, Reals, TiedEmbeddingCache]:
    """z = f(W[x]) W^T: `inner` between an embedding and an output projection that share the table W.

    Args:
      vocabulary: the number of rows V; ids are 0 to V - 1, logits (..., V).
      features: the size d of a row.
      inner: f, any layer or composition from `(..., d)` to `(..., d)`, in W's dtype.

    Returns:
      A layer with params `TiedEmbeddingParams(W: (V, d), inner: f's)`, x integers `(...)` and y the logits `(..., V)`
      in W's dtype. x has the cotangent None. W is drawn normally with variance 1/d. An id outside `[0, V)` has an
      embedding of NaN, which f makes visible, and no cotangent.

    Raises:
      ValueError: `vocabulary` or `features` is not a positive integer; W has another shape; f gives another last axis.
      TypeError: x does not hold integers; f gives another dtype, or is stateful (`shared` ties any `serial`).
    """
    who = "tied_embedding"
    vocabulary = require_size(who, "vocabulary", vocabulary)
    features = require_size(who, "features", features)
    require_layer(who, "inner", inner)
    require_no_state(who, inner)

    def init(key, x):
        require_array(who, "x", x)
        of_table, of_inner = jax.random.split(key)
        W = normal_table(of_table, vocabulary, features)
        return TiedEmbeddingParams(W, inner.init(of_inner, jax.ShapeDtypeStruct((*x.shape, features), W.dtype)))

    def forward(params, x):
        W = params.W
        ids = as_ids(who, x)
        H, cache = inner.forward(params.inner, rows(W, ids))
        if H.shape[-1:] != W.shape[1:]:
            raise ValueError(f"{who}: {inner.name} gives shape {H.shape}, W expects (..., {W.shape[1]}) (W: {W.shape})")
        if H.dtype != W.dtype:
            raise TypeError(f"{who}: {inner.name} gives dtype {H.dtype}, W has {W.dtype}; cast one to the other's")
        return cast(times_transposed(H, W), W.dtype), TiedEmbeddingCache(ids, cache, H)

    def backward(params, cache, dz):
        W = params.W
        dH = cast(times(dz, W), W.dtype)
        dinner, dE = inner.backward(params.inner, cache.inner, dH)
        dW = add_to_rows(transposed_times(dz, cache.H), cache.x, dE)
        return TiedEmbeddingParams(cast(dW, W.dtype), dinner), None

    inside = in_evaluation(inner)
    evaluating = None if inside is None else tied_embedding(vocabulary, features, inside)
    return Layer(init, forward, backward, who, evaluating=evaluating, sealed=sealed_by(inner))


def reference(params: TiedEmbeddingParams, x: Array, vocabulary: int, features: int, inner: Layer) -> Array:
    H = inner.forward(params.inner, jnp.take(params.W, x, axis=0))[0]
    return jnp.einsum("...j,ij->...i", H, params.W)


RULE = Rule(
    "tied_embedding",
    tied_embedding,
    reference,
    cases=(
        Case(
            "sequence, tanh",
            Integer("B T", 0, "V"),
            {"vocabulary": Size("V"), "features": Size("d"), "inner": tanh()},
            ("V", "d"),
            timed={"B": 4, "T": 64, "V": 2048, "d": 64},
        ),
        Case("linear", Integer("N", 0, "V"), {"vocabulary": Size("V"), "features": 3, "inner": linear(3)}, ("V",)),
    ),
    cite="arXiv:1608.05859, section 2",
    covers=("weight tying", "shared embedding"),
)
