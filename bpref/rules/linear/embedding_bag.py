"""embedding_bag: the sum, or the mean, of the rows of a table that a bag of ids names.

Forward, with integer ids x of shape (..., T), a table W of shape (V, d), n running over the bags, t over the places
of a bag and j over the columns; a place with the padding id, if there is one, does not count:

    w_nt = [x_nt is not the padding id]                                   (..., T)
    c_n  = 1, or for the mean max(1, sum_t w_nt)                          (...,)
    y_nj = 1/c_n sum_t w_nt W_(x_nt)j                                     (..., d)

so a bag without any id is 0.

Differential: delta y_nj = 1/c_n sum_t w_nt sum_i [x_nt = i] delta W_ij, since c depends on the ids alone. The factor
of delta W_ij:

    dW_ij = sum_nt w_nt [x_nt = i] dy_nj / c_n                            (V, d)

Every place of a bag has the same cotangent. Ids are integers, so their cotangent is `None`; the padding id's row has
a cotangent of 0.

Cached: the ids. The counts are made again from them.

Numerical care: rows of half precision are added up in float32, and so are the cotangents, in a table of float32. An
id outside [0, V), negative ones too, is never silent: its bag is NaN; no row of dW gets anything for it.
"""

from typing import NamedTuple, SupportsIndex

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.table import add_to_rows, as_ids, normal_table, require_padding, rows
from bpref.layer import Layer, Reals
from bpref.rule import Case, Integer, Rule, Size, called_as


class EmbeddingBagParams(NamedTuple):
    W: Float[Array, "V d"]


class EmbeddingBagCache(NamedTuple):
    x: Int[Array, "... T"]


def embedding_bag(
    vocabulary: int, features: int, mean: bool = False, padding: int | None = None
) -> Layer[EmbeddingBagParams, SupportsIndex, Reals, EmbeddingBagCache]:
    """y = sum over t of W[x_t], or the mean, for each bag of ids.

    Args:
      vocabulary: the number of rows V; ids are 0 to V - 1.
      features: the size d of a row.
      mean: whether the sum is divided by the number of ids in the bag.
      padding: an id that is not counted and whose row is not trained, such as 0; it fills shorter bags.

    Returns:
      A layer with params `EmbeddingBagParams(W: (V, d))`, x integers `(..., T)` and y `(..., d)` in W's dtype. x has
      the cotangent None. W is drawn normally with variance 1/d, the padding row is 0. An empty bag gives 0; an id
      outside `[0, V)` makes its bag NaN and has no cotangent.

    Raises:
      ValueError: `vocabulary` or `features` is not a positive integer; `padding` is no id; x is a scalar; W has
        another shape.
      TypeError: x does not hold integers.
    """
    who = "embedding_bag"
    require_flags(who, mean=mean)
    vocabulary = require_size(who, "vocabulary", vocabulary)
    features = require_size(who, "features", features)
    padding = require_padding(who, padding, vocabulary)

    def init(key, x):
        return EmbeddingBagParams(normal_table(key, vocabulary, features, padding))

    def forward(params, x):
        W = params.W
        ids = as_ids(who, x)
        if ids.ndim == 0:
            raise ValueError(f"{who}: x is a scalar, expected bags of ids (..., T)")
        summands = widen(rows(W, ids))
        if padding is not None:
            summands = jnp.where((ids == padding)[..., None], 0, summands)
        y = jnp.sum(summands, -2)
        return cast(y / _count(ids, y) if mean else y, W.dtype), EmbeddingBagCache(ids)

    def backward(params, cache, dy):
        W, ids = params.W, cache.x
        share = widen(dy) / _count(ids, widen(dy)) if mean else widen(dy)
        repeated = jnp.broadcast_to(share[..., None, :], (*ids.shape, W.shape[1]))
        dW = add_to_rows(jnp.zeros(W.shape, wide_dtype(W.dtype)), ids, repeated, padding)
        return EmbeddingBagParams(cast(dW, W.dtype)), None

    def _count(ids, like):
        """c in the dtype of `like`, (..., 1)."""
        if padding is None:
            return jnp.asarray(max(ids.shape[-1], 1), like.dtype)
        return jnp.maximum(jnp.sum(ids != padding, -1, keepdims=True), 1).astype(like.dtype)

    return Layer(init, forward, backward, who)


@called_as(embedding_bag)
def reference(params: EmbeddingBagParams, x: Array, mean, padding, **_) -> Array:
    summands = jnp.take(params.W, x, axis=0)
    counts = jnp.ones(x.shape, summands.dtype) if padding is None else (x != padding).astype(summands.dtype)
    y = jnp.sum(summands * counts[..., None], axis=-2)
    return y / jnp.maximum(jnp.sum(counts, axis=-1), 1)[..., None] if mean else y


_HYPER = {"vocabulary": Size("V"), "features": Size("d")}

RULE = Rule(
    "embedding_bag",
    embedding_bag,
    reference,
    cases=(
        Case("sum", Integer("N T", 0, "V"), _HYPER, ("V", "d")),
        Case(
            "mean, padding",
            Integer("N T", 0, "V"),
            _HYPER | {"mean": True, "padding": 0},
            ("V", "d"),
            timed={"N": 256, "T": 16, "V": 4096, "d": 64},
        ),
        Case("one bag, mean", Integer("T", 0, "V"), _HYPER | {"mean": True}, ("V", "d")),
    ),
    cite="arXiv:1607.01759, section 2; torch.nn.EmbeddingBag",
    covers=("bag of words", "fasttext"),
)
