"""scatter_along_axis: y = x, and each element of u at its own index along one axis, summed, multiplied or compared.

Forward, with r the coordinates on all axes but one, which has n elements in data x and M in indices i and updates u,
S_rk = {m: i_rm = k} what comes to an element, and s_rk = 1 if the data are included or S_rk is empty, else 0:

    sum:   y_rk = s_rk x_rk + sum over S_rk of u_rm                       x, y: (R..., n), i, u: (R..., M)
    mean:  y_rk = (s_rk x_rk + sum over S_rk of u_rm) / c_rk
    prod:  y_rk = x_rk^(s_rk) Q_rk
    max:   y_rk = max of u_rm over S_rk and, where s_rk = 1, of x_rk;     min: likewise

c_rk is s_rk and the number of those in S_rk, Q_rk the product of their u_rm. An index below 0 counts from the end; one
outside [-n, n) comes to nothing.

Differential, each update being in one element at most, k = i_rm:

    sum:   dx_rk = s_rk dy_rk                     du_rm = dy_rk
    mean:  dx_rk = s_rk dy_rk / c_rk              du_rm = dy_rk / c_rk
    prod:  dx_rk = s_rk dy_rk Q_rk                du_rm = dy_rk x_rk^(s_rk) Q_rm
    max:   dx_rk = a_rk dy_rk / c_rk              du_rm = b_rm dy_rk / c_rk

du is 0 where i is outside. Q_rm is the product of all others in S_rk. For max a_rk = 1 where s_rk = 1 and x_rk = y_rk,
b_rm = 1 where u_rm = y_rk, else 0, and c_rk = a_rk + sum over S_rk of b_rm is the number of those that are largest:
kinks, where those who tie share dy equally, as in `segment_max` and in PyTorch. The indices are integers: None.

The product of the others is no quotient, which would be 0 / 0 at a zero: along the axis updates are brought into the
order of their indices, q being the permutation, and multiplied from either end, see
`formulas/indexing/segmented_products.py`.

Cached: the indices, as places from 0 to n - 1 with n for nowhere, in the smallest integers; they tell s and c. For prod
x, u, Q, and q in the smallest integers; for max a and b, one byte an element.

Numerical care: half precision is computed in float32 and rounded once; the order of a sum is the device's. NaN is the
largest and the smallest, and makes dx and du NaN where it is, as in `segment_max`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt

from bpref.checks.hyperparameters import require_choice, require_flags
from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.indexing.indices import add_along, axis_of_each, placed, smallest_integer
from bpref.formulas.indexing.segmented_products import product_of_others, running_product, stretches
from bpref.formulas.norm.reduced import shared_out
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule

REDUCTIONS = ("sum", "mean", "prod", "max", "min")


class UpdatedAlongAxis(NamedTuple):
    data: Float[Array, "*n"]
    indices: Int[Array, "*m"]
    updates: Float[Array, "*m"]


class Factors(NamedTuple):
    """What the cotangent of a product needs: x or 1, Q, the updates and the order of their places."""

    of_data: Float[Array, "..."] | None
    Q: Float[Array, "..."]
    updates: Float[Array, "..."]
    q: UInt[Array, "..."]


class Attained(NamedTuple):
    """a and b: which of the data, and which of the updates, are the largest."""

    a: Bool[Array, "..."]
    b: Bool[Array, "..."]


class ScatterAlongAxisCache(NamedTuple):
    places: UInt[Array, "..."]
    shape: Float[Array, "0 ..."]
    factors: Factors | None
    attained: Attained | None


def scatter_along_axis(
    axis: int = -1, reduce: str = "sum", include_data: bool = True
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, ScatterAlongAxisCache]:
    """y = data, with each update brought to its own index along an axis.

    Args:
      axis: the axis that is indexed, counted from the last if negative.
      reduce: "sum", "mean", "prod", "max" or "min" of what comes to one element.
      include_data: whether the element that was there is one of them; where nothing comes, y is it in any case.

    Returns:
      A layer with params `()`, x `(data, indices, updates)`: data of shape `(..., n, ...)`, indices and updates of
      data's shape but for M elements along the axis, and y of data's shape. Indices from -n to -1 count from the end;
      an update whose index is outside `[-n, n)` comes to nothing, and has a cotangent of 0. dx is
      `(ddata, None, dupdates)`.

    Raises:
      ValueError: there is no such reduction; data has no such axis, or nothing along it; the shapes differ in another
        axis.
      TypeError: x is no triple; data is not floating-point; the indices are not integers; the updates have another
        dtype.
    """
    who = "scatter_along_axis"
    require_choice(who, "reduce", reduce, REDUCTIONS)
    require_flags(who, include_data=include_data)

    def forward(params, x: UpdatedAlongAxis):
        data, indices, updates = x
        along = axis_of_each(who, data, indices, axis)
        places = placed(indices, data.shape[along])
        wide, u = widen(data), widen(updates)
        s = _stays(places, data.shape, along)
        factors = attained = None
        if reduce in ("sum", "mean"):
            y = add_along(_where(s, wide), places, u, along)
            y = y / _count(s, places, y, along) if reduce == "mean" else y
        elif reduce == "prod":
            q = jnp.argsort(places, along)
            sorted_u, starts, ends, of_u = _in_order(u, places, q, along)
            last = jnp.where(ends, of_u, data.shape[along])
            ones = jnp.where(_any(places, data.shape, along), 0, jnp.ones_like(wide))
            Q = add_along(ones, last, running_product(sorted_u, starts, along), along)
            y = _where(s, wide, 1) * Q
            narrow = q.astype(smallest_integer(u.shape[along]))
            factors = Factors(data if include_data else None, cast(Q, wide.dtype), updates, narrow)
        else:
            y = _extreme_along(wide, s, places, u, along, reduce)
            b = u == _of_updates(y, places, along)
            attained = Attained((wide == y) if s is None else s & (wide == y), b & (places < data.shape[along]))
        return cast(y, data.dtype), ScatterAlongAxisCache(places, shape_keeper(data), factors, attained)

    def backward(params, cache, dy):
        places, shape, factors, attained = cache
        along, v = axis % dy.ndim, widen(dy)
        s = _stays(places, shape.shape[1:], along)
        if factors is not None:
            of_data, Q, updates, q = factors
            dx = _where(s, v * Q)
            sorted_u, starts, ends, _ = _in_order(widen(updates), places, widen_integers(q), along)
            others = product_of_others(sorted_u, starts, ends, along)
            others = add_along(jnp.zeros_like(others), q, others, along, unique=True)
            of_u = _of_updates(v if of_data is None else v * widen(of_data), places, along)
            du = jnp.where(places < dy.shape[along], of_u * others, 0)
        elif attained is not None:
            a, b = attained
            c = add_along(a.astype(v.dtype), places, b.astype(v.dtype), along)
            is_in = places < dy.shape[along]
            dx = _where(s, shared_out(a, v, c))
            du = jnp.where(is_in, shared_out(b, _of_updates(v, places, along), _of_updates(c, places, along)), 0)
        else:
            v = v / _count(s, places, v, along) if reduce == "mean" else v
            dx, du = _where(s, v), _of_updates(v, places, along)
        return (), (cast(dx, dy.dtype), None, cast(du, dy.dtype))

    def _stays(places, shape, along):
        return None if include_data else ~_any(places, shape, along)

    return Layer(no_params, forward, backward, who)


def _any(places: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Where an update comes to."""
    counts = add_along(jnp.zeros(shape, jnp.float32), places, jnp.ones(places.shape, jnp.float32), axis)
    return counts > 0


def _where(s: Array | None, v: Array, otherwise: float = 0) -> Array:
    """v where s is 1, as it is everywhere where there is none."""
    return v if s is None else jnp.where(s, v, otherwise)


def _count(s: Array | None, places: Array, like: Array, axis: int) -> Array:
    """c of the mean, of the shape and dtype of `like`."""
    return add_along(_where(s, jnp.ones_like(like)), places, jnp.ones(places.shape, like.dtype), axis)


def _of_updates(v: Array, places: Array, axis: int) -> Array:
    """What each update has of an array of y's shape; 0 for one that is nowhere."""
    return jnp.take_along_axis(v, widen_integers(places), axis, mode="fill", fill_value=0)


def _in_order(u: Array, places: Array, q: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """Updates in the order of their places, where those of one start and end, and the places of all."""
    of_u = jnp.take_along_axis(widen_integers(places), q, axis)
    return jnp.take_along_axis(u, q, axis), *stretches(of_u, axis), of_u


def _extreme_along(x: Array, s: Array | None, places: Array, u: Array, axis: int, reduce: str) -> Array:
    others = tuple(k for k in range(x.ndim) if k != axis)
    numbers = lax.ScatterDimensionNumbers((), (axis,), (axis,), others, others)
    scatter, lowest = (lax.scatter_max, -jnp.inf) if reduce == "max" else (lax.scatter_min, jnp.inf)
    return scatter(_where(s, x, lowest), widen_integers(places)[..., None], u, numbers, mode="drop")


def reference(
    params: tuple[()], x: tuple[Array, Array, Array], axis: int = -1, reduce: str = "sum", include_data: bool = True
) -> Array:
    data, indices, updates = (jnp.moveaxis(v, axis, -1) for v in x)
    n = data.shape[-1]
    places = jnp.where(indices < 0, indices.astype(int) + n, indices.astype(int))
    comes = places[..., None] == lax.broadcasted_iota(int, (*places.shape, n), places.ndim)
    stays = jnp.full(data.shape, True) if include_data else ~jnp.any(comes, -2)
    there = jnp.concatenate((stays[..., None, :], comes), -2)
    value = jnp.concatenate((data[..., None, :], jnp.broadcast_to(updates[..., None], comes.shape)), -2)
    if reduce in ("sum", "mean"):
        y = jnp.sum(jnp.where(there, value, 0), -2)
        y = y / jnp.sum(there, -2).astype(y.dtype) if reduce == "mean" else y
    elif reduce == "prod":
        y = jnp.prod(jnp.where(there, value, 1), -2)
    elif reduce == "max":
        y = jnp.max(jnp.where(there, value, -jnp.inf), -2)
    else:
        y = jnp.min(jnp.where(there, value, jnp.inf), -2)
    return jnp.moveaxis(y, -1, axis)


_X = (Real("N n"), Integer("N M", 0, "n"), Real("N M"))
_TIED = (Real("N n d", points=(4.0,) * 9), Integer("N M d", -1, 1, points=(99,)), Real("N M d", points=(4.0,) * 9))

RULE = Rule(
    "scatter_along_axis",
    scatter_along_axis,
    reference,
    cases=(
        Case("sum", _X, never_empty=("n",), timed={"N": 256, "n": 256, "M": 512}),
        Case("sum alone, some outside", _TIED, {"axis": 1, "include_data": False}, never_empty=("n",)),
        Case("mean", _X, {"reduce": "mean"}, never_empty=("n",)),
        Case("mean alone", _X, {"reduce": "mean", "include_data": False}, never_empty=("n",)),
        Case("product", _X, {"reduce": "prod"}, never_empty=("n",)),
        Case(
            "product alone, with zeros",
            (Real("N n d"), Integer("N M d", -1, 1, points=(99,)), Real("N M d", -2.0, 2.0, points=(1.0, 0.0, 0.0))),
            {"axis": 1, "reduce": "prod", "include_data": False},
            never_empty=("n",),
        ),
        Case("largest, with ties", _TIED, {"axis": 1, "reduce": "max"}, never_empty=("n",)),
        Case("smallest alone", _X, {"reduce": "min", "include_data": False}, never_empty=("n",)),
    ),
    cite="Griewank and Walther, 'Evaluating Derivatives' (2008), section 3.2; torch.scatter_reduce",
    covers=("scatter", "scatter_reduce", "index_reduce"),
)
