"""What `bench_signals` measures of curvature: ours, and the best that JAX makes of the same forward by autodiff."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import bpref
from bpref.rules.linear.embedding import EmbeddingCache
from bpref.rules.linear.linear import LinearCache
from bpref.transforms.curvature.gauss_newton import beside
from bpref.transforms.curvature.kronecker import is_factor

KEY = jax.random.key(1)


class Seen(NamedTuple):
    """A leaf's cache and output."""

    cache: Any
    y: Any


def has_factors(cache: Any) -> bool:
    return isinstance(cache, (LinearCache, EmbeddingCache))


def factors(J: bpref.Layer, key: Any = None) -> Callable[..., Any]:
    """A and G of every linear layer and embedding; of other leaves nothing, which XLA does not compute then."""

    def ours(params, x):
        found, tree = jax.tree.flatten(bpref.kronecker_factors(J, params, x, key), is_leaf=is_factor)
        of_layers = zip(found, tree.flatten_up_to(params), strict=True)
        return [v for v, p in of_layers if isinstance(v, bpref.Kronecker) and isinstance(p, tuple)]

    return ours


def shifted(layer: bpref.Layer, params: Any, x: Any) -> tuple[Callable[..., Any], Any]:
    """The forward `(params, x, shift) -> (y, caches)` with something added to these leaves' outputs; and the shapes."""

    def noting(leaf):
        def forward(params, x):
            y, cache = leaf.forward(params, x)
            return y, Seen(cache, y)

        return leaf._replace(forward=forward)

    def shifting(leaf):
        def forward(given, x):
            y, cache = leaf.forward(given.params, x)
            return (y if given.v is None else y + given.v), Seen(cache, None)

        return leaf._replace(forward=forward)

    seen = jax.eval_shape(bpref.map_leaves(noting, layer).forward, params, x)[1]
    shapes = jax.tree.map(lambda s: s.y if has_factors(s.cache) else None, seen, is_leaf=is_seen)
    network = bpref.map_leaves(shifting, layer)
    return lambda params, x, shift: network.forward(beside(layer, params, shift), x), shapes


def is_seen(v: Any) -> bool:
    return isinstance(v, Seen)


def at_leaves(caches: Any, *trees: Any) -> list[Any]:
    """The caches of these leaves, and what the trees have there."""
    each, tree = jax.tree.flatten(caches, is_leaf=is_seen)
    found = zip(each, *map(tree.flatten_up_to, trees), strict=True)
    return [(seen.cache, *others) for seen, *others in found if has_factors(seen.cache)]


def zeros_of(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def factors_by_autodiff(J: bpref.Layer, params: Any, x: Any) -> Callable[..., Any]:
    """The same by `jax.grad` in what is added to the outputs of these leaves, their inputs taken from the forward."""
    forward, shapes = shifted(J, params, x)

    def theirs(params, x):
        dZ, caches = jax.grad(lambda shift: forward(params, x, shift), has_aux=True)(zeros_of(shapes))
        n = len(jax.tree.leaves(x)[0])
        return [product(cache, d, p, n) for cache, d, p in at_leaves(caches, dZ, params)]

    def product(cache, d, p, n):
        stacked = p.W.ndim - 2  # the axis of the turns of a scan
        rows = d.reshape(*d.shape[:stacked], -1, d.shape[-1])
        G = n * jnp.einsum("...nk,...nl->...kl", rows, rows)
        if isinstance(cache, EmbeddingCache):
            ids = cache.x.reshape(-1)
            return bpref.Kronecker(jnp.zeros(len(p.W), d.dtype).at[ids].add(1) / len(ids), G)
        a = cache.A.reshape(*cache.A.shape[:stacked], -1, cache.A.shape[-1])
        if p.b is not None:
            a = jnp.concatenate([a, jnp.ones_like(a[..., :1])], -1)
        return bpref.Kronecker(jnp.einsum("...nk,...nl->...kl", a, a) / a.shape[-2], G)

    return theirs


def diagonal_of_rows_by_autodiff(J: bpref.Layer, params: Any, x: Any) -> Callable[..., Any]:
    """The exact diagonal of linear layers of rows alone, by `jax.vjp` in what is added to their outputs."""
    network, loss = J.parts
    forward, shapes = shifted(network, params[0], x[0])
    root = loss.root
    assert root is not None

    def theirs(params, x):
        z, pull, caches = jax.vjp(lambda shift: forward(params[0], x[0], shift), zeros_of(shapes), has_aux=True)
        cache = loss.forward((), (z, x[1]))[1]

        def add(total, k):
            (dZ,) = pull(root.column(cache, k)[0])
            squares = [bpref.LinearParams((d**2).T @ c.A**2, jnp.sum(d**2, 0)) for c, d in at_leaves(caches, dZ)]
            return jax.tree.map(jnp.add, total, squares), None

        zeros = jax.tree.map(jnp.zeros_like, [p for _, p in at_leaves(caches, params[0])])
        return jax.lax.scan(add, zeros, jnp.arange(root.width(cache)))[0]

    return theirs


def diagonal(J: bpref.Layer, drawn: bool) -> Callable[..., Any]:
    """The exact diagonal of the Gauss-Newton matrix, or that of one random column."""
    return lambda params, x: bpref.gauss_newton_diagonal(J, params, x, KEY if drawn else None)


def diagonal_by_autodiff(J: bpref.Layer, drawn: bool, at_once: int) -> Callable[..., Any]:
    """The same by `jax.vjp` of the network for each example alone, `at_once` of them together, and all its columns."""
    network, loss = J.parts
    root = loss.root
    assert root is not None

    def theirs(params, x):
        X, targets = x[0], x[1] if type(x[1]) is tuple else (x[1],)
        z = network.forward(params[0], X)[0]
        cache = loss.forward((), (z, *targets))[1]
        if drawn:
            S = root.drawn(cache, jax.random.split(KEY, 1)[0])[0][:, None]
        else:
            columns = jax.vmap(lambda k: root.column(cache, k)[0])(jnp.arange(root.width(cache)))
            S = jnp.moveaxis(columns, 0, 1)

        def alone(given):
            x, S = given
            _, pull = jax.vjp(lambda p: network.forward(p, x[None])[0], params[0])
            rows = jax.vmap(lambda s: pull(s[None])[0])(S)
            return jax.tree.map(lambda g: jnp.sum(g**2, 0), rows)

        if at_once >= len(X):
            each = jax.vmap(alone)((X, S))
            return jax.tree.map(lambda g: jnp.sum(g, 0), each)
        zeros = jax.tree.map(jnp.zeros_like, params[0])
        groups = jax.tree.map(lambda v: v.reshape(-1, at_once, *v.shape[1:]), (X, S))

        def add(total, group):
            return jax.tree.map(lambda t, g: t + jnp.sum(g, 0), total, jax.vmap(alone)(group)), None

        return jax.lax.scan(add, zeros, groups)[0]

    return theirs
