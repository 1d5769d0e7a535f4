"""linear_recurrence: h_t = a_t h_{t-1} + b_t, element by element, the state of every linear state space model.

Forward, with t from 1 to T along the axis before the last, and h_0 = 0 unless it is given:

    h_t = a_t h_{t-1} + b_t                                               a, b, h: (..., T, d),  h_0: (..., d)

`reverse` counts t from the end. Every diagonal model is of this form, S4D and LRU with complex a.

Differential:

    delta h_t = a_t delta h_{t-1} + h_{t-1} delta a_t + delta b_t

The cotangent G_t of everything that h_t reaches, later states included, follows from the factor of delta h_{t-1}:

    G_t  = dh_t + a_{t+1} G_{t+1},   G_{T+1} = 0                          (..., T, d)

the same recurrence, run backwards, with a moved by one place. Then, t by t,

    db_t = G_t                                                            (..., T, d)
    da_t = G_t h_{t-1}                                                    (..., T, d)
    dh_0 = a_1 G_1                                                        (..., d)

A cotangent of a complex number is here, as in JAX, the factor of its perturbation in delta J = Re sum dh delta h: no a
is conjugated. In the other convention, that of the steepest ascent, it is G_t = dh_t + conj(a_{t+1}) G_{t+1}.

Cached: a, the output h, and h_0. b takes no part in its own adjoint.

The method is how the recurrence is run, both ways: "sequential" takes T steps of one multiplication, "associative"
takes 2 log2 T steps that are parallel in T, since (a, b) then (a', b') is (a a', a' b + b'). Neither divides by a:
a = 0 forgets all before it, and a = 1 sums.

Numerical care: half precision is computed in float32 and rounded once; the state that da meets is the rounded output.
Where |a| > 1 on average h overflows, and nothing here prevents it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Complex, Float, Inexact

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.decoder import decoder
from bpref.formulas.recurrence.recurrences import (
    Method,
    before,
    last,
    require_method,
    run_back,
    run_recurrence,
    start_cotangent,
)
from bpref.layer import Layer, no_params
from bpref.rule import Case, Real, Rule

Steps = Float[Array, "*b T d"] | Complex[Array, "*b T d"]


class Factors(NamedTuple):
    a: Steps
    b: Steps


class FactorsAndStart(NamedTuple):
    a: Steps
    b: Steps
    h_0: Float[Array, "*b d"] | Complex[Array, "*b d"]


class LinearRecurrenceCache(NamedTuple):
    a: Inexact[Array, "... T d"]
    h: Inexact[Array, "... T d"]
    h_0: Inexact[Array, "... d"] | None


def linear_recurrence(
    reverse: bool = False, method: Method = "sequential"
) -> Layer[tuple[()], tuple[Array, ...], Array, LinearRecurrenceCache]:
    """h_t = a_t h_{t-1} + b_t along the axis before the last.

    Args:
      reverse: whether t is counted from the end: h_t = a_t h_{t+1} + b_t.
      method: "sequential", T steps; or "associative", `lax.associative_scan`, for machines with many units.

    Returns:
      A layer with params `()`, x `(a, b)` or `(a, b, h_0)` with a and b `(..., T, d)` and h_0 `(..., d)`, real or
      complex, and y = h `(..., T, d)`.

    Raises:
      ValueError: method is neither; the shapes do not fit; there is no axis of time.
      TypeError: x is no such tuple; dtypes differ, or are not floating-point or complex.
    """
    who = "linear_recurrence"
    require_flags(who, reverse=reverse)
    require_method(who, method)

    def forward(params, x: Factors | FactorsAndStart):
        a, b = x[:2]
        h_0 = x.h_0 if isinstance(x, FactorsAndStart) else None
        h = run_recurrence(widen(a), widen(b), None if h_0 is None else widen(h_0), method, reverse)
        h = cast(h, a.dtype)
        return h, LinearRecurrenceCache(a, h, h_0)

    def backward(params, cache, dh):
        a, h, h_0 = cache
        G = run_back(widen(a), widen(dh), method, reverse)
        da = cast(G * widen(before(h, h_0, reverse)), a.dtype)
        db = cast(G, a.dtype)
        if h_0 is None:
            return (), (da, db)
        return (), (da, db, cast(start_cotangent(widen(a), G, reverse), a.dtype))

    def decoding(leaf, length):
        if reverse:
            raise ValueError(f"{who}: reverse is True: positions that are yet to come would be the first")

        def start(params, x):
            if len(x) > 2:
                raise TypeError(f"{who}: x has h_0, expected (a, b): while it is decoding the state is its own")
            return jnp.zeros((*x[1].shape[:-2], x[1].shape[-1]), wide_dtype(x[1].dtype))

        def step(params, x, h_0):
            a, b = x
            h = run_recurrence(widen(a), widen(b), h_0, method)
            return cast(h, a.dtype), last(h, h_0)

        return decoder(leaf, start, step)

    return Layer(no_params, forward, backward, who, decoding=decoding)


def reference(params: tuple[()], x: tuple[Array, ...], reverse: bool = False, method: Method = "sequential") -> Array:
    a, b, *start = (jnp.moveaxis(v, -2, 0) if i < 2 else v for i, v in enumerate(x))
    h_0 = start[0] if start else jnp.zeros(a.shape[1:], a.dtype)
    if method == "associative" and a.size:
        first = -1 if reverse else 0
        b = b.at[first].add(a[first] * h_0)
        h = lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (a, b), reverse=reverse)[1]
        return jnp.moveaxis(h, 0, -2)

    def step(h, at):
        h = at[0] * h + at[1]
        return h, h

    return jnp.moveaxis(lax.scan(step, h_0, (a, b), reverse=reverse)[1], 0, -2)


_DECAY = Real("B T d", -1.0, 1.0, points=(0.0, 1.0, -1.0))
_PHASE = Real("B T d", -0.7, 0.7, is_complex=True)

RULE = Rule(
    "linear_recurrence",
    linear_recurrence,
    reference,
    cases=(
        Case("sequential", (_DECAY, Real("B T d")), timed={"B": 4, "T": 1024, "d": 256}),
        Case(
            "associative, from the end, with a start",
            (_DECAY, Real("B T d"), Real("B d")),
            {"reverse": True, "method": "associative"},
        ),
        Case("complex, with a start", (_PHASE, Real("B T d", is_complex=True), Real("B d", is_complex=True))),
    ),
    cite="Martin and Cundy, 'Parallelizing linear recurrent neural nets over sequence length' (2018), "
    "arXiv:1709.04057; Gu et al., S4D, arXiv:2206.11893; Orvieto et al., LRU, arXiv:2303.06349",
    covers=("linear rnn", "s4d", "lru", "parallel scan", "associative scan"),
)
