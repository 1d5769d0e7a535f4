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

Packed, the bags are of different lengths and stand one after the other in a line x of shape (M,): bag n from its offset
o_n up to the next one. The sums over t are over the places of a bag then, and n of a place is

    n(m) = the number of offsets o_n <= m, less one                       (M,)

which is -1, no bag's, for what stands before the first of them. All shapes are static, M and N, whatever the lengths.

Without weights every place of a bag has the same cotangent. Ids are integers, so their cotangent is `None`; the padding
id's row has a cotangent of 0. At a tie the first place has all of dy: the same row twice in a bag gets what it would
get if they shared.

PyTorch's `max_norm` is no argument here: it writes shorter rows into the table before it looks rows up, which is no
function of the table, and no term of dW knows of it. Clip the rows of W after an update instead.

Cached: the ids, the offsets, the weights, and of the maximum t in the smallest integers, the number of places where
none counts. The counts are made again from the ids, and n(m) from the offsets.

Numerical care: rows of half precision are added up in float32, and so are the cotangents, in a table of float32. An
id outside [0, V), negative ones too, is never silent: its bag is NaN; no row of dW gets anything for it.
"""

from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, UInt

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.checks.shapes import require_shape
from bpref.dtypes import as_array, came, cast, wide_dtype, widen, widen_integers
from bpref.formulas.indexing.indices import smallest_integer
from bpref.formulas.indexing.table import add_to_rows, as_ids, normal_table, require_padding, rows
from bpref.layer import Layer, Reals
from bpref.rule import Case, Integer, Real, Rule, Size, called_as


class EmbeddingBagParams(NamedTuple):
    W: Float[Array, "V d"]


class EmbeddingBagCache(NamedTuple):
    x: Int[Array, "... T"]
    offsets: Int[Array, " N"] | None
    weights: Float[Array, "... T"] | None
    t: UInt[Array, "... d"] | None


def embedding_bag(
    vocabulary: int,
    features: int,
    mean: bool = False,
    padding: int | None = None,
    maximum: bool = False,
    packed: bool = False,
) -> Layer[EmbeddingBagParams, SupportsIndex, Reals, EmbeddingBagCache]:
    """y = sum over t of W[x_t], the mean, or the maximum of each column, for each bag of ids.

    Args:
      vocabulary: the number of rows V; ids are 0 to V - 1.
      features: the size d of a row.
      mean: whether the sum is divided by the number of ids in the bag.
      padding: an id that is not counted and whose row is not trained, such as 0; it fills shorter bags.
      maximum: whether y is the maximum of each column.
      packed: whether bags of different lengths stand one after the other: x is `(ids, offsets)`, as PyTorch has it.

    Returns:
      A layer with params `EmbeddingBagParams(W: (V, d))`, x integers `(..., T)` and y `(..., d)` in W's dtype; for a
      sum x may be a pair `(ids, weights)` too, the weights `(..., T)` of W's dtype. Packed, x is ids `(M,)` and offsets
      `(N,)`, where each bag begins, in ascending order, and for a sum weights `(M,)` as a third; y is `(N, d)`. Ids and
      offsets have the cotangent None. W is drawn normally with variance 1/d, the padding row is 0. An empty bag gives
      0; an id outside `[0, V)` makes its bag NaN and has no cotangent.

    Raises:
      ValueError: `vocabulary` or `features` is not a positive integer; `padding` is no id; mean and maximum are both
        asked for, or one of them and weights; x is a scalar, or packed no line; W or the weights have another shape.
      TypeError: x does not hold integers, or packed is no tuple; the weights are not of W's dtype.
    """
    who = "embedding_bag"
    require_flags(who, mean=mean, maximum=maximum, packed=packed)
    if mean and maximum:
        raise ValueError(f"{who}: mean and maximum are True, expected one of them at most")
    vocabulary = require_size(who, "vocabulary", vocabulary)
    features = require_size(who, "features", features)
    padding = require_padding(who, padding, vocabulary)

    def init(key, x):
        return EmbeddingBagParams(normal_table(key, vocabulary, features, padding))

    def forward(params, x):
        W = params.W
        ids, offsets, weights = _packed(who, x, W) if packed else _taken_apart(who, x, W)
        if weights is not None and (mean or maximum):
            raise ValueError(f"{who}: x has weights, which are those of a sum, not of a mean or a maximum")
        bags = _bags(ids, offsets)
        summands = widen(rows(W, ids))
        if maximum:
            y, t = bags.largest(_counted(summands, ids, padding, -jnp.inf))
            is_empty = bags.how_many(ids, padding) == 0
            t = jnp.where(is_empty, ids.shape[-1], t).astype(smallest_integer(ids.shape[-1] + 1))
            return cast(jnp.where(is_empty, 0, y), W.dtype), EmbeddingBagCache(ids, offsets, None, t)
        summands = _counted(summands, ids, padding)
        y = bags.total(summands if weights is None else widen(weights)[..., None] * summands)
        y = y / _at_least_one(bags.how_many(ids, padding), y) if mean else y
        return cast(y, W.dtype), EmbeddingBagCache(ids, offsets, weights, None)

    def backward(params, cache, dy):
        W, (ids, offsets, weights, t) = params.W, cache
        bags = _bags(ids, offsets)
        total = jnp.zeros(W.shape, wide_dtype(W.dtype))
        if t is not None:
            of_t = bags.ids_at(ids, widen_integers(t), W.shape[0])
            columns = lax.broadcasted_iota(of_t.dtype, t.shape, t.ndim - 1)
            dW = total.at[of_t, columns].add(widen(dy), mode="drop", wrap_negative_indices=False)
            return EmbeddingBagParams(cast(dW, W.dtype)), None
        share = widen(dy)
        repeated = bags.spread(share / _at_least_one(bags.how_many(ids, padding), share) if mean else share)
        dx = None
        if weights is not None:
            dweights = jnp.sum(repeated * _counted(widen(rows(W, ids)), ids, padding), -1)
            dx = (*([None, None] if packed else [None]), cast(dweights, weights.dtype))
            repeated = repeated * widen(weights)[..., None]
        return EmbeddingBagParams(cast(add_to_rows(total, ids, repeated, padding), W.dtype)), dx

    return Layer(init, forward, backward, who)


class _EqualBags(NamedTuple):
    """Bags of T places each, in the last axis of the ids."""

    T: int

    def total(self, of_places: Array) -> Array:
        return jnp.sum(of_places, -2)

    def spread(self, of_bags: Array) -> Array:
        *bags, d = of_bags.shape
        return jnp.broadcast_to(of_bags[..., None, :], (*bags, self.T, d))

    def how_many(self, ids: Array, padding: int | None) -> Array:
        """How many places of each bag count, (..., 1)."""
        return jnp.asarray(self.T) if padding is None else jnp.sum(ids != padding, -1, keepdims=True)

    def largest(self, of_places: Array) -> tuple[Array, Array]:
        """The largest of each bag, and the first place that attains it."""
        if self.T == 0:
            y = self.total(of_places)
            return y, jnp.zeros(y.shape, int)
        t = jnp.argmax(of_places, -2, keepdims=True)
        return jnp.take_along_axis(of_places, t, -2).squeeze(-2), t.squeeze(-2)

    def ids_at(self, ids: Array, t: Array, nowhere: int) -> Array:
        return jnp.take_along_axis(_and_nowhere(ids, nowhere), t, -1)


class _PackedBags(NamedTuple):
    """N bags one after the other in a line of ids, each place having its bag's number."""

    bag_of: Array
    N: int

    def total(self, of_places: Array) -> Array:
        return jax.ops.segment_sum(of_places, self.bag_of, self.N)

    def spread(self, of_bags: Array) -> Array:
        return jnp.pad(of_bags, ((0, 1), (0, 0)))[self.bag_of]  # -1 is the last row, of 0

    def how_many(self, ids: Array, padding: int | None) -> Array:
        is_in = jnp.ones(ids.shape, bool) if padding is None else ids != padding
        return self.total(is_in[:, None].astype(jnp.int32))

    def largest(self, of_places: Array) -> tuple[Array, Array]:
        y = jax.ops.segment_max(of_places, self.bag_of, self.N)
        attains = (of_places == self.spread(y)) | jnp.isnan(of_places)
        M = len(self.bag_of)
        places = jnp.where(attains, lax.broadcasted_iota(jnp.int32, attains.shape, 0), M)
        return y, jax.ops.segment_min(places, self.bag_of, self.N)

    def ids_at(self, ids: Array, t: Array, nowhere: int) -> Array:
        return _and_nowhere(ids, nowhere)[t]


def _and_nowhere(ids: Array, nowhere: int) -> Array:
    """The ids and, at the place after the last one, an id of no row."""
    return jnp.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, 1)], constant_values=nowhere)


def _bags(ids: Array, offsets: Array | None) -> _EqualBags | _PackedBags:
    if offsets is None:
        return _EqualBags(ids.shape[-1])
    begins = jnp.zeros(ids.shape, jnp.int32).at[jnp.maximum(offsets, 0)].add(1, mode="drop")
    return _PackedBags(jnp.cumsum(begins) - 1, len(offsets))


def _at_least_one(count: Array, like: Array) -> Array:
    return jnp.maximum(count, 1).astype(like.dtype)


def _taken_apart(who: str, x: Array | tuple[Array, ...], W: Array) -> tuple[Array, None, Array | None]:
    """Ids, no offsets, and the weights that x may have beside them."""
    if not isinstance(x, tuple):
        ids, weights = as_ids(who, x), None
    elif len(x) != 2:
        raise TypeError(f"{who}: x is a tuple of {len(x)}, expected ids, or a tuple (ids, weights)")
    else:
        ids = as_ids(who, x[0])
        weights = _weights(who, x[1], ids, W)
    if ids.ndim == 0:
        raise ValueError(f"{who}: x is a scalar, expected bags of ids (..., T)")
    return ids, None, weights


def _packed(who: str, x: tuple[Array, ...], W: Array) -> tuple[Array, Array, Array | None]:
    """Ids and offsets, and the weights that x may have beside them."""
    if not isinstance(x, tuple) or len(x) not in (2, 3):
        raise TypeError(f"{who}: x is {came(x)}, expected a tuple (ids, offsets, [weights]), the bags being packed")
    ids, offsets = as_ids(who, x[0]), as_ids(who, x[1], "offsets")
    for name, v, expected in (("ids", ids, "(M,)"), ("offsets", offsets, "(N,)")):
        if v.ndim != 1:
            raise ValueError(f"{who}: {name} has shape {v.shape}, expected {expected}, the bags being packed")
    return ids, offsets, _weights(who, x[2], ids, W) if len(x) == 3 else None


def _weights(who: str, weights: ArrayLike, ids: Array, W: Array) -> Array:
    weights = as_array(who, "weights", weights)
    if weights.dtype != W.dtype:
        raise TypeError(f"{who}: weights has dtype {weights.dtype}, W has {W.dtype}; cast one to the other's")
    require_shape(who, "weights", weights, ids.shape, "that of the ids")
    return weights


def _counted(summands: Array, ids: Array, padding: int | None, otherwise: float = 0) -> Array:
    """The rows of places that count, 0 in the others."""
    return summands if padding is None else jnp.where((ids == padding)[..., None], otherwise, summands)


@called_as(embedding_bag)
def reference(params: EmbeddingBagParams, x: Array | tuple, mean, padding, maximum, packed, **_) -> Array:
    """Packed, each bag has all of the places, those of the other bags not counting."""
    x, *others = x if isinstance(x, tuple) else (x,)
    is_in = x != (-1 if padding is None else padding)
    if packed:
        offsets, *others = others
        M, N = (jnp.arange(len(v), dtype=offsets.dtype) for v in (x, offsets))
        bag_of = jnp.sum(offsets[:, None] <= M[None], 0, dtype=offsets.dtype) - 1
        is_in = is_in[None] & (N[:, None] == bag_of[None])
    summands = jnp.take(params.W, x, axis=0)
    for weights in others:
        summands = weights[..., None] * summands
    summands = jnp.broadcast_to(summands, (*is_in.shape, summands.shape[-1]))
    if maximum and x.shape[-1] > 0:
        first = jnp.argmax(jnp.where(is_in[..., None], summands, -jnp.inf), -2, keepdims=True)
        y = jnp.take_along_axis(summands, first, -2).squeeze(-2)
        return jnp.where(jnp.any(is_in, -1)[..., None], y, 0)
    counts = is_in.astype(summands.dtype)
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
        Case(
            "packed, weights, padding",
            (Integer("M", 0, "V"), Integer("N", 0, 3), Real("M")),
            _HYPER | {"padding": 0, "packed": True},
            ("V", "d"),
        ),
        Case(
            "packed, maximum",
            (Integer("M", 0, "V"), Integer("N", 0, 3)),
            _HYPER | {"maximum": True, "packed": True},
            ("V", "d"),
        ),
    ),
    cite="arXiv:1607.01759, section 2; torch.nn.EmbeddingBag",
    covers=("bag of words", "fasttext"),
)
