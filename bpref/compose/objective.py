"""objective: a network and its loss, one layer from (X, y) to the number J.

Forward: y_hat = f(X), J = loss(y_hat, y). The reverse sweep starts at dJ = 1; the loss turns it into
dA[L] = dJ/dy_hat, which carries the batch mean's 1/N, and the network takes it from there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import overload

import jax
from jaxtyping import PyTree

from bpref.compose.parts import (
    C1,
    C2,
    P1,
    P2,
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
from bpref.dtypes import came, described
from bpref.layer import Layer, X, Y
from bpref.programs import is_typed


@overload
def objective(
    network: Layer[P1, X, PyTree, C1], loss: Layer[P2, PyTree, Y, C2], /
) -> Layer[tuple[P1, P2], tuple[X, PyTree], Y, tuple[C1, C2]]: ...
@overload
def objective(
    *, network: Layer[PyTree, X, PyTree, PyTree], loss: Layer[PyTree, PyTree, Y, PyTree]
) -> Layer[dict[str, PyTree], tuple[X, PyTree], Y, dict[str, PyTree]]: ...
@overload
def objective(**named: Layer) -> Layer[dict[str, PyTree], tuple[PyTree, PyTree], PyTree, dict[str, PyTree]]: ...
def objective(*layers: Layer, **named: Layer) -> Layer:
    """The layer `(X, y) -> J` of a network and a loss.

    Its params and cache are pairs, `(network's, loss's)`; of `objective(network=..., loss=...)` dicts by these names.
    By other names the first is the network: `objective(body=..., head=fused_linear_cross_entropy(V))` has the params
    of `serial(body=..., head=linear(V, bias=False))`.
    Where y is a tuple of several, as labels and their weights, the loss takes all of them beside the prediction. The
    cotangent of its input is `(dX, dy)`, in which integer labels have `None`.

    Example:
      >>> J = bpref.objective(bpref.linear(3), bpref.softmax_cross_entropy())
      >>> params = J.init(jax.random.key(0), (X, y))
      >>> value, dparams, _ = bpref.backpropagate(J, params, (X, y))
      >>> dparams[0].W.shape
      (3, 2)

    Raises:
      TypeError: it is not one network and one loss, or one of them no layer; at the call, x is no pair (X, y).
      ValueError: at the call, params are not those of both, or y does not fit what the network gives.
    """
    names = ("network", "loss")
    if len(layers) + len(named) != 2 or (layers and named):
        given = ", ".join([*(f"layer {i}" for i in range(len(layers))), *named]) or "nothing"
        raise TypeError(f"objective: it was given {given}; expected a network and a loss, both by name or neither")
    if set(named) == set(names):
        named = {name: named[name] for name in names}
    parts = parts_of("objective", layers, named, names)
    network, loss = parts.layers

    def begin_both(key, x):
        x, data = at_the_start(x)
        X, y = pair(x)
        of_network, state = begun(network, key, X, data)
        y_hat = jax.eval_shape(partial(run, network), of_network, X, data._replace(x=None, state=state))[0]
        with saying_both(network, y_hat, y):
            of_loss, state_of_loss = begun(loss, key, beside(y_hat, y), data)
        return parts.together((of_network, of_loss)), parts.together((state, state_of_loss))

    def forward(params, x):
        of_network, of_loss = parts.apart("objective", params)
        x, (of_X, of_y) = parts.given("objective", x)
        X, y = pair(x)
        y_hat, network_cache, state = run(network, of_network, X, of_X)
        with saying_both(network, y_hat, y):
            J, loss_cache, state_of_loss = run(loss, of_loss, beside(y_hat, y), of_y)
        after = parts.together((state, state_of_loss))
        return given_state(parts.is_stateful, J, after), parts.together((network_cache, loss_cache))

    def backward(params, caches, dJ):
        dJ, data = of_value(parts.is_stateful, dJ)
        of_network, of_loss = parts.apart("objective", params)
        network_cache, loss_cache = parts.apart("objective", caches, "cache")
        dloss, of_both, by_loss = pull(data, loss, of_loss, loss_cache, dJ)
        dy_hat, *dy = of_both or (None, None)
        dnetwork, dX, by_network = pull(data, network, of_network, network_cache, dy_hat)
        dx = dX, tuple(dy) if len(dy) > 1 else dy[0]
        return parts.together((dnetwork, dloss)), as_input(parts.is_stateful, dx, added(by_loss, by_network))

    init, begin = parts.stateful(begin_both)
    return Layer(init, forward, backward, "objective", *parts.rebuilt_by(objective), begin)


def beside(y_hat: PyTree, y: PyTree) -> tuple[PyTree, ...]:
    """What a loss is given: a prediction, and beside it a target, or each of several."""
    return (y_hat, *y) if type(y) is tuple and len(y) > 1 else (y_hat, y)


def pair(x: PyTree) -> tuple[PyTree, PyTree]:
    """X and y of an objective's input; raises `TypeError` where it is none of two."""
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise TypeError(f"objective: x is {came(x)}, expected a pair (X, y) of inputs and targets")
    return x[0], x[1]


@contextmanager
def saying_both(network: Layer, y_hat: PyTree, y: PyTree) -> Iterator[None]:
    """Adds to what a loss refuses that the prediction is the network's, and the shapes of both."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own
            raise
        gives, targets = (jax.tree.map(_shape, v, is_leaf=lambda v: v is None) for v in (y_hat, y))
        both = f"in objective the network {network.name} gives {gives}, y is {targets}".replace("'", "")
        raise type(error)(f"{error}; {both}") from error.__cause__


def _shape(v: object) -> str:
    return f"{v.dtype}{list(v.shape)}" if is_typed(v) else described(v)
