"""expert_unpermute: rows sorted by expert back to their tokens, weighted and added: what `expert_permute` sorted.

Forward, with the choices i_nj and the row r(n, j) of each as in `expert_permute`, o_r the row that its expert has made
and w_nj the choice's weight:

    y_n = sum_j w_nj o_{r(n, j)} over its choices that have a row         (N, d)

Differential, the choice being constant:

    delta y_n = sum_j (delta w_nj o_{r(n, j)} + w_nj delta o_{r(n, j)})

The factor of each perturbation; a choice that was dropped has dw_nj = 0, and a row that is nobody's do_r = 0:

    dw_nj = dy_n . o_{r(n, j)}                                            (N, k)
    do_r  = w_nj dy_n for the choice (n, j) with the row r                (R, d)

Cached: the rows o as they came, the choices and the weights. Where the rows are is made again from a few integers.

Numerical care: the sums over a token's choices and over features are in at least float32, rounded once.
"""

from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast, widen
from bpref.formulas.mixture.expert_order import order_of, rows_of
from bpref.formulas.mixture.grouped_rows import each_choice, rows_in_blocks, token_of
from bpref.layer import Layer, Reals, no_params
from bpref.naive.experts import rows as naive_rows
from bpref.rule import Case, Integer, Real, Rule


class RowsAndWeights(NamedTuple):
    rows: Float[Array, "R d>0"]
    experts: Int[Array, "N k>0"]
    weights: Float[Array, "N k"]


def expert_unpermute(
    experts: int, capacity: int | None = None
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, RowsAndWeights]:
    """y_n = sum_j w_nj o_nj, of the rows o that experts have made of what `expert_permute` gave.

    Args:
      experts, capacity: as there.

    Returns:
      A layer with params `()`, x `(rows, experts, weights)` of `(R, d)`, the integers `(N, k)` that `expert_permute`
      was given, and `(N, k)`; y `(N, d)`.

    Raises:
      ValueError: a hyperparameter is not a positive integer; shapes do not fit.
      TypeError: x is no triple; rows or weights are not floating-point, or of two dtypes; the experts are not integers.
    """
    who = "expert_unpermute"
    E = require_size(who, "experts", experts)
    C = None if capacity is None else require_size(who, "capacity", capacity)

    def forward(params, x: RowsAndWeights):
        rows, chosen, weights = x
        N, k = chosen.shape
        R = rows_of(N, k, E, C)
        if rows.shape[0] != R:
            raise ValueError(
                f"{who}: rows has shape {rows.shape}, expected (R, d) with R = {R}, as expert_permute gives"
            )
        o, w = each_choice(rows, order_of(chosen, E, C).row), widen(weights)
        y = reduce(jnp.add, (w[:, j, None] * o_j for j, o_j in enumerate(o)))
        return cast(y, rows.dtype), x

    def backward(params, cache, dy):
        rows, chosen, weights = cache
        order, wide = order_of(chosen, E, C), widen(dy)
        dw = jnp.stack([jnp.sum(wide * o, -1) for o in each_choice(rows, order.row)], -1)
        # A choice that is none has a weight of 0, and so has its row.
        of_rows = rows_in_blocks(widen(weights).T.reshape(-1, 1), order.choice)
        do = of_rows * rows_in_blocks(wide, token_of(order.choice, *chosen.shape))
        return (), (cast(do, dy.dtype), None, cast(dw, weights.dtype))

    return Layer(no_params, forward, backward, who, couples="the order by experts")


def reference(params: tuple[()], x: tuple[Array, Array, Array], experts: int, capacity: int | None = None) -> Array:
    rows, chosen, weights = x
    of_rows, _ = naive_rows(chosen, experts, capacity, rows.dtype)
    return jnp.einsum("nk,nkr,rd->nd", weights, of_rows, rows)


_X = (Real("R d"), Integer("N k", 0, 4, points=(-1,)), Real("N k"))

RULE = Rule(
    "expert_unpermute",
    expert_unpermute,
    reference,
    cases=(
        Case(
            "all",
            _X,
            {"experts": 8},
            ("d",),
            fixed={"R": 128, "N": 64, "k": 2},
            timed={"R": 128, "N": 64, "d": 1024, "k": 2},
        ),
        Case("some dropped", _X, {"experts": 3, "capacity": 2}, ("d", "N"), fixed={"R": 6, "k": 2}, least={"N": 3}),
    ),
    cite="Gale et al., 'MegaBlocks', arXiv:2211.15841, section 4; capacity: arXiv:2006.16668, algorithm 1",
    covers=("moe_unpermute", "token combine"),
)
