"""kfac: a step by the Kronecker factors of the curvature instead of by the gradient alone.

With A and G of a layer, averaged over steps, and V its gradient as a matrix (m, d), the step that a quadratic with the
curvature A x G would take, and lambda the damping:

    (A x G + lambda I)^-1 vec V ~ vec((G + sqrt(lambda)/pi I)^-1 V (A + pi sqrt(lambda) I)^-1)

    pi = sqrt((tr A / d) / (tr G / m))

The damping is shared out by how large both are ("factored Tikhonov", Martens and Grosse, arXiv:1503.05671, sections 6.3
and 6.6), the average is their eps = min(1 - 1/k, decay) in step k (section 5), and inverses are made every so many
steps. Leaves with the diagonal of their curvature alone are divided by it plus lambda. A step d = F^-1 g of the
gradient g, F being the curvature with its damping, has the length d^T F d = <d, g>; it is made no longer than a bound
by the factor min(1, sqrt(bound / <d, g>)) (Ba et al., 'Distributed second-order optimization using Kronecker-factored
approximations' (2017), section 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref import loops
from bpref.checks.hyperparameters import require_positive, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.layer import Layer, require_layer
from bpref.transforms.curvature.kronecker import Diagonal, Kronecker, is_factor, kronecker_factors
from bpref.transforms.curvature.rates import require_decay, require_rate

if TYPE_CHECKING:
    import optax


class KfacState(NamedTuple):
    """Steps so far, the averages of the factors, and the inverses in use."""

    steps: Array
    factors: PyTree
    inverses: PyTree


def kfac(
    layer: Layer,
    x: PyTree,
    learning_rate: optax.ScalarOrSchedule,
    damping: float = 1e-3,
    decay: float = 0.95,
    every: int = 10,
    bound: float = 1e-2,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC, for optax: its update takes the step's `kronecker_factors` as the argument `factors`.

    Args:
      layer, x: the composition and an input, or specifications of one: what shapes the factors have.
      learning_rate: a number, or a schedule of optax.
      damping: lambda, in units of the curvature.
      decay: how much of the average of the factors is kept in a step.
      every: how many steps pass from one making of the inverses to the next.
      bound: the largest d^T F d of a step d before it is multiplied by the learning rate, in units of J.

    Example:
      >>> optimizer = bpref.kfac(J, (X, y), 0.1)
      >>> state = optimizer.init(params)
      >>> _, dparams, _ = bpref.backpropagate(J, params, (X, y))
      >>> factors = bpref.kronecker_factors(J, params, (X, y), jax.random.key(0))
      >>> updates, state = optimizer.update(dparams, state, params, factors=factors)

    Raises:
      ValueError: `damping`, `every`, `bound` or a learning rate is not positive, `decay` not from 0 to below 1; in an
        update, factors are of another tree or other shapes than those of `layer`.
      TypeError: `layer` is no Layer.
    """
    import optax  # whoever has an optimizer has it loaded; `import bpref` is spared it

    who = "kfac"
    require_layer(who, "layer", layer)
    damping, decay = require_positive(who, "damping", damping), require_decay(who, "decay", decay)
    every, bound = require_size(who, "every", every), require_positive(who, "bound", bound)
    require_rate(who, learning_rate)

    def init(params):
        shapes = jax.eval_shape(lambda p, x: kronecker_factors(layer, p, x), params, x)
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
        return KfacState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None, *, factors=None, **extra_args):
        _require_like(who, factors, state.factors)
        keep = jnp.minimum(1 - 1 / (state.steps + 1), decay)

        def averaged(old, new):
            share = keep.astype(old.dtype)
            return share * old + (1 - share) * new

        average = jax.tree.map(averaged, state.factors, factors)
        inverses = loops.cond(
            state.steps % every == 0,
            lambda average, _: _each(lambda factor: inverse(factor, damping), average),
            lambda _, inverses: inverses,
            average,
            state.inverses,
        )
        steps = _each(preconditioned, inverses, updates)
        along = sum(jnp.sum(widen(s) * widen(g)) for s, g in zip(*map(jax.tree.leaves, (steps, updates)), strict=True))
        share = jnp.minimum(1, jnp.sqrt(bound / jnp.maximum(along, bound)))
        steps = jax.tree.map(lambda s: cast(share.astype(wide_dtype(s.dtype)) * widen(s), s.dtype), steps)
        return steps, KfacState(state.steps + 1, average, inverses)

    own = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(own, optax.scale_by_learning_rate(learning_rate))


def inverse(factor: PyTree, damping: float) -> PyTree:
    """The inverse of a leaf's damped curvature, of the same shapes."""
    if isinstance(factor, Diagonal):
        return jax.tree.map(lambda v: 1 / (v + damping), factor)
    A, G = factor
    mean_A, mean_G = (_mean_of_diagonal(v, v.ndim < G.ndim) for v in (A, G))
    known = (mean_A > 0) & (mean_G > 0)
    pi = jnp.sqrt(jnp.where(known, mean_A / jnp.where(known, mean_G, 1), 1))
    return Kronecker(_inverse(A, pi * damping**0.5, A.ndim < G.ndim), _inverse(G, damping**0.5 / pi, False))


def preconditioned(inverse: PyTree, g: PyTree) -> PyTree:
    """A leaf's gradient times the inverse of its curvature."""
    if isinstance(inverse, Diagonal):
        return jax.tree.map(lambda s, v: cast(s * widen(v), v.dtype), inverse.squares, g)
    A, G = inverse
    if isinstance(g, Array):  # a W of a block, its b apart
        return cast(G @ widen(g) @ A, g.dtype)
    if A.ndim < G.ndim:  # an embedding, with the diagonal alone of A, and rows for inputs
        return g._replace(W=cast((A[..., None] * widen(g.W)) @ G, g.W.dtype))
    front, m = A.shape[:-2], G.shape[-1]
    V = widen(g.W).reshape(*front, m, -1)
    if g.b is not None:
        V = jnp.concatenate([V, widen(g.b).reshape(*front, m, 1)], -1)
    V = G @ V @ A
    W = cast(V if g.b is None else V[..., :-1], g.W.dtype).reshape(g.W.shape)
    return g._replace(W=W) if g.b is None else g._replace(W=W, b=cast(V[..., -1], g.b.dtype).reshape(g.b.shape))


def _each(f: PyTree, factors: PyTree, *others: PyTree) -> PyTree:
    """f of each leaf's factor, and of what the others have there."""
    every, tree = jax.tree.flatten(factors, is_leaf=is_factor)
    return tree.unflatten(map(f, every, *(tree.flatten_up_to(other) for other in others)))


def _mean_of_diagonal(v: Array, is_diagonal: bool) -> Array:
    return jnp.mean(v if is_diagonal else jnp.diagonal(v, axis1=-2, axis2=-1), -1)


def _inverse(v: Array, damping: Array, is_diagonal: bool) -> Array:
    if is_diagonal:
        return 1 / (v + jnp.broadcast_to(damping[..., None], v.shape))
    eye = jnp.broadcast_to(jnp.eye(v.shape[-1], dtype=v.dtype), v.shape)
    return jnp.linalg.inv(v + damping[..., None, None] * eye)


def _require_like(who: str, factors: PyTree, state: PyTree) -> None:
    trees = [jax.tree.map(jnp.shape, tree) for tree in (factors, state)]
    if trees[0] != trees[1]:
        raise ValueError(
            f"{who}: factors have the shapes {trees[0]}, expected {trees[1]}, those of bpref.kronecker_factors of the "
            "layer that kfac was given"
        )
