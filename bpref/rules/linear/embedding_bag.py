"""embedding_bag: the sum, the mean or the maximum of the rows of a table that a bag of ids names.

Forward, with integer ids x of shape (..., T), a table W of shape (V, d), n running over the bags, t over the places
of a bag and j over the columns; a place with the padding id, if there is one, does not count:

    w_nt = [x_nt is not the padding id]                                   (..., T)
    c_n  = 1, or for the mean max(1, sum_t w_nt)                          (...,)
    y_nj = 1/c_n sum_t w_nt W_(x_nt)j                                     (..., d)

so a bag without any id is 0. With a weight p_nt for each place, of the sum alone, p_nt w_nt stands in the place of
w_nt. The maximum is that of each column, t_nj being the first place that counts and attains it,

    y_nj = W_(x_n,t_nj)j                                                  (..., d)

Differential: delta y_nj = 1/c_n sum_t w_nt sum_i [x_nt = i] delta W_ij, since c depends on the ids alone. The factor
of delta W_ij:

    dW_ij = sum_nt w_nt [x_nt = i] dy_nj / c_n                            (V, d)

and with weights, delta y_nj having the term sum_t w_nt W_(x_nt)j delta p_nt too,

    dp_nt = w_nt sum_j W_(x_nt)j dy_nj                                    (..., T)
    dW_ij = sum_nt p_nt w_nt [x_nt = i] dy_nj                             (V, d)

and of the maximum, whose t_nj does not change with W while no two of the largest are equal,

    dW_ij = sum_n [x_n,t_nj = i] dy_nj                                    (V, d)

Without weights every place of a bag has the same cotangent. Ids are integers, so their cotangent is `None`; the padding
id's row has a cotangent of 0. At a tie the first place has all of dy: the same row twice in a bag gets what it would
get if they shared.

PyTorch's `max_norm` is no argument here: it writes shorter rows into the table before it looks rows up, which is no
function of the table, and no term of dW knows of it. Clip the rows of W after an update instead.

Cached: the ids, the weights, and of the maximum t in the smallest integers. The counts are made again from the ids.

Numerical care: rows of half precision are added up in float32, and so are the cotangents, in a table of float32. An
id outside [0, V), negative ones too, is never silent: its bag is NaN; no row of dW gets anything for it.
"""

from typing import NamedTuple, SupportsIndex

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, UInt

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.checks.shapes import require_shape
from bpref.dtypes import as_array, cast, wide_dtype, widen, widen_integers
from bpref.formulas.indexing.indices import smallest_integer
from bpref.formulas.indexing.table import add_to_rows, as_ids, normal_table, require_padding, rows
from bpref.layer import Layer, Reals
from bpref.rule import Case, Integer, Real, Rule, Size, called_as


class EmbeddingBagParams(NamedTuple):
    W: Float[Array, "V d"]


class EmbeddingBagCache(NamedTuple):
    x: Int[Array, "... T"]
    weights: Float[Array, "... T"] | None
    t: UInt[Array, "... d"] | None


def embedding_bag(
    vocabulary: int, features: int, mean: bool = False, padding: int | None = None, maximum: bool = False
) -> Layer[EmbeddingBagParams, SupportsIndex, Reals, EmbeddingBagCache]:
    """y = sum over t of W[x_t], the mean, or the maximum of each column, for each bag of ids.

    Args:
      vocabulary: the number of rows V; ids are 0 to V - 1.
      features: the size d of a row.
      mean: whether the sum is divided by the number of ids in the bag.
      padding: an id that is not counted and whose row is not trained, such as 0; it fills shorter bags.
      maximum: whether y is the maximum of each column.

    Returns:
      A layer with params `EmbeddingBagParams(W: (V, d))`, x integers `(..., T)` and y `(..., d)` in W's dtype; for a
      sum x may be a pair `(ids, weights)` too, the weights `(..., T)` of W's dtype. Ids have the cotangent None. W is
      drawn normally with variance 1/d, the padding row is 0. An empty bag gives 0; an id outside `[0, V)` makes its bag
      NaN and has no cotangent.

    Raises:
      ValueError: `vocabulary` or `features` is not a positive integer; `padding` is no id; mean and maximum are both
        asked for, or one of them and weights; x is a scalar; W or the weights have another shape.
      TypeError: x does not hold integers; the weights are not of W's dtype.
    """
    who = "embedding_bag"
    require_flags(who, mean=mean, maximum=maximum)
    if mean and maximum:
        raise ValueError(f"{who}: mean and maximum are True, expected one of them at most")
    vocabulary = require_size(who, "vocabulary", vocabulary)
    features = require_size(who, "features", features)
    padding = require_padding(who, padding, vocabulary)

    def init(key, x):
        return EmbeddingBagParams(normal_table(key, vocabulary, features, padding))

    def forward(params, x):
        W = params.W
        ids, weights = _taken_apart(who, x, W)
        if weights is not None and (mean or maximum):
            raise ValueError(f"{who}: x has weights, which are those of a sum, not of a mean or a maximum")
        if ids.ndim == 0:
            raise ValueError(f"{who}: x is a scalar, expected bags of ids (..., T)")
        summands = widen(rows(W, ids))
        if maximum:
            return _largest(W, ids, summands, padding)
        summands = _counted(summands, ids, padding)
        y = jnp.sum(summands if weights is None else widen(weights)[..., None] * summands, -2)
        return cast(y / _count(ids, y) if mean else y, W.dtype), EmbeddingBagCache(ids, weights, None)

    def backward(params, cache, dy):
        W, (ids, weights, t) = params.W, cache
        if t is not None:
            return EmbeddingBagParams(_to_largest(W, ids, t, dy, padding)), None
        share = widen(dy) / _count(ids, widen(dy)) if mean else widen(dy)
        repeated = jnp.broadcast_to(share[..., None, :], (*ids.shape, W.shape[1]))
        dx = None
        if weights is not None:
            dweights = jnp.sum(repeated * _counted(widen(rows(W, ids)), ids, padding), -1)
            dx = None, cast(dweights, weights.dtype)
            repeated = repeated * widen(weights)[..., None]
        dW = add_to_rows(jnp.zeros(W.shape, wide_dtype(W.dtype)), ids, repeated, padding)
        return EmbeddingBagParams(cast(dW, W.dtype)), dx

    def _count(ids, like):
        """c in the dtype of `like`, (..., 1)."""
        if padding is None:
            return jnp.asarray(max(ids.shape[-1], 1), like.dtype)
        return jnp.maximum(jnp.sum(ids != padding, -1, keepdims=True), 1).astype(like.dtype)

    return Layer(init, forward, backward, who)


def _taken_apart(who: str, x: Array | tuple[Array, ...], W: Array) -> tuple[Array, Array | None]:
    """Ids, and the weights that x may have beside them."""
    if not isinstance(x, tuple):
        return as_ids(who, x), None
    if len(x) != 2:
        raise TypeError(f"{who}: x is a tuple of {len(x)}, expected ids, or a tuple (ids, weights)")
    ids, weights = as_ids(who, x[0]), as_array(who, "weights", x[1])
    if weights.dtype != W.dtype:
        raise TypeError(f"{who}: weights has dtype {weights.dtype}, W has {W.dtype}; cast one to the other's")
    require_shape(who, "weights", weights, ids.shape, "that of the ids")
    return ids, weights


def _counted(summands: Array, ids: Array, padding: int | None, otherwise: float = 0) -> Array:
    """The rows of places that count, 0 in the others."""
    return summands if padding is None else jnp.where((ids == padding)[..., None], otherwise, summands)


def _largest(W: Array, ids: Array, of_places: Array, padding: int | None) -> tuple[Array, EmbeddingBagCache]:
    """y and the cache of a maximum."""
    T = ids.shape[-1]
    if T == 0:
        y = jnp.zeros((*ids.shape[:-1], W.shape[1]), W.dtype)
        return y, EmbeddingBagCache(ids, None, jnp.zeros(y.shape, jnp.uint8))
    counted = _counted(of_places, ids, padding, -jnp.inf)
    t = jnp.argmax(counted, -2, keepdims=True)
    y = jnp.take_along_axis(counted, t, -2).squeeze(-2)
    if padding is not None:
        y = jnp.where(jnp.all(ids == padding, -1, keepdims=True), 0, y)
    return cast(y, W.dtype), EmbeddingBagCache(ids, None, t.squeeze(-2).astype(smallest_integer(T)))


def _to_largest(W: Array, ids: Array, t: Array, dy: Array, padding: int | None) -> Array:
    """dW of a maximum: dy_nj to row x_n,t_nj of column j."""
    total = jnp.zeros(W.shape, wide_dtype(W.dtype))
    if ids.shape[-1] == 0:
        return cast(total, W.dtype)
    of_t = jnp.take_along_axis(ids, widen_integers(t), -1)
    if padding is not None:
        of_t = jnp.where(of_t == padding, W.shape[0], of_t)
    columns = lax.broadcasted_iota(of_t.dtype, t.shape, t.ndim - 1)
    total = total.at[of_t, columns].add(widen(dy), mode="drop", wrap_negative_indices=False)
    return cast(total, W.dtype)


@called_as(embedding_bag)
def reference(params: EmbeddingBagParams, x: Array | tuple[Array, Array], mean, padding, maximum, **_) -> Array:
    x, weights = x if isinstance(x, tuple) else (x, None)
    summands = jnp.take(params.W, x, axis=0)
    if weights is not None:
        summands = weights[..., None] * summands
    if maximum and x.shape[-1] > 0:
        is_in = (x != (-1 if padding is None else padding))[..., None]
        first = jnp.argmax(jnp.where(is_in, summands, -jnp.inf), -2, keepdims=True)
        y = jnp.take_along_axis(summands, first, -2).squeeze(-2)
        return jnp.where(jnp.any(is_in, -2), y, 0)
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
        Case("weights, padding", (Integer("N T", 0, "V"), Real("N T")), _HYPER | {"padding": 0}, ("V", "d")),
        Case("maximum", Integer("N T", 0, "V"), _HYPER | {"maximum": True, "padding": 1}, ("V", "d"), least={"V": 2}),
        Case("one bag, mean", Integer("T", 0, "V"), _HYPER | {"mean": True}, ("V", "d")),
    ),
    cite="arXiv:1607.01759, section 2; torch.nn.EmbeddingBag",
    covers=("bag of words", "fasttext"),
)
