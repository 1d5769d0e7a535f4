"""serial: one layer after the other.

Forward: A[l] = f[l](A[l-1]) for l = 1 ... L. By the chain rule the cotangent goes through the layers in
reverse, and each one is given the cotangent of its output: dA[l-1] = f[l]'s backward of dA[l].
"""

from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from typing import TypeVar, overload

import jax
from jaxtyping import PyTree

from bpref.checks.hyperparameters import is_traced
from bpref.compose.parts import (
    C1,
    C2,
    C3,
    P1,
    P2,
    P3,
    A,
    B,
    ByName,
    Parts,
    added,
    as_input,
    at_the_start,
    begun,
    given_state,
    of_value,
    parts_of,
    pull,
    run,
)
from bpref.layer import Layer, X, Y

Out = TypeVar("Out")


@overload
def serial(a: Layer[P1, X, Y, C1], /) -> Layer[tuple[P1], X, Y, tuple[C1]]: ...
@overload
def serial(a: Layer[P1, X, A, C1], b: Layer[P2, A, Y, C2], /) -> Layer[tuple[P1, P2], X, Y, tuple[C1, C2]]: ...
@overload
def serial(
    a: Layer[P1, X, A, C1], b: Layer[P2, A, B, C2], c: Layer[P3, B, Y, C3], /
) -> Layer[tuple[P1, P2, P3], X, Y, tuple[C1, C2, C3]]: ...
@overload
def serial(
    a: Layer[PyTree, X, A, PyTree],
    b: Layer[PyTree, A, B, PyTree],
    c: Layer[PyTree, B, PyTree, PyTree],
    d: Layer,
    /,
    *more: Layer,
) -> Layer[tuple[PyTree, ...], X, PyTree, tuple[PyTree, ...]]: ...
@overload
def serial(**named: Layer) -> ByName: ...
def serial(*layers: Layer, **named: Layer) -> Layer:
    """The composition of layers, the first one applied first: `serial(linear(64), tanh())`.

    Its params and its cache have one entry per layer: they are tuples; or, of `serial(hidden=linear(64), act=tanh())`,
    dicts by these names.

    Example:
      >>> network = bpref.serial(hidden=bpref.linear(3), act=bpref.tanh())
      >>> network.init(jax.random.key(0), X)["hidden"].W.shape
      (3, 2)

    Raises:
      ValueError: there is no layer; or, at the call, params do not have one entry per layer.
      TypeError: something is no layer; only some have names.
    """
    return in_series(parts_of("serial", layers, named))


def in_series(parts: Parts) -> Layer:
    """`serial` of parts; where one layer stands several times, it is traced and lowered once."""
    layers = traced_once(parts.layers)

    def begin_all(key, x):
        x, beside = at_the_start(x)
        params, states = [], []
        for layer, layer_key in zip(parts.layers, jax.random.split(key, len(parts.layers)), strict=True):
            p, state = begun(layer, layer_key, x, beside)
            x = jax.eval_shape(partial(run, layer), p, x, beside._replace(x=None, state=state))[0]
            params.append(p)
            states.append(state)
        return parts.together(params), parts.together(states)

    def forward(params, x):
        x, beside = parts.given("serial", x)
        caches, after = [], []
        for layer, p, own in zip(layers, parts.apart("serial", params), beside, strict=True):
            x, cache, state = run(layer, p, x, own)
            caches.append(cache)
            after.append(state)
        return given_state(parts.is_stateful, x, parts.together(after)), parts.together(caches)

    def backward(params, caches, dy):
        dparams, total = [], None
        dy, data = of_value(parts.is_stateful, dy)
        given = zip(layers, parts.apart("serial", params), parts.apart("serial", caches, "cache"), strict=True)
        for layer, p, cache in reversed(list(given)):
            dp, dy, of_data = pull(data, layer, p, cache, dy)
            dparams.append(dp)
            total = added(total, of_data)
        return parts.together(reversed(dparams)), as_input(parts.is_stateful, dy, total)

    init, begin = parts.stateful(begin_all)
    return Layer(init, forward, backward, "serial", *parts.rebuilt_by(serial), begin)


def traced_once(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers, those that stand several times with a forward and a backward that JAX traces once for all places."""
    times = Counter(map(id, layers))
    again = {
        id(layer): layer._replace(forward=as_call(layer.forward), backward=as_call(layer.backward))
        for layer in layers
        if times[id(layer)] > 1
    }
    return tuple(again.get(id(layer), layer) for layer in layers)


def as_call(f: Callable[..., Out]) -> Callable[..., Out]:
    """The function as a call in the program that is traced; where nothing is traced, as it is."""
    called = jax.jit(f)

    @wraps(f)
    def call(*args):
        return called(*args) if any(map(is_traced, jax.tree.leaves(args))) else f(*args)

    return call
