"""expert_combine: what experts on all devices have made of each device's tokens, back, and weighted.

Forward, of `expert_dispatch`'s slots (e, c) of choices (n, j), with the outputs o of a device's E experts, of shape
(E, P C, d), and the weight w_nj of each choice:

    b    = the o of all devices in the slots of this one                  (P E, C, d)    all-to-all back
    o_nj = b_ec of its slot, and 0 if it has none                         (N, k, d)
    y_n  = sum_j w_nj o_nj                                                (N, d)

Differential:

    delta y_n = sum_j (delta w_nj o_nj + w_nj delta o_nj)

The factor of each perturbation, no slot being another choice's:

    dw_nj = dy_n . o_nj                                                   (N, k)
    db_ec = w_nj dy_n for the choice with slot (e, c), and 0 if there is none      (P E, C, d)
    do_p  = the db of all devices for the experts of device p             (E, P C, d)    all-to-all

So one all-to-all crosses either way. A choice that was dropped has dw_nj = 0.

Cached: the weights, the choices, and o_nj, which came from other devices, so that nothing comes twice.

Numerical care: the sums over a token's choices and over features are in at least float32, rounded once.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_sizes
from bpref.dtypes import cast, widen
from bpref.formulas.mixture.expert_slots import from_experts, slots_of, to_experts
from bpref.formulas.mixture.grouped_rows import rows_from_blocks, rows_in_blocks
from bpref.layer import Layer, Reals, no_params
from bpref.naive.experts import slots
from bpref.over_devices import SPLIT, axis_name, laid_out
from bpref.rule import Case, Integer, Real, Rule, Size


class Answered(NamedTuple):
    """What a device's experts put out for all devices; and its own tokens' choices and their weights."""

    outputs: Float[Array, "E PC d"]
    experts: Int[Array, "N k>0"]
    weights: Float[Array, "N k"]


class ExpertCombineCache(NamedTuple):
    o: Float[Array, "k N d"]
    experts: Int[Array, "N k"]
    weights: Float[Array, "N k"]


def expert_combine(
    experts: int, capacity: int, axis: str | int
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, ExpertCombineCache]:
    """y_n = sum_j w_nj o_nj, the outputs o of experts on all devices.

    Args:
      experts, capacity, axis: as in `expert_dispatch`, with which it is used.

    Returns:
      A layer with params `()`, x `(outputs, experts, weights)`: of the device's own experts `(E, P C, d)`, and of its
      own tokens the integers `(N, k)` that `expert_dispatch` was given, and `(N, k)`; y `(N, d)`. With P blocks on one
      device, all have P in front.

    Example:
      Two experts on each of two devices, each a number that rows are multiplied by:

      >>> chosen, axis = jnp.array([[[0], [3]], [[1], [2]]]), 2
      >>> sent, _ = bpref.expert_dispatch(2, 2, axis).forward((), (jnp.ones((2, 2, 4)), chosen))
      >>> outputs = sent * jnp.arange(1.0, 5).reshape(2, 2, 1, 1)
      >>> y, _ = bpref.expert_combine(2, 2, axis).forward((), (outputs, chosen, jnp.ones((2, 2, 1))))
      >>> y[..., 0].tolist()
      [[1.0, 4.0], [2.0, 3.0]]

    Raises:
      ValueError: a hyperparameter is not a positive integer; `axis` is neither a name nor a number; shapes do not fit.
      TypeError: x is no triple; outputs or weights are not floating-point; the experts are not integers.
    """
    who = "expert_combine"
    E, C = require_sizes(who, experts=experts, capacity=capacity)
    name = axis_name(who, axis)

    def forward(params, x: Answered):
        outputs, chosen, weights = x
        P = lax.axis_size(name)
        if outputs.shape[:2] != (E, P * C):
            wanted = f"(E, P C) = {(E, P * C)} in front, P C rows for each expert of {P} devices along {name!r}"
            raise ValueError(f"{who}: outputs has shape {outputs.shape}, expected {wanted}")
        o = rows_from_blocks(from_experts(outputs, name), _slots(chosen).slot.reshape(chosen.shape[::-1]))
        y = jnp.sum(widen(weights).T[..., None] * widen(o), 0)
        return cast(y, outputs.dtype), ExpertCombineCache(o, chosen, weights)

    def backward(params, cache, dy):
        o, chosen, weights = cache
        dw = jnp.sum(widen(dy)[None] * widen(o), -1).T
        do = cast(widen(weights).T[..., None] * widen(dy)[None], dy.dtype)
        sent = rows_in_blocks(do.reshape(chosen.size, do.shape[-1]), _slots(chosen).row)
        return (), (to_experts(sent, name), None, cast(dw, weights.dtype))

    def _slots(chosen):
        return slots_of(chosen, E * lax.axis_size(name), C)

    return laid_out(Layer(no_params, forward, backward, who), axis, (), x=SPLIT, cache=SPLIT, y=SPLIT)


def reference(params: tuple[()], x: tuple[Array, Array, Array], experts: int, capacity: int, axis: str | int) -> Array:
    outputs, chosen, weights = x
    P, d = len(outputs), outputs.shape[-1]
    back = jnp.moveaxis(outputs.reshape(P, experts, P, capacity, d), 2, 0).reshape(P, P * experts, capacity, d)
    each = [slots(of, P * experts, capacity, outputs.dtype) for of in chosen]
    return jnp.stack([jnp.einsum("nk,nkec,ecd->nd", w, s, b) for w, s, b in zip(weights, each, back, strict=True)])


RULE = Rule(
    "expert_combine",
    expert_combine,
    reference,
    cases=(
        Case(
            "some dropped",
            (Real("P E R d"), Integer("P N k", 0, 6), Real("P N k")),
            {"experts": 2, "capacity": Size("C"), "axis": Size("P")},
            never_empty=("k", "C"),
            fixed={"P": 3, "E": 2, "R": 6, "k": 2, "C": 2},
            timed={"P": 3, "E": 2, "R": 312, "N": 256, "d": 128, "k": 2, "C": 104},
        ),
    ),
    cite="Lepikhin et al., 'GShard', arXiv:2006.16668, section 3.2, algorithm 1",
)
