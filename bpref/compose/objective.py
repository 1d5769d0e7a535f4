"""objective: a network and its loss, one layer from (X, y) to the number J.

Forward: y_hat = f(X), J = loss(y_hat, y). The reverse sweep starts at dJ = 1; the loss turns it into
dA[L] = dJ/dy_hat, which carries the batch mean's 1/N, and the network takes it from there.
"""

from typing import overload

import jax

from bpref.compose.parts import parts_of
from bpref.layer import Layer


@overload
def objective(network: Layer, loss: Layer, /) -> Layer: ...
@overload
def objective(*, network: Layer, loss: Layer) -> Layer: ...
def objective(*layers: Layer, **named: Layer) -> Layer:
    """The layer `(X, y) -> J` of a network and a loss.

    Its params and cache are pairs, `(network's, loss's)`; of `objective(network=..., loss=...)` dicts by these names.
    Where y is a tuple of several, as labels and their weights, the loss takes all of them beside the prediction. The
    cotangent of its input is `(dX, dy)`, in which integer labels have `None`.

    Raises:
      TypeError: it is not one network and one loss, or one of them no layer.
      ValueError: at the call, params are not those of both.
    """
    names = ("network", "loss")
    if len(layers) + len(named) != 2 or (named and set(named) != set(names)):
        came = ", ".join([*(f"layer {i}" for i in range(len(layers))), *named]) or "nothing"
        raise TypeError(
            f"objective: it was given {came}; expected a network and a loss, both by these names or neither"
        )
    parts = parts_of("objective", layers, {name: named[name] for name in names if named}, names)
    network, loss = parts.layers

    def beside(y_hat, y):
        return (y_hat, *y) if type(y) is tuple and len(y) > 1 else (y_hat, y)

    def init(key, x):
        X, y = x
        params = network.init(key, X)
        y_hat = jax.eval_shape(network.forward, params, X)[0]
        return parts.together((params, loss.init(key, beside(y_hat, y))))

    def forward(params, x):
        of_network, of_loss = parts.apart("objective", params)
        X, y = x
        y_hat, network_cache = network.forward(of_network, X)
        J, loss_cache = loss.forward(of_loss, beside(y_hat, y))
        return J, parts.together((network_cache, loss_cache))

    def backward(params, caches, dJ):
        of_network, of_loss = parts.apart("objective", params)
        network_cache, loss_cache = parts.apart("objective", caches, "cache")
        dloss, (dy_hat, *dy) = loss.backward(of_loss, loss_cache, dJ)
        dnetwork, dX = network.backward(of_network, network_cache, dy_hat)
        return parts.together((dnetwork, dloss)), (dX, tuple(dy) if len(dy) > 1 else dy[0])

    return Layer(init, forward, backward, "objective", *parts.rebuilt_by(objective))
