"""The square root of a loss's Hessian, column by column: what a sweep starts with that carries curvature.

With z what a loss is given, of shape (N, ..., C), its Hessian is H = S S^T where J is convex in z. A loss that treats
each position by itself has a block of C x C for each, and the columns are numbered by the positions of one example and
by the classes: column (r, c) is that of class c at the position r of every example, zero elsewhere.

Of a cross-entropy with softmax, h_n being what a position counts in J and p = softmax(z):

    H_n = h_n (diag p - p p^T) = sum_c s_c s_c^T,     s_c = sqrt(h_n p_c) (e_c - p)

since sum_c p_c (e_c - p)(e_c - p)^T = diag p - 2 p p^T + p p^T. It is the mean of h_n (e_c - p)(e_c - p)^T over labels
c drawn from p: one column suffices on average, and is the gradient at such a label but for sqrt(h_n) in h_n's place.
Of squares, H_n = h_n I: the columns are sqrt(h_n) e_c, or one of them sqrt(h_n) times a standard normal draw.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.cotangents import Root
from bpref.dtypes import cast, widen


def softmax_root(seen: Callable[[PyTree], tuple[Array, Array]], constants: int = 1) -> Root:
    """Of a cross-entropy.

    Args:
      seen: `(cache) -> (z (N, ..., C), h (N, ...))`.
      constants: how many entries of x come after the logits.
    """

    def pulled(cache, choose):
        z, h = seen(cache)
        p = jax.nn.softmax(widen(z), -1)
        c, share = choose(z, p)
        own = jax.nn.one_hot(c, z.shape[-1], dtype=p.dtype)
        s = jnp.sqrt(h * share)[..., None] * (own - p)
        return cast(jnp.where((h != 0)[..., None], s, 0), z.dtype), *(None,) * constants

    def column(cache, k):
        def choose(z, p):
            r, c = k // z.shape[-1], jnp.full(z.shape[:-1], k % z.shape[-1])
            return c, jnp.where(_at(r, z), jnp.take(p, k % z.shape[-1], -1), 0)

        return pulled(cache, choose)

    def drawn(cache, key):
        def choose(z, p):
            return jax.random.categorical(key, widen(z)), jnp.ones(z.shape[:-1], p.dtype)

        return pulled(cache, choose)

    return Root(lambda cache: math.prod(seen(cache)[0].shape[1:]), column, drawn)


def square_root(seen: Callable[[PyTree], tuple[Array, Array | float]]) -> Root:
    """Of squares. `seen` is `(cache) -> (an array like z, h)`."""

    def column(cache, k):
        z, h = seen(cache)
        at = jnp.broadcast_to(jnp.arange(math.prod(z.shape[1:])).reshape(z.shape[1:]) == k, z.shape)
        return jnp.where(at, jnp.full_like(z, h**0.5), 0), None

    def drawn(cache, key):
        z, h = seen(cache)
        return cast(h**0.5 * jax.random.normal(key, z.shape, widen(z).dtype), z.dtype), None

    return Root(lambda cache: math.prod(seen(cache)[0].shape[1:]), column, drawn)


def _at(r: ArrayLike, z: Array) -> Array:
    """Which positions of z are number r of their example."""
    of_one = z.shape[1:-1]
    return jnp.broadcast_to(jnp.arange(math.prod(of_one)).reshape(of_one) == r, z.shape[:-1])
