"""gauss_newton: the Gauss-Newton matrix G = J^T H J, its diagonal and its product with a vector, of backward passes.

J is the Jacobian of the network's output z in its params, H the Hessian of the loss in z, and S its square root, whose
columns stand in `bpref.formulas.loss.root`. With g_ik = J_i^T s_ik the row that column k of example i becomes on its
way back, as many columns as an example has outputs:

    G = sum_ik g_ik g_ik^T         diag G = sum_ik g_ik^2         G v = sum_ik g_ik <g_ik, v>

One sweep takes column k of all examples. For the diagonal its leaves give `sum_i g_ik^2` (`squares`). For the product
they give <g_ik, v>, without g_ik where a formula is known, and a second sweep from the same caches, with column k of
example i times that, gives the sum (as ghost clipping does). So a diagonal costs as many backward passes as an example
has outputs, and a product two times as many. A random column s with E s s^T = H gives both on average, for one and two.
For a loss that is -log p of a distribution with natural parameters z, G is the Fisher matrix as well, and a random
column the gradient at a label that is drawn from the network.

Source: Schraudolph, 'Fast curvature matrix-vector products for second-order gradient descent' (2002); Dangel et al.,
BackPACK, arXiv:1912.10985, section 2.3.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.compose.parts import Parts
from bpref.dtypes import cast, widen
from bpref.layer import Layer, backpropagate, map_leaves, require_layer
from bpref.rules.linear.linear import LinearCache, LinearParams
from bpref.transforms.clip import weighing
from bpref.transforms.curvature.columns import columns, examples_of, require_examples, sum_of
from bpref.transforms.curvature.direction import require_direction
from bpref.transforms.curvature.squares import squares
from bpref.transforms.per_example import added_up, as_sequences, transformed


def gauss_newton_diagonal(layer: Layer, params: PyTree, x: PyTree, key: Array | None = None, draws: int = 1) -> PyTree:
    """The diagonal of the Gauss-Newton matrix of J.

    It costs a forward and as many backward passes as an example has outputs: C for C classes, T C for sequences of T.

    Args:
      layer: a composition down to one number J whose loss is `softmax_cross_entropy`, `sequence_cross_entropy` or
        `square`.
      params, x: as of `backpropagate`.
      key: a PRNG key, for the mean over random columns instead, `draws` backward passes.
      draws: how many.

    Returns:
      A tree like dparams, in at least float32.

    Example:
      >>> exact = bpref.gauss_newton_diagonal(J, params, (X, y))
      >>> drawn = bpref.gauss_newton_diagonal(J, params, (X, y), jax.random.key(0), draws=10)

    Raises:
      ValueError: a layer couples examples; x has none; the network does not end in such a loss; `draws` is not a
        positive integer.
      TypeError: `layer` is no Layer.
    """
    who = "gauss_newton_diagonal"
    transform = partial(squares, who)
    run = columns(who, transform, layer, params, x, params)
    return sum_of(who, lambda start: run.sweep(transform, start), run.width, key, draws)


def fisher_diagonal(layer: Layer, params: PyTree, x: PyTree) -> PyTree:
    """The diagonal of the empirical Fisher matrix, the mean of the squares of the examples' own gradients.

    That is N sum_i g_i^2, J being a mean over N examples and g_i what one adds to its gradient.

    Args:
      layer: a composition down to one number J, a mean over the examples.
      params, x: as of `backpropagate`.

    Returns:
      A tree like dparams, in at least float32.

    Example:
      >>> bpref.fisher_diagonal(J, params, (X, y))[0].W.shape
      (3, 2)

    Raises:
      ValueError: a layer couples examples; x has none; J is not one number.
      TypeError: `layer` is no Layer.
    """
    who = "fisher_diagonal"
    require_layer(who, "layer", layer)
    require_examples(who, x)
    n = examples_of(x)
    return jax.tree.map(lambda v: n * v, backpropagate(map_leaves(partial(squares, who), layer), params, x)[1])


def gauss_newton_product(
    layer: Layer, params: PyTree, x: PyTree, v: PyTree, key: Array | None = None, draws: int = 1
) -> PyTree:
    """The Gauss-Newton matrix of J times v, of backward passes alone.

    It costs a forward and twice as many backward passes as an example has outputs, or 2 `draws`; J v itself, one
    forward pass of tangents, is not made. `hessian_product` is as good and cheaper where the curvature need not be that
    of Gauss and Newton.

    Args:
      layer, params, x, key, draws: as of `gauss_newton_diagonal`.
      v: as of `hessian_product`, and so what is returned.

    Example:
      >>> v = bpref.backpropagate(J, params, (X, y))[1]
      >>> bpref.gauss_newton_product(J, params, (X, y), v)[0].W.shape
      (3, 2)

    Raises:
      ValueError, TypeError: as of `gauss_newton_diagonal`; v has another tree or other shapes than dparams.
    """
    who = "gauss_newton_product"
    require_layer(who, "layer", layer)
    require_examples(who, x)
    require_direction(who, v, jax.eval_shape(lambda p, x: backpropagate(layer, p, x)[1], params, x))
    transform = partial(_dotted, who)
    run = columns(who, transform, layer, params, x, beside(layer, params, v))

    def product(start):
        along = added_up(who, "products", run.sweep(transform, start), 1)
        return run.sweep(lambda leaf: _of_params(weighing(leaf, along)), start)

    return jax.tree.map(lambda p, u: cast(p, u.dtype), sum_of(who, product, run.width, key, draws), v)


class Beside(NamedTuple):
    """A leaf's params, and what v has for them."""

    params: PyTree
    v: PyTree


def beside(layer: Layer, params: PyTree, v: PyTree) -> PyTree:
    """The params of a network, with v beside those of each leaf."""
    if layer.rebuild is None:
        return Beside(params, v)
    if layer.names == ("",):
        return beside(layer.parts[0], params, v)
    parts = Parts(layer.parts, layer.names)
    given = zip(parts.layers, *(parts.apart(layer.name, tree) for tree in (params, v)), strict=True)
    return parts.together(beside(*part) for part in given)


def _of_params(leaf: Layer) -> Layer:
    """The leaf, given `Beside` for its params."""
    return leaf._replace(
        forward=lambda given, x: leaf.forward(given.params, x),
        backward=lambda given, cache, dy: leaf.backward(given.params, cache, dy),
    )


def _dotted(who: str, leaf: Layer) -> Layer:
    """The leaf, given `Beside`, whose dparams are <g_i, v> of each example."""

    def along(v):
        formulas = {kind: partial(formula, v) for kind, formula in DOTS.items()}
        return transformed(who, leaf, partial(_dot, v), formulas)

    return leaf._replace(
        forward=lambda given, x: along(None).forward(given.params, x),
        backward=lambda given, cache, dy: along(given.v).backward(given.params, cache, dy),
    )


def _dot(v: PyTree, g: PyTree) -> PyTree:
    pairs = list(zip(jax.tree.leaves(g), jax.tree.leaves(v), strict=True))
    return sum(jnp.sum(widen(a) * widen(b)) for a, b in pairs) if pairs else g


def _linear(v: LinearParams, leaf: Layer, params: LinearParams, cache: LinearCache, dZ: Array) -> Array:
    """<dZ_i^T A_i, V> + <sum_t dZ_it, u>, for v = (V, u)."""
    A, dZ = (as_sequences(widen(a)) for a in (cache.A, dZ))
    tangent = jnp.einsum("ntj,kj->ntk", A, cast(v.W, A.dtype))
    if v.b is not None:
        tangent += jnp.broadcast_to(cast(v.b, A.dtype), tangent.shape)
    return jnp.sum(dZ * tangent, (1, 2))


DOTS = {(LinearParams, LinearCache): _linear}
"""As `NORMS` of per_example."""
