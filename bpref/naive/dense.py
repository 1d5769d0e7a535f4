"""Products with a matrix, and norms, of the rows of an array; systems of equations."""

import jax
import jax.numpy as jnp
from jax import Array


def naive_affine(W: Array, b: Array | None, x: Array) -> Array:
    """W x + b for each row x."""
    Z = jnp.einsum("...j,kj->...k", x, W)
    return Z if b is None else Z + jnp.broadcast_to(b, Z.shape)


def naive_logits(W: Array, b: Array | None, x: Array, soft_cap: float | None = None) -> Array:
    """The same, held below the soft cap where there is one; of W (V, *K, d) and b (V, *K) for each place of *K."""
    V, *K, d = W.shape
    z = naive_affine(W.reshape(-1, d), None if b is None else b.reshape(-1), x)
    z = jnp.moveaxis(z.reshape(*x.shape[:-1], V, *K), x.ndim - 1, -1)
    return z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)


def naive_norm(
    x: Array, scale: Array | None, shift: Array | None, eps: float, norm: str = "rms", zero_centred: bool = False
) -> Array:
    """The RMS or layer norm of each row, times the scale, or 1 + it, plus the shift, where there are these."""
    centred = x - jnp.mean(x, -1, keepdims=True) if norm == "layer" else x
    hat = centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)
    return naive_scaled(hat, scale, shift, zero_centred)


def naive_scaled(x: Array, scale: Array | None, shift: Array | None, zero_centred: bool = False) -> Array:
    """x times the scale, or 1 + it, plus the shift, where there are these."""
    if scale is not None:
        x = x * jnp.broadcast_to(1 + scale if zero_centred else scale, x.shape)
    return x if shift is None else x + jnp.broadcast_to(shift, x.shape)


def naive_group_norm(x: Array, groups: int, eps: float) -> Array:
    """Each example's groups of channels, which are the last axis, less their mean, over their deviation."""

    def normalized(group):
        return (group - jnp.mean(group)) / jnp.sqrt(jnp.var(group) + eps)

    return jnp.concatenate([jax.vmap(normalized)(group) for group in jnp.split(x, groups, -1)], -1)


def naive_solve(A: Array, B: Array) -> Array:
    """The X with A X = B, of B (*b, n, k) or (*b, n)."""
    return jnp.linalg.solve(A, B[..., None])[..., 0] if B.ndim < A.ndim else jnp.linalg.solve(A, B)
