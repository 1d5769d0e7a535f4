"""expert_dispatch: each device's tokens to the devices that hold their experts.

Forward, with P devices, of which each has N tokens x_n of d features and E experts, those from p E on. i_nj of all P E
experts is the j-th of k that token n is to go to. Device p has C slots with each expert: all first choices come before
all second ones, each in the order of the tokens, and c(n, j) is how many come before (n, j) that chose the same expert.
With e = i_nj, the choice has slot (e, c(n, j)) if that is below C, and goes nowhere if not:

    b_ec = x_n for the choice with slot (e, c), and 0 if there is none    (P E, C, d)
    y_p  = the b of all devices for the experts of device p               (E, P C, d)    all-to-all

Differential, the choice being constant, every row of y is one of x or zero. The factor of delta x_n:

    db   = the dy of all devices for the slots of this one                (P E, C, d)    all-to-all back
    dx_n = sum_j db_ec over its choices that have a slot (e, c)           (N, d)

So one all-to-all crosses either way, of P E C d numbers on each device, whatever tokens choose: shapes are static, and
what a token lacks of slots is dropped. `expert_combine` is the way back, and its adjoint dispatches in turn.

Cached: the slot of each choice. x is in none of the products.

Numerical care: nothing is computed but the sum over a token's choices, in at least float32, rounded once.
"""

from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_sizes
from bpref.dtypes import cast
from bpref.formulas.mixture.expert_slots import from_experts, slots_of, to_experts
from bpref.formulas.mixture.grouped_rows import each_choice, rows_in_blocks, token_of
from bpref.layer import Layer, Reals, no_params
from bpref.naive.experts import slots
from bpref.over_devices import SPLIT, axis_name, laid_out
from bpref.rule import Case, Integer, Real, Rule, Size


class Chosen(NamedTuple):
    """Tokens, and which experts each is to go to, as `top_k_router` gives them."""

    tokens: Float[Array, "N>0 d>0"]
    experts: Int[Array, "N k>0"]


class ExpertDispatchCache(NamedTuple):
    """Where each choice is, of all slots of the device; the number of them for nowhere."""

    slot: Int[Array, "k N"]


def expert_dispatch(
    experts: int, capacity: int, axis: str | int
) -> Layer[tuple[()], tuple[Array, Array], Reals, ExpertDispatchCache]:
    """y: the rows that come for the device's own experts, C from each device for each.

    Args:
      experts: how many one device has, E.
      capacity: C, how many tokens of one device an expert takes.
      axis: the name of the axis of the mesh, for `jax.shard_map`; or a number P of blocks, all on one device.

    Returns:
      A layer with params `()`, x `(tokens, experts)` of `(N, d)` and integers `(N, k)`, the device's own, and y
      `(E, P C, d)`, zeros in a slot that nobody has. A number outside `[0, P E)` goes nowhere, as does a choice too
      many. With P blocks on one device, all have P in front.

    Example:
      >>> x = jnp.ones((2, 3, 4)), jnp.array([[[0], [3], [3]], [[1], [1], [1]]])  # 2 devices, 3 tokens, k = 1
      >>> y, cache = bpref.expert_dispatch(2, capacity=2, axis=2).forward((), x)
      >>> y.shape, float(y.sum())  # of token 5, the third of its device for expert 1, nothing
      ((2, 2, 4, 4), 20.0)

    Raises:
      ValueError: a hyperparameter is not a positive integer; `axis` is neither a name nor a number; shapes do not fit;
        there are no tokens, or no features.
      TypeError: x is no pair; the tokens are not floating-point; the experts are not integers.
    """
    who = "expert_dispatch"
    E, C = require_sizes(who, experts=experts, capacity=capacity)
    name = axis_name(who, axis)

    def forward(params, x: Chosen):
        tokens, chosen = x
        _, row, slot = slots_of(chosen, E * lax.axis_size(name), C)
        sent = rows_in_blocks(tokens, token_of(row, *chosen.shape))
        return to_experts(sent, name), ExpertDispatchCache(slot.reshape(chosen.shape[::-1]))

    def backward(params, cache, dy):
        back = from_experts(dy, name)
        dx = reduce(jnp.add, each_choice(back.reshape(-1, back.shape[-1]), cache.slot))
        return (), (cast(dx, dy.dtype), None)

    return laid_out(Layer(no_params, forward, backward, who), axis, (), x=SPLIT, cache=SPLIT, y=SPLIT)


def reference(params: tuple[()], x: tuple[Array, Array], experts: int, capacity: int, axis: str | int) -> Array:
    P, d = len(x[0]), x[0].shape[-1]
    each = [slots(chosen, P * experts, capacity, x[0].dtype) for chosen in x[1]]
    sent = jnp.stack([jnp.einsum("nkec,nd->ecd", of, tokens) for of, tokens in zip(each, x[0], strict=True)])
    by_device = jnp.moveaxis(sent.reshape(P, P, experts, capacity, d), 0, 2)
    return by_device.reshape(P, experts, P * capacity, d)


RULE = Rule(
    "expert_dispatch",
    expert_dispatch,
    reference,
    cases=(
        Case(
            "some dropped",
            (Real("P N d"), Integer("P N k", 0, 6)),
            {"experts": 2, "capacity": Size("C"), "axis": Size("P")},
            never_empty=("N", "d", "k", "C"),
            fixed={"P": 3, "k": 2, "C": 2},
            timed={"P": 3, "N": 256, "d": 128, "k": 2, "C": 104},
        ),
    ),
    cite="Lepikhin et al., 'GShard', arXiv:2006.16668, section 3.2, algorithm 1",
    covers=("expert parallel",),
)
