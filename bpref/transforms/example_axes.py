"""example_axes: which axis of each array of a leaf's cache is that of the examples, told by what grows with x."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.checks.given import declared_of
from bpref.checks.shapes import axes_of, declared_forms
from bpref.layer import Layer, each_position
from bpref.rules.attention.multi_head_attention import MultiHeadAttentionCache
from bpref.rules.block.attention_block import AttentionBlockCache
from bpref.rules.block.mlp_block import MlpBlockCache
from bpref.rules.block.transformer_block import PostNormBlockCache, TransformerBlockCache
from bpref.rules.linear.linear import LinearCache
from bpref.transforms.stateful import StatefulCache

KEYED = -1
"""In the place of an axis: a PRNG key, of which each example is to have its own."""

BY_PLACE = (AttentionBlockCache, TransformerBlockCache, PostNormBlockCache, MultiHeadAttentionCache)
"""Caches of attention whose draws are a function of the key and of the place, see `numbered`."""


def require_examples(who: str, leaf: Layer, x: PyTree, cache: PyTree) -> None:
    """Raise `ValueError` where x is one example by itself: a (T, d) of what is `(*b, T, d)`, whose T positions meet."""
    first = jax.tree.leaves(x)[0]
    if not first.ndim or _is_one(leaf, first.ndim, cache.leaf if isinstance(cache, StatefulCache) else cache):
        raise ValueError(
            f"{who}: {leaf.name} is given x of shape {first.shape}, which is one example; expected examples in its "
            f"first axis, as in {(1, *first.shape)}"
        )


def _is_one(leaf: Layer, ndim: int, cache: PyTree) -> bool:
    """Whether the axes that x may have in front of those of one example are none."""
    if isinstance(cache, BY_PLACE):
        return cache.q.ndim == 3
    if isinstance(cache, LinearCache):
        return ndim == 1
    if leaf.decoding is each_position and ndim > 1:
        return False
    forms = [axes_of(form.dim_str) for _, form in declared_forms(declared_of(leaf.forward))]
    return bool(forms) and forms[0][0].many and ndim == len(forms[0]) - 1


def axes_of_examples(leaf: Layer, params: PyTree, x: PyTree, n: int) -> tuple[int | None, ...] | None:
    """In each array of the cache the axis that grows by one with one more example; `None` where that cannot be told."""

    def cached(more):
        longer = jax.tree.map(
            lambda v: jax.ShapeDtypeStruct((n + more, *v.shape[1:]), v.dtype) if _has_examples(v, n) else v,
            x if leaf.begin is None else x.x,
        )
        given = longer if leaf.begin is None else x._replace(x=longer)
        try:
            return jax.eval_shape(leaf.forward, params, given)[1]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{leaf.name}: x is taken to have {n} examples in its first axis, and with {n + more} it is refused; "
                "expected examples in the first axis of every array of x"
            ) from error

    cache, axes = cached(0), []
    for v, w in zip(jax.tree.leaves(cache), jax.tree.leaves(cached(1)), strict=True):
        if _is_key(v) and _draws_by_place(cache):
            axes.append(KEYED)
            continue
        grown = [k for k, (size, longer) in enumerate(zip(v.shape, w.shape, strict=True)) if size != longer]
        if len(grown) > 1 or any((v.shape[k], w.shape[k]) != (n, n + 1) for k in grown) or _is_key(v):
            return None
        axes.append(grown[0] if grown else None)
    return tuple(axes)


def _draws_by_place(cache: PyTree) -> bool:
    """Whether it is that of a batch of sequences in attention, or of an MLP, whose draws are each example's own."""
    cache = cache.leaf if isinstance(cache, StatefulCache) else cache
    return isinstance(cache, MlpBlockCache) or (isinstance(cache, BY_PLACE) and cache.q.ndim > 3)


def _has_examples(v: Array, n: int) -> bool:
    return v.shape[:1] == (n,) and not _is_key(v)


def _is_key(v: Array) -> bool:
    return jnp.issubdtype(v.dtype, jax.dtypes.prng_key) or v.dtype == jnp.uint32
