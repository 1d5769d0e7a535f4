"""neural_ode: z at the end of a time in which a layer says how fast it changes, dz/dt = f(P, z).

Forward, from z = x, by the classical Runge-Kutta method, N steps of length h:

    k1 = f(z)    k2 = f(z + h/2 k1)    k3 = f(z + h/2 k2)    k4 = f(z + h k3)
    z <- z + h/6 (k1 + 2 k2 + 2 k3 + k4)

Differential of a step, with F_i for f's differential where k_i was taken:

    delta k1 = F1 delta z        delta k2 = F2 (delta z + h/2 delta k1)        and so on
    delta z <- delta z + h/6 (delta k1 + 2 delta k2 + 2 delta k3 + delta k4)

The adjoint, from the last step to the first, with f_i* for f's backward there, and g_i what it gives for its input:
each k acts on the sum, and through the k after it,

    g4 = f4*(h/6 dz)    g3 = f3*(h/3 dz + h g4)    g2 = f2*(h/3 dz + h/2 g3)    g1 = f1*(h/6 dz + h/2 g2)
    dz <- dz + g1 + g2 + g3 + g4        dP += what the four give for P

This is the gradient of the steps that were taken, to rounding (discretise, then differentiate). The adjoint equation
d(dz)/dt = -f_z^T dz, solved backwards (differentiate, then discretise), has another error of h^4 than the forward, and
finds z again by going back in time, which may blow up; it keeps nothing but the end.

Cached: z before each step. What f keeps of its four calls is made again, a step at a time; autodiff keeps it of all.

P is the same in all 4 N calls, and dP a sum over them, which only gradients have: so this is a leaf, not a combinator
whose parts are transformed. Leaf transformations take it as a whole.

Numerical care: z has x's dtype. In half precision what a step adds falls below the last digit of z: let x be float32
there, and f cast what it is given.

Source: Chen, Rubanova, Bettencourt and Duvenaud, 'Neural ordinary differential equations' (2018), arXiv:1806.07366; the
adjoint of the steps: Hager, 'Runge-Kutta methods in optimal control and the transformed adjoint system' (2000), Numer.
Math. 87.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bpref.apart import require_parts
from bpref.checks.hyperparameters import require_finite, require_size
from bpref.compose.parts import added
from bpref.compose.residual import require_same_shapes
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.layer import Layer, P, X, Y, require_layer, require_no_state
from bpref.loops import scan


class NeuralOdeCache(NamedTuple):
    z: PyTree


def neural_ode(f: Layer[P, X, Y, PyTree], steps: int, time: float = 1.0) -> Layer[P, X, Y, NeuralOdeCache]:
    """z(time) of dz/dt = f(params, z), z(0) = x, by `steps` Runge-Kutta steps of order 4, and their exact gradient.

    Args:
      f: a layer whose output has its input's tree, shapes and dtypes, and that gives the same when run again. Where it
        is to know the time, let that be one of x's arrays, whose rate is 1.
      steps: the number of steps N.
      time: how long they are together; negative to go back.

    Returns:
      A leaf with f's params, x and y of one form.

    Example:
      >>> network = bpref.serial(bpref.neural_ode(bpref.serial(bpref.linear(2), bpref.tanh()), 10), bpref.linear(3))
      >>> params = network.init(jax.random.key(0), X)
      >>> h, dparams, dx = bpref.backpropagate(network, params, X, dy)

    Raises:
      ValueError: steps is not a positive integer, or time not finite; f changes its input's shapes.
      TypeError: f is no layer, has state, or has leaves that are transformed already.
    """
    who = "neural_ode"
    require_layer(who, "f", f)
    require_no_state(who, f)
    require_parts(who, f)
    steps = require_size(who, "steps", steps)
    h = require_finite(who, "time", time) / steps

    def stages(params, z):
        """The four k, and what f keeps of each."""
        ks, caches = [], []
        for share in (0, h / 2, h / 2, h):
            k, cache = f.forward(params, plus(z, share, ks[-1]) if ks else z)
            require_same_shapes(who, f, z, k)
            ks.append(k)
            caches.append(cache)
        return ks, caches

    def forward(params, x):
        def step(z, _):
            (k1, k2, k3, k4), _ = stages(params, z)
            return plus(plus(z, h / 6, added(k1, k4)), h / 3, added(k2, k3)), z

        y, before = scan(step, x, length=steps)
        return y, NeuralOdeCache(before)

    def backward(params, cache, dy):
        def back(dz, z):
            """What a step gives for params and its z."""
            _, caches = stages(params, z)
            dparams, dk, total = [], scaled(h / 6, dz), dz
            for of_k, weight, share in zip(caches[::-1], (h / 3, h / 3, h / 6, 0), (h, h / 2, h / 2, 0), strict=True):
                dp, g = f.backward(params, of_k, dk)
                g = with_zeros(g, dz)
                dparams.append(jax.tree.map(widen, dp))
                total, dk = added(total, g), plus(scaled(weight, dz), share, g)
            return added(*dparams), total

        def step(carry, z):
            dz, so_far = carry
            dparams, dz = back(dz, z)
            return (dz, added(so_far, dparams)), None

        first = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), cache.z)
        dy = with_zeros(dy, first)
        nothing = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(back, dy, first)[0])
        (dx, dparams), _ = scan(step, (dy, nothing), cache.z, reverse=True)
        narrow = jax.eval_shape(lambda: f.backward(params, stages(params, dy)[1][0], dy)[0])
        return jax.tree.map(lambda d, v: cast(d, v.dtype), dparams, narrow), dx

    return Layer(f.init, forward, backward, who)


def plus(z: PyTree, share: float, k: PyTree) -> PyTree:
    """z + share k."""
    return jax.tree.map(lambda v, d: v + share * d, z, k)


def scaled(share: float, k: PyTree) -> PyTree:
    return jax.tree.map(lambda d: share * d, k)
