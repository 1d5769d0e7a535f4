"""hessian: the Hessian of J times a vector, as the tangent of the gradient that is derived by hand.

With g(P) = dJ/dP by the layers' own backwards, H v is how g changes along v:

    H v = d/de g(P + e v) at e = 0

"forward over reverse" (Pearlmutter, 'Fast exact multiplication by the Hessian', 1994): about two gradients' time and
memory. What is pushed forward is the sweep of forward and backward as it is written by hand: no backward is made by
autodiff.

The diagonal of H is the mean of u * (H u) over draws u of random signs (Hutchinson's estimator; Bekas, Kokiopoulou and
Saad, 'An estimator for the diagonal of a matrix', 2007): E u_i u_j is 0 but for i = j.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree

from bpref import loops
from bpref.checks.hyperparameters import require_size
from bpref.cotangents import has_cotangent, is_differentiable
from bpref.layer import Layer, backpropagate, map_leaves, require_layer
from bpref.programs import all_equations
from bpref.tangents import pushed_forward
from bpref.trained import select
from bpref.transforms.curvature.direction import require_direction

REFUSALS = (TypeError, ValueError, NotImplementedError)
"""What JAX says where a function has no tangents."""

WITHOUT_TANGENTS = "custom_vjp_call"
"""The primitive of which it says so when the program is compiled, and no sooner."""


def hessian_product(layer: Layer, params: PyTree, x: PyTree, v: PyTree) -> PyTree:
    """The Hessian of J in the params times v.

    Args:
      layer: a composition down to one number J, such as an `objective`.
      params, x: as of `backpropagate`.
      v: a tree like dparams.

    Returns:
      A tree like dparams.

    Example:
      >>> v = bpref.backpropagate(J, params, (X, y))[1]
      >>> bpref.hessian_product(J, params, (X, y), v)[0].W.shape
      (3, 2)

    Raises:
      ValueError: v has another tree or other shapes than dparams; J is not one number.
      TypeError: `layer` is no Layer; the sweep of one in it, which is named, cannot be pushed forward.
    """
    who = "hessian_product"
    require_layer(who, "layer", layer)
    product, dparams = _product(who, layer, params, x)
    require_direction(who, v, dparams)
    return product(v)


def hutchinson_diagonal(layer: Layer, params: PyTree, x: PyTree, key: Array, draws: int = 1) -> PyTree:
    """An estimate of the diagonal of the Hessian of J, the mean of `u * (H u)` over draws u of random signs.

    It is exact where the Hessian is diagonal; elsewhere its variance is twice the sum of squares beside the diagonal,
    divided by the number of draws.

    Args:
      layer, params, x: as of `hessian_product`.
      key: a PRNG key.
      draws: how many products.

    Returns:
      A tree like dparams.

    Example:
      >>> bpref.hutchinson_diagonal(J, params, (X, y), jax.random.key(0), draws=10)[0].W.shape
      (3, 2)

    Raises:
      ValueError: `draws` is not a positive integer; J is not one number.
      TypeError: as of `hessian_product`.
    """
    who = "hutchinson_diagonal"
    require_layer(who, "layer", layer)
    draws = require_size(who, "draws", draws)
    product, dparams = _product(who, layer, params, x)
    like, tree = jax.tree.flatten(dparams)

    def add(total, key):
        keys = jax.random.split(key, max(1, len(like)))
        signs = [jax.random.rademacher(k, d.shape, d.dtype) for k, d in zip(keys, like, strict=False)]
        u = tree.unflatten(signs)
        return jax.tree.map(lambda t, a, b: t + a * b, total, u, product(u)), None

    zeros = tree.unflatten([jnp.zeros(d.shape, d.dtype) for d in like])
    total, _ = loops.scan(add, zeros, jax.random.split(key, draws))
    return jax.tree.map(lambda t: t / draws, total)


def _product(who: str, layer: Layer, params: PyTree, x: PyTree) -> tuple[Callable[[PyTree], PyTree], PyTree]:
    """`v -> H v`, and the shapes of v."""

    def sweep(params, x):
        return backpropagate(layer, params, x)[1]

    program, dparams = jax.make_jaxpr(sweep, return_shape=True)(params, x)
    if _is_without_tangents(program):
        _name_refusal(who, layer, params, x)
    mask = has_cotangent(params, dparams)
    trained = select(mask, params)

    def gradient(trained):
        return sweep(jax.tree.map(lambda keep, p, t: t if keep else p, mask, params, trained), x)

    def product(v):
        try:
            return pushed_forward(gradient, (trained,), (v,))[1]
        except REFUSALS:
            _name_refusal(who, layer, params, x)
            raise

    return product, dparams


def _is_without_tangents(program: ClosedJaxpr) -> bool:
    return any(equation.primitive.name == WITHOUT_TANGENTS for equation in all_equations(program))


def _name_refusal(who: str, layer: Layer, params: PyTree, x: PyTree) -> None:
    """Raise `TypeError` that names the leaf whose forward or backward has no tangents."""

    def pushed(what, leaf, f, *given):
        """f along its real numbers, by shape alone."""
        arrays, tree = jax.tree.flatten(given)
        real = [i for i, a in enumerate(arrays) if is_differentiable(a)]

        def of_real(*chosen):
            whole = list(arrays)
            for i, a in zip(real, chosen, strict=True):
                whole[i] = a
            return f(*tree.unflatten(whole))

        chosen = [arrays[i] for i in real]
        try:
            if _is_without_tangents(jax.make_jaxpr(of_real)(*chosen)):
                raise TypeError("it calls a function of jax.custom_vjp, which has no tangents")
            jax.eval_shape(lambda *a: pushed_forward(of_real, a, a), *chosen)
        except REFUSALS as error:
            reason = str(error).split("\n")[0]
            raise TypeError(f"{who}: the {what} of {leaf.name} cannot be pushed forward: {reason}") from error
        return f(*given)

    def tried(leaf):
        return leaf._replace(
            forward=lambda *given: pushed("forward", leaf, leaf.forward, *given),
            backward=lambda *given: pushed("backward", leaf, leaf.backward, *given),
        )

    jax.eval_shape(lambda params, x: backpropagate(map_leaves(tried, layer), params, x)[1], params, x)
