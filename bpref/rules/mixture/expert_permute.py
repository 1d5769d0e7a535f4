"""expert_permute: tokens sorted by the experts that they go to, the rows that `grouped_matmul` multiplies.

Forward, with N tokens x_n of d features and i_nj of E experts the j-th of k that token n is to go to. All first choices
come before all second ones, each in the order of the tokens, and c(n, j) is how many come before (n, j) that chose the
same expert. An expert takes all of them, or the first C. With s_e how many that are, e = i_nj has for (n, j) the row

    r(n, j) = s_0 + ... + s_(e - 1) + c(n, j)      if c(n, j) < s_e, and none if not
    y_r     = x_n for the choice with the row r, and 0 if there is none   (R, d), R = N k, or E C if that is less

Differential, the choice being constant: every row of y is one of x or zero, so the factor of delta x_n is

    dx_n = sum_j dy_{r(n, j)} over its choices that have a row            (N, d)

A choice that was dropped is in no row: nothing comes back from it. `expert_unpermute` is the way back, and its adjoint
sorts in turn.

Cached: the choices. Where the rows are is made again from a few integers; x is in none of the products.

How: one stable sort of N k integers; tokens are gathered into rows and rows out of them, neither way is a scatter.

Numerical care: nothing is computed but the sum over a token's choices, in at least float32, rounded once.
"""

from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast
from bpref.formulas.mixture.expert_order import order_of
from bpref.formulas.mixture.grouped_rows import each_choice, rows_in_blocks, token_of
from bpref.layer import Layer, no_params
from bpref.naive.experts import rows as naive_rows
from bpref.rule import Case, Integer, Real, Rule, Size


class TokensAndExperts(NamedTuple):
    tokens: Float[Array, "N d>0"]
    experts: Int[Array, "N k>0"]


class Permuted(NamedTuple):
    """Rows by expert, and how many of them each has: what `grouped_matmul` takes. The sizes' cotangent is None."""

    rows: Float[Array, "R d"]
    sizes: Int[Array, " E"]


class ExpertPermuteCache(NamedTuple):
    experts: Int[Array, "N k"]


def expert_permute(
    experts: int, capacity: int | None = None
) -> Layer[tuple[()], tuple[Array, Array], Permuted, ExpertPermuteCache]:
    """The rows of all experts, one after the other, and their numbers.

    Args:
      experts: their number E.
      capacity: C, how many choices an expert takes, the first that come; None: all.

    Returns:
      A layer with params `()`, x `(tokens, experts)` of `(N, d)` and integers `(N, k)`, and y
      `Permuted(rows: (R, d), sizes: int32 (E,))`, R = N k, or E C where that is less; rows behind those of the experts
      are zeros. A number outside `[0, E)` goes nowhere.

    Example:
      >>> x = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[1], [0], [1]])
      >>> y, _ = bpref.expert_permute(2).forward((), x)
      >>> y.rows[:, 0].tolist(), y.sizes.tolist()
      ([2.0, 1.0, 3.0], [1, 2])

    Raises:
      ValueError: a hyperparameter is not a positive integer; shapes do not fit; there are no features, or no choices.
      TypeError: x is no pair; the tokens are not floating-point; the experts are not integers.
    """
    who = "expert_permute"
    E = require_size(who, "experts", experts)
    C = None if capacity is None else require_size(who, "capacity", capacity)

    def forward(params, x: TokensAndExperts):
        tokens, chosen = x
        order = order_of(chosen, E, C)
        rows = rows_in_blocks(tokens, token_of(order.choice, *chosen.shape))
        return Permuted(rows, order.sizes), ExpertPermuteCache(chosen)

    def backward(params, cache, dy):
        dx = reduce(jnp.add, each_choice(dy[0], order_of(cache.experts, E, C).row))
        return (), (cast(dx, dy[0].dtype), None)

    return Layer(no_params, forward, backward, who, couples="the order by experts")


def reference(params: tuple[()], x: tuple[Array, Array], experts: int, capacity: int | None = None) -> Permuted:
    tokens, chosen = x
    of_rows, sizes = naive_rows(chosen, experts, capacity, tokens.dtype)
    return Permuted(jnp.einsum("nkr,nd->rd", of_rows, tokens), sizes)


_X = (Real("N d"), Integer("N k", 0, "E", points=(-1,)))

RULE = Rule(
    "expert_permute",
    expert_permute,
    reference,
    cases=(
        Case(
            "all",
            _X,
            {"experts": Size("E")},
            ("d", "k", "E"),
            fixed={"k": 2},
            timed={"N": 2048, "d": 512, "k": 2, "E": 8},
        ),
        Case("some dropped", _X, {"experts": Size("E"), "capacity": 2}, ("d", "k"), fixed={"k": 2, "E": 3}),
    ),
    cite="Gale et al., 'MegaBlocks', arXiv:2211.15841, section 4; capacity: arXiv:2006.16668, algorithm 1",
    covers=("moe_permute", "token dispatch"),
)
