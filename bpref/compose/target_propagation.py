"""target_propagation: what comes down is not a derivative but a target, found by a learnt inverse.

Forward: h = f(P, x). Beside f there is g, with params Q, that is to find x again: g(Q, h) ~ x. Where the target of h is
h - s dh, that of x is what g makes of it, corrected by the error that g makes anyway (the difference), so that

    s dx = g(Q, h) - g(Q, h - s dh)         x's target is x - s dx
    dP   = f's backward of dh               1/s of the gradient of 1/2 |h - target|^2, the target constant
    dQ   = g's backward of (g(Q, h) - x)/N  the gradient of the reconstruction 1/(2N) |g(Q, h) - x|^2, x and h constant

At the top dh is the cotangent of the loss, so that the first target is a step s down the gradient. Where g is linear, s
is of no account, and dx = dh W_g^T; where it is f's transposed, as of an orthogonal W, the gradient is exact.

Cached: f's cache, h and x. g runs twice in the backward.

Source: Lee, Zhang, Fischer and Bengio, 'Difference target propagation' (2015), arXiv:1412.7525, equations 9 to 15;
there the reconstruction is of x with noise, here of x.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_positive
from bpref.compose.parts import parts_of
from bpref.compose.residual import require_same_shapes
from bpref.cotangents import with_zeros
from bpref.layer import Layer, P, X, Y

Q = TypeVar("Q")


class TargetPropagationCache(NamedTuple):
    f: PyTree
    x: PyTree
    h: PyTree


def target_propagation(
    f: Layer[P, X, Y, PyTree], g: Layer[Q, Y, PyTree, PyTree], step: float = 1.0
) -> Layer[tuple[P, Q], X, Y, TargetPropagationCache]:
    """f, through which targets go down by g, its learnt inverse, and not cotangents by f's backward.

    Put several into a `serial`, the loss's own last layer behind them as it is.

    Args:
      f: any layer without state, x an array of N examples.
      g: a layer from f's output to arrays like its input.
      step: s, how far below h along dh the target lies; dh of a mean over N examples is 1/N of an example's.

    Returns:
      A layer with params `(f's, g's)`, both trained by one optimiser.

    Example:
      >>> down = bpref.target_propagation(bpref.serial(bpref.linear(8), bpref.tanh()), bpref.linear(2))
      >>> network = bpref.serial(down, bpref.linear(3))
      >>> params = network.init(jax.random.key(0), X)
      >>> h, dparams, dx = bpref.backpropagate(network, params, X, dy)

    Raises:
      ValueError: `step` is not a positive number; g's output has other shapes than x.
      TypeError: f or g is no layer, or has state.
    """
    who = "target_propagation"
    step = require_positive(who, "step", step)
    parts = parts_of(who, (f, g), {})

    def init(key, x):
        of_f, of_g = jax.random.split(key)
        p = f.init(of_f, x)
        h = jax.eval_shape(lambda p, x: f.forward(p, x)[0], p, x)
        q = g.init(of_g, h)
        require_same_shapes(who, g, x, jax.eval_shape(lambda q, h: g.forward(q, h)[0], q, h))
        return p, q

    def forward(params, x):
        p, _ = parts.apart(who, params)
        h, cache = f.forward(p, x)
        return h, TargetPropagationCache(cache, x, h)

    def backward(params, cache, dh):
        (p, q), (of_f, x, h) = parts.apart(who, params), cache
        dh = with_zeros(dh, h)
        again, of_g = g.forward(q, h)
        target, _ = g.forward(q, jax.tree.map(lambda v, d: v - jnp.asarray(step, v.dtype) * d, h, dh))
        dx = jax.tree.map(lambda a, t: (a - t) / jnp.asarray(step, a.dtype), again, target)
        error = jax.tree.map(lambda a, v: lax.sub(a, v) / jnp.asarray(len(v), v.dtype), again, x)
        return (f.backward(p, of_f, dh)[0], g.backward(q, of_g, error)[0]), dx

    return Layer(init, forward, backward, who, (f, g), lambda f, g: target_propagation(f, g, step))
