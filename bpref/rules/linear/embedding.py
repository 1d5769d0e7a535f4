"""embedding: rows of a table, y_n = W_(x_n).

Forward, with integer ids x of shape (...), a table W of shape (V, d), n running over all positions and j over the
columns. It is a product with one-hot rows that is never formed:

    y_nj = sum_i [x_n = i] W_ij = W_(x_n)j                                (..., d)

Differential: delta y_nj = sum_i [x_n = i] delta W_ij, so the factor of delta W_ij in sum_nj dy_nj delta y_nj is

    dW_ij = sum_n [x_n = i] dy_nj                                         (V, d)

the sum of the cotangents of all positions where i stands: rows of repeated ids add up, and are not averaged. Ids are
integers, so their cotangent is `None`. With a padding id p, the row W_p is held constant, and dW_p = 0.

Cached: the ids.

Numerical care: cotangents of half precision are added up in a table of float32 and rounded once: a frequent id would
otherwise stop to grow. An id outside [0, V), negative ones too, is never silent: its y is NaN; no row of dW gets it.
"""

from typing import NamedTuple, SupportsIndex

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast, wide_dtype
from bpref.formulas.indexing.table import add_to_rows, as_ids, normal_table, require_padding, rows
from bpref.layer import Layer, Reals, each_position
from bpref.rule import Case, Integer, Rule, Size


class EmbeddingParams(NamedTuple):
    W: Float[Array, "V d"]


class EmbeddingCache(NamedTuple):
    x: Int[Array, "..."]


def embedding(
    vocabulary: int, features: int, padding: int | None = None
) -> Layer[EmbeddingParams, SupportsIndex, Reals, EmbeddingCache]:
    """y = W[x], a row of the table for each id.

    Args:
      vocabulary: the number of rows V; ids are 0 to V - 1.
      features: the size d of a row.
      padding: an id whose row is not trained, such as 0.

    Returns:
      A layer with params `EmbeddingParams(W: (V, d))`, x integers `(...)` and y `(..., d)` in W's dtype. x has the
      cotangent None. W is drawn normally with variance 1/d, the padding row is 0. An id outside `[0, V)` gives a row
      of NaN and no cotangent.

    Raises:
      ValueError: `vocabulary` or `features` is not a positive integer; `padding` is no id; W has another shape.
      TypeError: x does not hold integers.
    """
    who = "embedding"
    vocabulary = require_size(who, "vocabulary", vocabulary)
    features = require_size(who, "features", features)
    padding = require_padding(who, padding, vocabulary)

    def init(key, x):
        return EmbeddingParams(normal_table(key, vocabulary, features, padding))

    def forward(params, x):
        ids = as_ids(who, x)
        y = rows(params.W, ids)
        if padding is not None:
            y = jnp.where((ids == padding)[..., None], lax.stop_gradient(y), y)
        return y, EmbeddingCache(ids)

    def backward(params, cache, dy):
        W = params.W
        dW = add_to_rows(jnp.zeros(W.shape, wide_dtype(W.dtype)), cache.x, dy, padding)
        return EmbeddingParams(cast(dW, W.dtype)), None

    return Layer(init, forward, backward, who, decoding=each_position)


def reference(params: EmbeddingParams, x: Array, vocabulary: int, features: int, padding: int | None = None) -> Array:
    W = params.W if padding is None else params.W.at[padding].set(lax.stop_gradient(params.W[padding]))
    return jnp.take(W, x, axis=0)


_HYPER = {"vocabulary": Size("V"), "features": Size("d")}

RULE = Rule(
    "embedding",
    embedding,
    reference,
    cases=(
        Case("sequence", Integer("B T", 0, "V"), _HYPER, ("V", "d"), timed={"B": 16, "T": 256, "V": 16384, "d": 128}),
        Case("padding", Integer("N", 0, "V"), _HYPER | {"padding": 0}, ("V", "d")),
        Case("one id", Integer("", 0, "V"), _HYPER, ("V", "d")),
    ),
    cite="Bengio et al., 'A neural probabilistic language model' (2003), JMLR 3, equation 4",
    covers=("lookup table", "gather rows"),
)
