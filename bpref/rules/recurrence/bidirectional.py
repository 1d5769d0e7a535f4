"""bidirectional: two recurrences over the same sequences, each from its own end, their outputs side by side.

Forward, with f and g any two recurrences, such as lstm(64) and lstm(64, reverse=True), and x (B, T, d):

    y_f, s_f' = f(x, s_f)         y_g, s_g' = g(x, s_g)
    y_nt = (y_f,nt, y_g,nt)                                               (B, T, p + q)

Differential: delta y is delta y_f beside delta y_g, and neither reads the other. So the cotangent is cut in two, each
part goes through its own recurrence, and the two cotangents of what they share are added:

    dx = dx_f + dx_g          ds_f, ds_g: each of its own                 (B, T, d)

Lengths are those of both: a reversed recurrence starts at an example's last step, wherever that is.

Cached: what the two keep, x among it, of which there is one.

Numerical care: dx is one sum of two, in at least float32, rounded once more where it is half precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpref.dtypes import came, cast, widen
from bpref.formulas.recurrence.steps import Passed, Steps
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer
from bpref.naive.recurrence import sequences
from bpref.rule import Case, Integer, Real, Rule
from bpref.rules.recurrence.gru import gru
from bpref.rules.recurrence.gru import reference as gru_reference
from bpref.rules.recurrence.lstm import LstmParams, LstmState, lstm
from bpref.rules.recurrence.lstm import reference as lstm_reference


class Both(NamedTuple):
    """One of each recurrence: parameters, or states."""

    ahead: PyTree
    back: PyTree


class BidirectionalCache(NamedTuple):
    """What the two keep, and how many features the first puts out."""

    ahead: PyTree
    back: PyTree
    y_ahead: Float[Array, "0 B T p"]


def bidirectional(ahead: Layer, back: Layer) -> Layer[Both, Array | Steps, Passed, BidirectionalCache]:
    """y = (ahead(x), back(x)), two recurrences over the same sequences.

    Args:
      ahead: a recurrence, such as `lstm(64)`.
      back: another; `lstm(64, reverse=True)` starts at the end. They may differ in kind and in size.

    Returns:
      A layer with params `Both(ahead, back)`, x `Steps(x: (B, T, d), state: Both or None, lengths)` or an array
      (B, T, d), and y `Passed(y: (B, T, p + q), state: Both)`.

    Raises:
      TypeError: `ahead` or `back` is no layer; the state is no `Both`.
      ValueError: what the two refuse.
    """
    who = "bidirectional"
    for argument, layer in (("ahead", ahead), ("back", back)):
        if not isinstance(layer, Layer):
            raise TypeError(f"{who}: {argument} is {came(layer)}, expected a recurrence such as lstm(64)")

    def each(x):
        if not isinstance(x, Steps):
            return Both(x, x)
        if x.state is not None and not isinstance(x.state, Both):
            raise TypeError(f"{who}: state is {came(x.state)}, expected Both(ahead, back)")
        return Both(*(x._replace(state=s) for s in x.state or (None, None)))

    def init(key, x):
        keys = jax.random.split(key)
        return Both(*(layer.init(k, v) for layer, k, v in zip((ahead, back), keys, each(x), strict=True)))

    def forward(params, x: Float[Array, "B T d>0"] | Steps):
        of_ahead, of_back = each(x)
        f, cache_f = ahead.forward(params.ahead, of_ahead)
        g, cache_g = back.forward(params.back, of_back)
        y = Passed(jnp.concatenate([f.y, g.y], -1), Both(f.state, g.state))
        return y, BidirectionalCache(cache_f, cache_g, shape_keeper(f.y))

    def backward(params, cache, dy):
        of_y, of_states = dy or (None, None)
        p = cache.y_ahead.shape[-1]
        ys = (None, None) if of_y is None else (of_y[..., :p], of_y[..., p:])
        dy_f, dy_g = map(Passed._make, zip(ys, of_states or (None, None), strict=True))
        dahead, f = ahead.backward(params.ahead, cache.ahead, dy_f)
        dback, g = back.backward(params.back, cache.back, dy_g)
        (x_f, s_f), (x_g, s_g) = ((d.x, d.state) if isinstance(d, Steps) else (d, None) for d in (f, g))
        dx = summed(x_f, x_g)
        if Steps in (type(f), type(g)):
            dx = Steps._make((dx, None if s_f is None and s_g is None else Both(s_f, s_g), None))
        return Both(dahead, dback), dx

    return Layer(init, forward, backward, who, (ahead, back), bidirectional)


def summed(a: Array | None, b: Array | None) -> Array | None:
    """a + b, added in at least float32; `None` adds nothing."""
    if a is None or b is None:
        return b if a is None else a
    return cast(widen(a) + widen(b), a.dtype)


def reference(params: Both, x: Steps | Array, ahead: Layer, back: Layer) -> Passed:
    """Of two that are an LSTM or a GRU, as their params say, by the references of these; the second from the end."""
    states = x.state if isinstance(x, Steps) else (None, None)
    inputs = [Steps(sequences(x).x, s, sequences(x).lengths) for s in states]
    (y_f, s_f), (y_g, s_g) = (
        lstm_reference(p, v, p.U.shape[1], reverse=reverse)
        if isinstance(p, LstmParams)
        else gru_reference(p, v, p.U.shape[1], reverse=reverse)
        for p, v, reverse in zip(params, inputs, (False, True), strict=True)
    )
    return Passed(jnp.concatenate([y_f, y_g], axis=2), Both(s_f, s_g))


_STATE = Both(LstmState(Real("B H"), Real("B H")), Real("B K"))  # pyright: ignore[reportArgumentType]
_X = Steps(Real("B T d", -2.0, 2.0), _STATE, Integer("B", 0, "T", points=(100, 0)))  # pyright: ignore[reportArgumentType]
_P = LstmParams(Real("G d", -1.0, 1.0), Real("G H", -0.5, 0.5), Real("G", -1.0, 1.0))  # pyright: ignore[reportArgumentType]

RULE = Rule(
    "bidirectional",
    bidirectional,
    reference,
    cases=(
        Case(
            "two lstm",
            Real("B T d", -2.0, 2.0),
            {"ahead": lstm(8), "back": lstm(8, reverse=True)},
            ("d",),
            Both(_P, _P),
            fixed={"G": 32, "H": 8},
            timed={"B": 64, "T": 128, "d": 32, "G": 32, "H": 8},
        ),
        Case(
            "lengths, two kinds",
            _X,
            {"ahead": lstm(3), "back": gru(2, reverse=True)},
            ("d",),
            fixed={"H": 3, "K": 2},
        ),
    ),
    cite="Schuster and Paliwal, 'Bidirectional recurrent neural networks' (1997)",
    covers=("birnn", "bilstm", "bigru"),
)
