"""objective: a network and its loss, one layer from (X, y) to the number J.

Forward: y_hat = f(X), J = loss(y_hat, y). The reverse sweep starts at dJ = 1; the loss turns it into
dA[L] = dJ/dy_hat, which carries the batch mean's 1/N, and the network takes it from there.
"""

import jax

from bpref.compose.serial import require_one_each
from bpref.layer import Layer, require_layer


def objective(network: Layer, loss: Layer) -> Layer:
    """The layer `(X, y) -> J`; its params and cache are pairs, `(network's, loss's)`.

    The cotangent of its input is `(dX, dy)`, the second `None` for integer labels.

    Raises:
      TypeError: the network or the loss is no Layer.
    """
    require_layer("objective", "network", network)
    require_layer("objective", "loss", loss)

    def init(key, x):
        X, y = x
        params = network.init(key, X)
        return params, loss.init(key, (jax.eval_shape(network.forward, params, X)[0], y))

    def forward(params, x):
        require_one_each("objective", (network, loss), params)
        X, y = x
        y_hat, network_cache = network.forward(params[0], X)
        J, loss_cache = loss.forward(params[1], (y_hat, y))
        return J, (network_cache, loss_cache)

    def backward(params, caches, dJ):
        dloss, (dy_hat, dy) = loss.backward(params[1], caches[1], dJ)
        dnetwork, dX = network.backward(params[0], caches[0], dy_hat)
        return (dnetwork, dloss), (dX, dy)

    return Layer(init, forward, backward, "objective", (network, loss), objective)
