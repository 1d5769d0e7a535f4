"""The cross-entropy of logits with labels or distributions, smoothed and weighted, of sums over all classes by blocks.

In the symbols of `fused_linear_cross_entropy`: of each row the term sum_c q_nc (l_n - z_nc) + v_n a l_n^2, with
q_nc = w_c ((1 - s) T_nc + s / V), and its slope (Q_n + 2 v_n a l_n) p_nc - q_nc in z_nc, w_c (1 - s) (l_n - z_nc) in
T_nc. Of a label y_n, T_nc = [c = y_n] and v_n = w_y; of a distribution v_n = 1. g is the cotangent of the terms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.loss.class_blocks import (
    Blocks,
    Classes,
    Slopes,
    Sums,
    logits_of,
    pull_blocks,
    rows_first,
    rows_last,
    weighed,
)
from bpref.formulas.loss.counted_labels import Counting
from bpref.formulas.loss.labels import nats
from bpref.loops import for_blocks


class SoftSums(NamedTuple):
    """Of each row: the largest logit m, S = sum exp(z - m), Q = sum q, and F = sum q (m - z)."""

    m: Float[Array, " N"]
    S: Float[Array, " N"]
    Q: Float[Array, " N"]
    F: Float[Array, " N"]


class ClassTargets(NamedTuple):
    """The hyperparameters: V, s, a, and what says w and v."""

    vocabulary: int
    smoothing: float
    z_loss: float
    counting: Counting

    def w(self, like: Array) -> Array | None:
        """(V,), in at least float32."""
        w = self.counting.w
        return None if w is None else jnp.asarray(w, wide_dtype(like.dtype))

    def counts(self, y: Array, A: Array) -> tuple[Array, Array | None]:
        """v, NaN for a label that is no class; and the sum of v, None where that is the number of rows."""
        v, M = self.counting.positions(y, jax.ShapeDtypeStruct((*y.shape, self.vocabulary), A.dtype))
        return v[..., 0], M

    def terms(self, sums: Sums, y: Array, v: Array) -> Array:
        """Of rows with labels y."""
        m, R, own, total = sums
        l = m + jnp.log(_exponentials(sums)[1])
        terms = (1 - self.smoothing) * v * nats(R, own - m)
        if self.smoothing:
            terms += self.smoothing * (self._mean_w(m) * l - total / self.vocabulary)
        if self.z_loss:
            terms += self.z_loss * v * l**2
        return self._unless_ignored(y, jnp.where(jnp.isnan(v), v, terms))

    def slopes(self, sums: Sums, y: Array, v: Array, g: Array) -> Slopes:
        """Of rows with labels y."""
        E, S = _exponentials(sums)
        g, m = self._unless_ignored(y, g), sums.m
        pull, even = 2 * self.z_loss * v * (m + jnp.log(S)), self.smoothing * self._mean_w(m)
        rate = g * (((1 - self.smoothing) * v + even + pull) / S)
        at_own = g * (((pull + even) * E - (1 - self.smoothing) * v * sums.R) / S)
        return Slopes(m, rate, at_own, g * (self.smoothing / self.vocabulary))

    def soft_terms(
        self, blocks: Blocks, classes: Classes, h: Array, target: Array
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """Of rows h (..., d) with distributions (..., *K, V); and m, S and Q of them, all (..., *K)."""
        A, T = _flat(h, target)

        def add(carry, start, size):
            m, S, Q, F = carry
            z, q = logits_of(blocks, classes, A, start, size), self._q(T, start, size)
            higher = lax.stop_gradient(jnp.maximum(m, jnp.max(z, 0)))
            S = S * jnp.exp(m - higher) + jnp.sum(jnp.exp(z - higher[None]), 0)
            below = jnp.where((q == 0) & jnp.isinf(z), 0, higher[None] - z)
            return SoftSums(higher, S, Q + jnp.sum(q, 0), F + Q * (higher - m) + jnp.sum(q * below, 0))

        zero = jnp.zeros((*T.shape[1:-1], len(A)), widen(A).dtype)
        none = SoftSums(zero + jnp.finfo(zero.dtype).min, zero, zero, zero)
        sums = for_blocks(self.vocabulary, blocks.size, add, none)
        log_S = jnp.log(sums.S)
        terms = sums.Q * log_S + sums.F
        if self.z_loss:
            terms += self.z_loss * (sums.m + log_S) ** 2
        terms, m, S, Q = (rows_first(v, target.shape[:-1]) for v in (terms, *sums[:3]))
        return terms, (m, S, Q)

    def pull_soft(
        self, blocks: Blocks, classes: Classes, g: Array, h: Array, target: Array, m: Array, S: Array, Q: Array
    ) -> tuple[Array, Array | None, Array, Array]:
        """dW, db, dh and the target's cotangent."""
        A, T = _flat(h, target)
        m, S, Q, g = (rows_last(v, T.shape[1:-1]) for v in (m, S, Q, g))
        log_S = jnp.log(S)
        rate = g * ((Q + 2 * self.z_loss * (m + log_S)) / S)

        def slope_of(z, start, dT):
            d = z - m[None]
            of_T = weighed(self.w(T), ((1 - self.smoothing) * g)[None] * (log_S[None] - d), start)
            dT = lax.dynamic_update_slice_in_dim(dT, cast(of_T.swapaxes(0, -1), dT.dtype), start, -1)
            return rate[None] * jnp.exp(d) - g[None] * self._q(T, start, len(z)), dT

        dW, db, dh, dT = pull_blocks(blocks, classes, A, slope_of, jnp.zeros_like(T))
        return dW, db, cast(dh, h.dtype).reshape(h.shape), dT.reshape(target.shape)

    def _q(self, T: Array, start: Array | int, size: int) -> Array:
        """Of a block of classes, of its logits' shape."""
        of_block = widen(lax.dynamic_slice_in_dim(T, start, size, -1)).swapaxes(0, -1)
        return weighed(self.w(T), (1 - self.smoothing) * of_block + self.smoothing / self.vocabulary, start)

    def _mean_w(self, like: Array) -> Array | float:
        w = self.w(like)
        return 1.0 if w is None else jnp.mean(w)

    def _unless_ignored(self, y: Array, values: Array) -> Array:
        return self.counting.unless_ignored(y, values[..., None])[..., 0]


def _flat(h: Array, target: Array) -> tuple[Array, Array]:
    """A (N, d) and T (N, *K, V)."""
    return h.reshape(-1, h.shape[-1]), target.reshape(-1, *target.shape[h.ndim - 1 :])


def _exponentials(sums: Sums) -> tuple[Array, Array]:
    """E = exp(z_y - m) and S = R + E."""
    E = jnp.exp(sums.own - sums.m)
    return E, sums.R + E
