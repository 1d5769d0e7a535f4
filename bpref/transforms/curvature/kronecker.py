"""kronecker: the factors of K-FAC, two small matrices for the curvature of a layer with a large one.

For Z = A W^T + b, with a_n the row A_n and a 1 behind it where there is a b, what example n adds to (dW, db) is the
outer product dZ_n a_n^T, and the block that the layer has in the Fisher or Gauss-Newton matrix is the mean of its
square. Taken for independent, the two parts of it have a mean each:

    F = E[(a a^T) x (g g^T)] ~ A x G,      A = 1/N sum_n a_n a_n^T,      G = N sum_n dZ_n dZ_n^T,   g_n = N dZ_n

(Martens and Grosse, arXiv:1503.05671, equation 1 and section 3). J is a mean over N examples here, whose 1/N is in
dZ; with labels that are drawn from the network's own distribution 1/sqrt(N) is, and G = sum_n dZ_n dZ_n^T.

A convolution is that product for each of its windows, a_nr being window r of example n ("KFC", Grosse and Martens,
arXiv:1602.01407, section 3.1), for each group by itself; an embedding has e_(x_n) for a_n, so that A is diagonal, the
share of the positions at which an id is read. Weights that meet R positions of an example have one of two forms
(Eschenhagen et al., arXiv:2311.00636, equations 15 and 19), `expand`, exact where all positions have a loss of their
own and nothing mixes them, and `reduce`, exact where their mean has it:

    expand:  A = 1/(N R) sum_nr a_nr a_nr^T         G = N sum_nr dZ_nr dZ_nr^T
    reduce:  A = 1/N sum_n abar_n abar_n^T          G = N sum_n (sum_r dZ_nr)(sum_r dZ_nr)^T

with abar_n = 1/R sum_r a_nr.

A block, or an attention, is opened (`Layer.opened`): each of its W, whose dW = dZ^T A its backward makes of an A and a
dZ of its own, has their factors, its b apart from it. Scales, shifts, such b and the params of all other rules, and
what is shared, have the exact diagonal of their block, N sum_n g_n^2.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_choice
from bpref.compose.parts import pull
from bpref.cotangents import Product, Total, is_unmade
from bpref.dtypes import widen
from bpref.layer import Layer, as_cotangent, map_leaves, require_layer
from bpref.rules.convolution.convolution import ConvolutionCache, ConvolutionParams
from bpref.rules.linear.embedding import EmbeddingCache, EmbeddingParams
from bpref.rules.linear.linear import LinearCache, LinearParams
from bpref.transforms.curvature.columns import columns, examples_of, require_examples
from bpref.transforms.curvature.squares import squared, summed
from bpref.transforms.per_example import PerExampleCache, as_sequences, reads_of, trained_rows, transformed

ALONG = ("expand", "reduce")


class Kronecker(NamedTuple):
    """A layer's block of the curvature is about the Kronecker product of the two.

    Attributes:
      A: of its input, `(d, d)`, or `(d + 1, d + 1)` with a bias; of a convolution `(groups, ., .)`, a window's elements
        in the order of W; of an embedding the diagonal, `(V,)`.
      G: of the cotangent of its output, `(m, m)`; of a convolution `(groups, F/groups, F/groups)`.
    """

    A: Array
    G: Array


class Diagonal(NamedTuple):
    """The diagonal of the block, a tree like dparams."""

    squares: PyTree


def is_factor(v: PyTree) -> bool:
    return isinstance(v, (Kronecker, Diagonal))


def kronecker_factors(
    layer: Layer, params: PyTree, x: PyTree, key: Array | None = None, along: str = "expand"
) -> PyTree:
    """The factors of every leaf's curvature, in one reverse sweep.

    Args:
      layer: a composition down to one number J, a mean over the examples, such as an `objective`.
      params, x: as of `backpropagate`.
      key: a PRNG key, to draw the labels from the network's own distribution, which gives the true Fisher matrix on
        average. Without it they are those in x: the empirical one.
      along: "expand" or "reduce", how positions count that weights meet in one example.

    Returns:
      A tree like params with a `Kronecker` in the place of the params of every `linear`, `convolution` and `embedding`,
      and of every W of attention and blocks; a `Diagonal` in that of their other arrays, of other leaves' params, and
      of what is shared. Inside `scan` each turn has its own.

    Example:
      >>> factors = bpref.kronecker_factors(J, params, (X, y), jax.random.key(0))
      >>> factors[0].A.shape, factors[0].G.shape
      ((3, 3), (3, 3))

    Raises:
      ValueError: a layer couples examples; x has none; J is not one number; `along` is neither; with a key, the network
        does not end in a loss that has a distribution.
      TypeError: `layer` is no Layer.
    """
    who = "kronecker_factors"
    require_layer(who, "layer", layer)
    require_choice(who, "along", along, ALONG)
    require_examples(who, x)
    if key is not None:
        transform = partial(_factored, who, along, 1)
        return columns(who, transform, layer, params, x, params).sweep(
            transform, lambda root, cache: root.drawn(cache, key)
        )
    network = map_leaves(partial(_factored, who, along, examples_of(x)), layer)
    y, cache = network.forward(params, x)
    y, data = (y, None) if layer.begin is None else (y[0], x.data)
    return pull(data, network, params, cache, as_cotangent(layer.name, None, y))[0]


def _factored(who: str, along: str, scale: int, leaf: Layer) -> Layer:
    """The leaf whose dparams are its factors; `scale` is that of G."""
    formulas = {kind: partial(formula, along, scale) for kind, formula in FACTORS.items()}
    each = transformed(who, leaf, squared, formulas)
    inside = None if leaf.opened is None else _opened(who, along, scale, leaf)

    def backward(params, cache, dy):
        if inside is not None and (type(params), type(getattr(cache, "leaf", None))) not in FACTORS:
            return inside.backward(params, cache, dy)
        of_each, dx = each.backward(params, cache, dy)
        if not isinstance(cache, PerExampleCache) or isinstance(of_each, Kronecker):
            return of_each, dx
        return Diagonal(jax.tree.map(lambda v: scale * v, summed(of_each))), dx

    return each._replace(backward=backward)


def _opened(who: str, along: str, scale: int, leaf: Layer) -> Layer:
    """The leaf whose dparams are the factors of each W in it, and the diagonals of its other arrays."""

    def kept(v):
        if isinstance(v, Product):
            return v
        return squared(jnp.sum(widen(v.dZ), tuple(range(v.dZ.ndim - 1))) if isinstance(v, Total) else v)

    def each_kept(g):
        return jax.tree.map(kept, g, is_leaf=is_unmade)

    def factor(v):
        if isinstance(v, Product):
            return _moments(along, scale, *(as_sequences(widen(a)) for a in (v.A, v.dZ)))
        return Diagonal(scale * jnp.sum(v, 0))

    each = transformed(who, leaf._replace(backward=leaf.opened), each_kept, {}, keeps=True)

    def backward(params, cache, dy):
        of_each, dx = each.backward(params, cache, dy)
        return jax.tree.map(factor, of_each, is_leaf=is_unmade), dx

    return each._replace(backward=backward)


def _moments(along: str, scale: int, a: Array, dZ: Array) -> Kronecker:
    """Of a (N, R, ..., k) and dZ (N, R, ..., m), the axes between for groups."""
    if along == "reduce":
        a, dZ = jnp.sum(a, 1, keepdims=True) / max(1, a.shape[1]), jnp.sum(dZ, 1, keepdims=True)
    A, G = (jnp.einsum("nr...k,nr...l->...kl", v, v) for v in (a, dZ))
    return Kronecker(A / max(1, a.shape[0] * a.shape[1]), scale * G)


def _with_one(a: Array, b: Array | None) -> Array:
    return a if b is None else jnp.concatenate([a, jnp.ones_like(a[..., :1])], -1)


def _linear(along: str, scale: int, leaf: Layer, params: LinearParams, cache: LinearCache, dZ: Array) -> Kronecker:
    A, dZ = (as_sequences(widen(v)) for v in (cache.A, dZ))
    return _moments(along, scale, _with_one(A, params.b), dZ)


def _convolution(
    along: str, scale: int, leaf: Layer, params: ConvolutionParams, cache: ConvolutionCache, dy: Array
) -> Kronecker:
    assert leaf.opened is not None
    dW = leaf.opened(params, cache, dy)[0].W
    return _moments(along, scale, _with_one(dW.A, params.b), widen(dW.dZ))


def _embedding(
    along: str, scale: int, leaf: Layer, params: EmbeddingParams, cache: EmbeddingCache, dy: Array
) -> Kronecker:
    ids, dZ = trained_rows(leaf, params, cache, dy)
    N, R = ids.shape
    if along == "expand":
        A = reads_of(leaf, params, cache) / max(1, N * R)
        return Kronecker(A, scale * jnp.einsum("nrk,nrl->kl", dZ, dZ))
    often = jax.vmap(lambda row: reads_of(leaf, params, EmbeddingCache(row)))(ids) / max(1, R)
    total = jnp.sum(dZ, 1)
    return Kronecker(jnp.sum(often**2, 0) / N, scale * total.T @ total)


FACTORS = {
    (LinearParams, LinearCache): _linear,
    (ConvolutionParams, ConvolutionCache): _convolution,
    (EmbeddingParams, EmbeddingCache): _embedding,
}
"""As `NORMS` of per_example."""
