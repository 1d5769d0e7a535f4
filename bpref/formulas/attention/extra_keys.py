"""Keys behind all others that every query sees, whatever hides those: a learned one with its value, and one of zeros.

The softmax takes them like any other: the learned one is a memory of the layer itself, and that of zeros, whose logit
and value are 0, a share that goes nowhere. What hides other keys is made a mask, T x (S + n) of booleans at most, in
which the n extra ones are seen.
"""

from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from bpref.dtypes import cast, widen
from bpref.formulas.attention.attention_grid import Window, sides
from bpref.formulas.attention.heads import Heads, segments_of


class Extra(NamedTuple):
    """The learned key and value, (K D,) both, or neither; and whether there is one of zeros."""

    k: Array | None
    v: Array | None
    zeros: bool

    def number(self) -> int:
        """How many keys that are."""
        return (self.k is not None) + self.zeros


def appended(x: Heads, extra: Extra, causal: bool, window: Window | None) -> Heads:
    """x with the extra keys behind the others; nothing but its mask says what is seen."""
    n = extra.number()
    mask, bias = _seen(x, causal, window), x.bias
    if mask is not None:
        mask = jnp.concatenate([mask, jnp.ones((*mask.shape[:-1], n), bool)], -1)
    if bias is not None:
        bias = _along_keys(bias, x)
        bias = jnp.concatenate([bias, jnp.zeros((*bias.shape[:-1], n), bias.dtype)], -1)
    k, v = (_with(a, learned, extra.zeros) for a, learned in ((x.k, extra.k), (x.v, extra.v)))
    return Heads(x.q, k, v, mask, bias, key=x.key)


def pull_appended(x: Heads, extra: Extra, d: Heads) -> tuple[Heads, Extra]:
    """The cotangents of x and of what is learned, of d, that of what `appended` gives."""
    S, dbias = x.k.shape[-3], d.bias
    if x.bias is not None and dbias is not None:
        dbias = dbias[..., :S]
        dbias = cast(jnp.sum(widen(dbias), -1, keepdims=True), dbias.dtype) if x.bias.shape[-1] < S else dbias
    dk, dv = (a[..., :S, :, :] for a in (d.k, d.v))
    if extra.k is None:
        return d._replace(k=dk, v=dv, bias=dbias), extra
    learned = (_of_all(a[..., S, :, :]) for a in (d.k, d.v))
    return d._replace(k=dk, v=dv, bias=dbias), Extra(next(learned), next(learned), extra.zeros)


def _seen(x: Heads, causal: bool, window: Window | None) -> Array | None:
    """Which keys are seen, with axes of size 1 where it is the same for all but that of the keys; None: all are."""
    T, S = x.q.shape[-3], x.k.shape[-3]
    distance = np.arange(S)[None, :] - np.arange(T)[:, None]
    left, right = (S + T, S + T) if window is None else sides(window)
    near = (-left <= distance) & (distance <= (min(right, 0) if causal else right))
    found = [jnp.asarray(near).reshape(*(1,) * (x.q.ndim - 2), T, S)] if causal or window is not None else []
    found += [] if x.mask is None else [_along_keys(x.mask, x)]
    segments = segments_of(x)
    if segments is not None:
        found.append(segments[0][..., None, :, None] == segments[1][..., None, None, :])
    return reduce(jnp.logical_and, found) if found else None


def _along_keys(a: Array, x: Heads) -> Array:
    """`a` (*#b, #N, #T, #S) with one entry for each key."""
    return jnp.broadcast_to(a, (*a.shape[:-1], x.k.shape[-3]))


def _with(a: Array, learned: Array | None, zeros: bool) -> Array:
    one = (*a.shape[:-3], 1, *a.shape[-2:])
    more = [] if learned is None else [jnp.broadcast_to(learned.reshape((1,) * (a.ndim - 2) + a.shape[-2:]), one)]
    return jnp.concatenate([a, *more, *([jnp.zeros(one, a.dtype)] if zeros else [])], -3)


def _of_all(d: Array) -> Array:
    """(*b, K, D) as (K D,), summed over the batch in at least float32."""
    return cast(jnp.sum(widen(d), tuple(range(d.ndim - 2))), d.dtype).reshape(-1)
