"""The logits of a linear layer by blocks of classes: what fused losses sum over all classes, both ways.

In the symbols of `fused_linear_cross_entropy`: u = h W^T + b, z_nc = t tanh(u_nc / t) with a soft cap t and u_nc
without, of one block of classes after the other, as (classes, rows).

A row may have a softmax for each place of more axes *K: the classes' W is (V, *K, d) then, their b (V, *K), a block's
logits are (classes, *K, rows), and what is said below to be (N,), of each row, is (*K, N).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, PyTree

from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.affine import times, times_transposed, transposed_times
from bpref.loops import among_devices, block_of, for_blocks

LOWEST = -1000.0
"""What an exponent is held above: there its exponential is 0 in any dtype, and 0 times it is 0 and not NaN."""


class FeaturesAndLabels(NamedTuple):
    h: Float[Array, "*n d>0"]
    labels: Int[Array, "*n"]


class FeaturesAndTarget(NamedTuple):
    h: Float[Array, "*n d>0"]
    target: Int[Array, "*n"] | Float[Array, "*n V"]


def features_and_target(axes: tuple[int, ...]) -> type:
    """What is declared of a pair (h, target) with these axes *K."""
    if not axes:
        return FeaturesAndTarget
    K = " ".join(map(str, axes))
    target = Int[Array, f"*n {K}"] | Float[Array, f"*n {K} V"]
    return NamedTuple("FeaturesAndTarget", [("h", Float[Array, "*n d>0"]), ("target", target)])


class Classes(NamedTuple):
    """The layer of which z are the logits."""

    W: Float[Array, "V *K d"]
    b: Float[Array, " V *K"] | None


class Blocks(NamedTuple):
    """How logits are made: with which soft cap, of how many classes at once; and whether their sum is of use."""

    soft_cap: float | None
    size: int
    has_total: bool


class Sums(NamedTuple):
    """Of each row: the largest logit m, R, z_y, and, where it is of use, the sum of all logits."""

    m: Float[Array, " N"]
    R: Float[Array, " N"]
    own: Float[Array, " N"]
    total: Float[Array, " N"]


class Peaks(NamedTuple):
    """Of each row, with d = (z - m) / temperature: the largest logit m, Q = sum exp(d) - 1, sum d exp(d), and z_y."""

    m: Float[Array, " N"]
    Q: Float[Array, " N"]
    F: Float[Array, " N"]
    own: Float[Array, " N"]


class Slopes(NamedTuple):
    """Of each row, what dJ / dz is made of: rate e^(z - m) - even, and at_own - even where c = y."""

    m: Float[Array, " N"]
    rate: Float[Array, " N"]
    at_own: Float[Array, " N"]
    even: Float[Array, " N"]


def flat(h: Array, label: Array) -> tuple[Array, Array]:
    """h as A (N, d), and labels (*K, N) of a dtype that can be compared with any class."""
    return h.reshape(-1, h.shape[-1]), rows_last(widen_integers(label), label.shape[h.ndim - 1 :])


def rows_last(v: Array, axes: tuple[int, ...]) -> Array:
    """Labels, or what there is of each, (..., *K), as (*K, N)."""
    return jnp.moveaxis(v.reshape(-1, *axes), 0, -1)


def rows_first(v: Array, shape: tuple[int, ...]) -> Array:
    """The same back, as labels of that shape."""
    return jnp.moveaxis(v, -1, 0).reshape(shape)


def sums_over(
    blocks: Blocks, classes: Classes, A: Array, y: Array, keep: bool = False, w: Array | None = None
) -> tuple[Sums, Array | None]:
    """Of rows A (N, d) with labels y the sums over all classes, and the logits (V, N) where they are to be kept.

    The sum of all logits is that of w_c z_c where the classes have weights w (V,).
    """

    def add(carry, start, size):
        (m, R, own, total), kept = carry
        z = logits_of(blocks, classes, A, start, size)
        is_own = _is_own(y, start, size)
        higher = lax.stop_gradient(jnp.maximum(m, jnp.max(z, 0)))
        rest = jnp.sum(jnp.where(is_own, 0, jnp.exp(z - higher[None])), 0)
        R = R * jnp.exp(m - higher) + rest
        own += jnp.sum(jnp.where(is_own, z, 0), 0)
        total = total + jnp.sum(weighed(w, z, start), 0) if blocks.has_total else total
        return Sums(higher, R, own, total), lax.dynamic_update_slice_in_dim(kept, z, start, 0) if keep else kept

    zero = jnp.zeros(y.shape, widen(A).dtype)
    kept = jnp.zeros((len(classes.W), *y.shape), zero.dtype) if keep else None
    none = Sums(zero + jnp.finfo(zero.dtype).min, zero, zero, zero)  # no infinity: of -inf alone the difference is none
    return for_blocks(len(classes.W), blocks.size, add, (none, kept))


def peaks_over(blocks: Blocks, classes: Classes, A: Array, y: Array, temperature: float) -> Peaks:
    """Of rows A (N, d) with labels y what the largest logit leaves to the others.

    Its own 1 is never added to Q: beside it the digits of what is left over would be lost.
    """

    def add(carry, start, size):
        m, Q, F, own = carry
        z = logits_of(blocks, classes, A, start, size)
        higher = lax.stop_gradient(jnp.maximum(m, jnp.max(z, 0)))
        grows = higher > m
        is_top = (z == higher[None]) & grows[None]
        d, e = shifted(z, higher[None], temperature)
        back, scale = shifted(m, higher, temperature)
        F = scale * (F + back * (1 + Q)) + jnp.sum(d * e, 0)
        more = jnp.sum(is_top, 0, dtype=z.dtype) - 1
        # e - 1 is 0 there, but has the slope of e for whoever differentiates this
        Q = jnp.where(grows, scale * (1 + Q) + more, Q) + jnp.sum(jnp.where(is_top, e - 1, e), 0)
        return Peaks(higher, Q, F, own + jnp.sum(jnp.where(_is_own(y, start, size), z, 0), 0))

    zero = jnp.zeros(y.shape, widen(A).dtype)
    none = Peaks(zero + jnp.finfo(zero.dtype).min, zero - 1, zero, zero)
    return for_blocks(len(classes.W), blocks.size, add, none)


def shifted(z: Array, m: Array, temperature: float) -> tuple[Array, Array]:
    """d = (z - m) / temperature and exp(d)."""
    d = jnp.maximum((z - m) / temperature, LOWEST)
    return d, jnp.exp(d)


def pull_sums(
    blocks: Blocks,
    classes: Classes,
    A: Array,
    y: Array,
    slopes: Slopes,
    dclasses: Classes | None = None,
    logits: Array | None = None,
    w: Array | None = None,
) -> tuple[Array, Array | None, Array]:
    """dW, db, and dh of these rows, the last in at least float32; with kept logits, dW and db are added to.

    Where the classes have weights w (V,), `even` is multiplied by them.
    """
    m, rate, at_own, even = slopes

    def slope_of(z, start, _):
        slope = jnp.where(_is_own(y, start, len(z)), at_own[None], rate[None] * jnp.exp(z - m[None]))
        if blocks.has_total:
            slope -= weighed(w, jnp.broadcast_to(even[None], z.shape), start)
        return slope, None

    return pull_blocks(blocks, classes, A, slope_of, None, dclasses, logits)[:3]


def pull_logits(
    blocks: Blocks, classes: Classes, A: Array, y: Array, slope_of: Callable[[Array, Array], Array]
) -> tuple[Array, Array | None, Array]:
    """`pull_sums` of any slope dJ / dz that is made of a block's logits z and of [c = y], all (classes, N)."""

    def with_own(z, start, _):
        return slope_of(z, _is_own(y, start, len(z))), None

    return pull_blocks(blocks, classes, A, with_own)[:3]


def pull_blocks(
    blocks: Blocks,
    classes: Classes,
    A: Array,
    slope_of: Callable[[Array, Array | int, PyTree], tuple[Array, PyTree]],
    beside: PyTree = None,
    dclasses: Classes | None = None,
    logits: Array | None = None,
) -> tuple[Array, Array | None, Array, PyTree]:
    """dW, db and dh as `pull_sums` has them, and what `slope_of` has made of `beside`.

    `slope_of(z, start, beside)` gives the slope dJ / dz of the block of classes that begins at `start`, (classes, N),
    and what is carried on to the next block.
    """
    if dclasses is None:
        dclasses = Classes(jnp.zeros_like(classes.W), None if classes.b is None else jnp.zeros_like(classes.b))

    def add(cotangents, start, size):
        dW, db, dh, beside = cotangents
        z = logits_of(blocks, classes, A, start, size) if logits is None else block_of(logits, start, size)
        slope, beside = slope_of(z, start, beside)
        if blocks.soft_cap is not None:
            slope *= (1 - z / blocks.soft_cap) * (1 + z / blocks.soft_cap)
        dW = put(dW, times(slope, widen(A)), start)
        db = None if db is None else put(db, jnp.sum(slope, -1), start)
        return dW, db, dh + transposed_times(slope, widen(block_of(classes.W, start, size))), beside

    def put(d, of_block, start):
        if logits is not None or among_devices():
            of_block += block_of(d, start, of_block.shape[0])
        return lax.dynamic_update_slice_in_dim(d, cast(of_block, d.dtype), start, 0)

    return for_blocks(len(classes.W), blocks.size, add, (*dclasses, jnp.zeros_like(widen(A)), beside))


def weighed(w: Array | None, values: Array, start: Array | int) -> Array:
    """w_c times values (classes, N) of a block of classes."""
    if w is None:
        return values
    return values * lax.broadcast_in_dim(block_of(w, start, len(values)), values.shape, (0,))


def logits_of(blocks: Blocks, classes: Classes, A: Array, start: Array | int, size: int) -> Array:
    """z of a block of classes: (size, N), or (size, *K, N)."""
    z = times_transposed(block_of(classes.W, start, size), A)
    if classes.b is not None:
        z += lax.broadcast_in_dim(widen(block_of(classes.b, start, size)), z.shape, range(z.ndim - 1))
    return z if blocks.soft_cap is None else blocks.soft_cap * jnp.tanh(z / blocks.soft_cap)


def _is_own(y: Array, start: Array | int, size: int) -> Array:
    """[c = y] for the classes of a block, of its logits' shape."""
    return lax.broadcasted_iota(y.dtype, (size, *y.shape), 0) == (y - cast(jnp.asarray(start), y.dtype))[None]
