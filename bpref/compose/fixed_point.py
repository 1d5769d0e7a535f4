"""fixed_point: z with z = f(P, (z, x)), a layer of endless depth whose backward does not go through it.

Forward: z <- f(P, (z, x)) until it stays as it is. One more forward of f there gives y = z and f's cache.

Differential: however z was found, delta z is the same. With f_z, f_P and f_x for what f's differential is made of,

    delta z = f_z delta z + f_P delta P + f_x delta x        (1 - f_z) delta z = f_P delta P + f_x delta x

The adjoint: with u = (1 - f_z)^-T dz, dP = f_P^T u and dx = f_x^T u. f's backward makes of a cotangent u all of f_P^T
u, f_z^T u and f_x^T u. So u is a fixed point too, found by the same iteration,

    u <- dz + f_z^T u                        only f's dz is used
    dP, (., dx) = f's backward of u          once, at the end

and no matrix is made, nor anything solved. Both converge where the eigenvalues of f_z are below 1 in magnitude, by the
largest of these a turn.

Cached: f's cache at z, however many turns there were: autodiff of the loop keeps that of every turn.

Numerical care: u is the gradient of the fixed point itself, not of where `steps` too few stop. What is left in z once
nothing changes is rounding, over 1 less the largest eigenvalue. A NaN ends the loop. Where it does not converge z is
the last of its turns, and so is u, which cannot be seen while tracing.

Source: Bai, Kolter and Koltun, 'Deep equilibrium models' (2019), arXiv:1909.01377, theorem 1; before: Almeida (1987)
and Pineda (1987), 'Generalization of back-propagation to recurrent neural networks', Phys. Rev. Lett. 59.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_positive_or_none, require_size
from bpref.compose.parts import added
from bpref.compose.residual import require_same_shapes
from bpref.cotangents import with_zeros
from bpref.dtypes import described
from bpref.layer import C, Layer, P, require_layer, require_no_state
from bpref.loops import settled


def fixed_point(
    f: Layer[P, tuple[PyTree, PyTree], PyTree, C],
    steps: int = 100,
    tolerance: float | None = None,
    start: Callable[[PyTree], PyTree] | None = None,
) -> Layer[P, PyTree, PyTree, C]:
    """The z that f leaves as it is, f(params, (z, x)) = z: params and cache are f's, whatever the number of turns.

    Args:
      f: a layer that takes the pair (z, x) and gives what has z's tree, shapes and dtypes.
      steps: how many turns there are at most, forward and backward.
      tolerance: no array changes any more when none of its elements does by more than this times the largest; `None`
        for four units of round-off of its dtype.
      start: `(x) -> z`, where to begin; left out, zeros like x.

    Returns:
      A layer with f's params, x whatever f takes beside z, and y = z. Its cotangents are the gradient of the fixed
      point itself, whatever it began with.

    Example:
      >>> inner = bpref.serial(bpref.parallel(bpref.linear(2), bpref.linear(2)), bpref.fan_in(), bpref.tanh())
      >>> network = bpref.serial(bpref.fixed_point(inner), bpref.linear(3))
      >>> params = network.init(jax.random.key(0), X)
      >>> h, dparams, dx = bpref.backpropagate(network, params, X, dy)

    Raises:
      ValueError: steps is not a positive integer, or tolerance not positive; f's output is not like z.
      TypeError: f is no layer, or has state.
    """
    who = "fixed_point"
    steps, tolerance, begin = require_iteration(who, f, steps, tolerance, start)

    def init(key, x):
        return f.init(key, (jax.eval_shape(begin, x), x))

    def forward(params, x):
        def turn(z):
            after = f.forward(params, (z, x))[0]
            require_same_shapes(who, f, z, after)
            return after

        return f.forward(params, (settled(turn, begin(x), steps, tolerance), x))

    def backward(params, cache, dz):
        def turn(u):
            return added(dz, of_pair(f.backward(params, cache, u)[1])[0])

        u = with_all_reached(turn, dz)
        dparams, d = f.backward(params, cache, settled(lambda u: with_zeros(turn(u), u), u, steps, tolerance))
        return dparams, of_pair(d)[1]

    return Layer(init, forward, backward, who, (f,), lambda f: fixed_point(f, steps, tolerance, start), ("",))


def require_iteration(
    who: str, f: Layer, steps: int, tolerance: float | None, start: Callable[[PyTree], PyTree] | None
) -> tuple[int, float | None, Callable[[PyTree], PyTree]]:
    """How often, how far and from where a layer f is iterated; raises `TypeError` or `ValueError` where it cannot be.

    Without a start it is from zeros like x.
    """
    require_layer(who, "f", f)
    require_no_state(who, f)
    steps, tolerance = require_size(who, "steps", steps), require_positive_or_none(who, "tolerance", tolerance)
    if start is not None and not callable(start):
        raise TypeError(f"{who}: start is {described(start)}, expected a function of x or None")
    return steps, tolerance, start or (lambda x: jax.tree.map(jnp.zeros_like, x))


def with_all_reached(turn: Callable[[PyTree], PyTree], u: PyTree) -> PyTree:
    """A cotangent, zeros in it where it is `None` at first and not after some turns."""
    while True:
        filled = with_zeros(u, jax.eval_shape(turn, u))
        if jax.tree.structure(filled) == jax.tree.structure(u):
            return u
        u = filled


def of_pair(d: PyTree) -> tuple[PyTree, PyTree]:
    """The cotangents of z and of x, of a pair's, which may be `None` as a whole."""
    return (None, None) if d is None else d
