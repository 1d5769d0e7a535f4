"""root: z with f(P, (z, x)) = 0, a system of n equations in the n elements of z, for each example.

Forward, by Newton's method, J being f_z, the derivative of f by its own z, (..., n, n):

    z <- z - J^-1 f(P, (z, x))

f's backward of a cotangent that is 1 for equation i of every example and 0 for the others gives row i of J of all of
them: n backwards, side by side.

Differential: however z was found, delta z is the same. f stays 0,

    f_z delta z + f_P delta P + f_x delta x = 0        delta z = -J^-1 (f_P delta P + f_x delta x)

The adjoint: with u = -J^-T dz, dP = f_P^T u and dx = f_x^T u, and f's backward of u gives both.

    J^T u = -dz                              one more time the n backwards, and a solve
    dP, (., dx) = f's backward of u

Cached: f's cache at z, however many turns there were. J is made again; to keep it would be n times the size of z.

Numerical care: u is the gradient of the root itself, not of where `steps` too few stop. The number of right digits
doubles with every turn near the root; far from it, where f bends, it may go anywhere, or to another root: begin near
the one that is meant (`start`). J is factorised in at least float32. Where it is singular, which cannot be seen while
tracing, z and the cotangents hold inf or NaN.

Source: Krantz and Parks, 'The implicit function theorem' (2002); of layers: Gould, Hartley and Campbell, 'Deep
declarative networks' (2019), arXiv:1909.04866, section 4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.compose.fixed_point import of_pair, require_iteration
from bpref.compose.residual import require_same_shapes
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, require_array, require_floating, widen
from bpref.layer import C, Layer, P, Reals
from bpref.loops import settled


def root(
    f: Layer[P, tuple[Array, PyTree], Array, C],
    steps: int = 20,
    tolerance: float | None = None,
    start: Callable[[PyTree], Array] | None = None,
) -> Layer[P, PyTree, Reals, C]:
    """The z where f(params, (z, x)) is zero, by Newton's method: params and cache are f's.

    Args:
      f: a layer that takes the pair (z, x) and gives an array like z `(..., n)`. What it gives for an example, the last
        axis, may depend on that example's z alone.
      steps: how many turns there are at most.
      tolerance: it ends when no element of z changes by more than this times the largest; `None` for four units of
        round-off.
      start: `(x) -> z`, where to begin; left out, zeros like x.

    Returns:
      A layer with f's params, x whatever f takes beside z, and y = z. Its cotangents are the gradient of the root
      itself, whatever it began with.

    Example:
      >>> residue = bpref.serial(bpref.parallel(bpref.residual(bpref.tanh()), bpref.linear(2)), bpref.fan_in())
      >>> network = bpref.serial(bpref.root(residue), bpref.linear(3))
      >>> params = network.init(jax.random.key(0), X)
      >>> h, dparams, dx = bpref.backpropagate(network, params, X, dy)

    Raises:
      ValueError: steps is not a positive integer, or tolerance not positive; z has no axis; f's output is not like z.
      TypeError: f is no layer, or has state; z is no floating-point array.
    """
    who = "root"
    steps, tolerance, begin = require_iteration(who, f, steps, tolerance, start)

    def init(key, x):
        return f.init(key, (jax.eval_shape(begin, x), x))

    def forward(params, x):
        def turn(z):
            value, cache = f.forward(params, (z, x))
            require_same_shapes(who, f, z, value)
            return lax.sub(z, _solved(jacobian(params, cache, z), value))

        z = begin(x)
        require_array(who, "what start gives", z)
        require_floating(who, "what start gives", z)
        if z.ndim == 0:
            raise ValueError(f"{who}: z has shape (), expected (..., n)")
        z = settled(turn, z, steps, tolerance)
        return z, f.forward(params, (z, x))[1]

    def backward(params, cache, dz):
        u = None if dz is None else -_solved(jnp.swapaxes(jacobian(params, cache, dz), -1, -2), dz)
        dparams, d = f.backward(params, cache, u)
        return dparams, of_pair(d)[1]

    def jacobian(params, cache, z):
        """(..., n, n), of z's shape and dtype."""

        def row(one):
            return with_zeros(of_pair(f.backward(params, cache, jnp.broadcast_to(one, z.shape))[1])[0], z)

        return jax.vmap(row, out_axes=-2)(jnp.eye(z.shape[-1], dtype=z.dtype))

    return Layer(init, forward, backward, who, (f,), lambda f: root(f, steps, tolerance, start), ("",))


def _solved(J: Array, v: Array) -> Array:
    """J^-1 v, for each example."""
    return cast(jnp.linalg.solve(widen(J), widen(v)[..., None])[..., 0], v.dtype)
