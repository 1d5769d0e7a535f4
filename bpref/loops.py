"""JAX's loops and branches, for carries and results that are constants at first, or here and there.

Under `jax.shard_map` a value's type says along which axes of the mesh devices hold different ones of it. What a loop
carries has one type for all its turns; zeros are alike everywhere, what is added to them is not. So the start is made
to vary along what the carry varies along after a turn, and either branch's result along what the other's does.
Elsewhere these are JAX's as they are. And what is repeated until nothing changes: a loop of as many turns as there may
be, of which those that are left are skipped, so that it can be differentiated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.dtypes import widen


def scan(
    step: Callable[..., PyTree],
    start: PyTree,
    xs: PyTree = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int = 1,
) -> PyTree:
    """`jax.lax.scan`."""

    def turn(carry):
        return step(carry, jax.tree.map(_one, xs))[0]

    return lax.scan(step, _varying(turn, start), xs, length, reverse, unroll)


def _one(v: Array) -> Array:
    """An entry along the first axis, or its like where there is none."""
    return v[0] if len(v) else made_to_vary(jnp.zeros(v.shape[1:], v.dtype), varies_along(v))


def while_loop(goes_on: Callable[[PyTree], PyTree], step: Callable[[PyTree], PyTree], start: PyTree) -> PyTree:
    """`jax.lax.while_loop`."""
    return lax.while_loop(goes_on, step, _varying(step, start))


def fori_loop(lower: Array | int, upper: Array | int, step: Callable[..., PyTree], start: PyTree) -> PyTree:
    """`jax.lax.fori_loop`."""
    return lax.fori_loop(lower, upper, step, _varying(lambda carry: step(lower, carry), start))


def for_blocks(count: int, size: int, add: Callable[..., PyTree], carry: PyTree) -> PyTree:
    """`carry = add(carry, start, size)` for one block of `size` after the other, and for what is left of `count`."""
    whole, rest = divmod(count, size)
    if whole:
        carry = fori_loop(0, whole, lambda k, carry: add(carry, k * size, size), carry)
    return add(carry, whole * size, rest) if rest else carry


def block_of(v: Array, start: Array | int, size: int, axis: int = 0) -> Array:
    return lax.dynamic_slice_in_dim(v, start, size, axis)


def among_devices() -> bool:
    """Whether a mesh divides the work: XLA takes the sum over devices of what a loop adds up once, after the loop; of
    what a loop puts into an array, in every turn."""
    return bool(jax.sharding.get_abstract_mesh().auto_axes)


def cond(
    which: Array | bool, if_true: Callable[..., PyTree], if_false: Callable[..., PyTree], *operands: PyTree
) -> PyTree:
    """`jax.lax.cond`."""
    if jax.sharding.get_abstract_mesh().manual_axes:
        one, other = (jax.make_jaxpr(branch)(*operands).out_avals for branch in (if_true, if_false))
        axes = [a.mat.varying | b.mat.varying for a, b in zip(one, other, strict=True)]
        if_true, if_false = (_to_vary_along(axes, branch) for branch in (if_true, if_false))
    return lax.cond(which, if_true, if_false, *operands)


def _to_vary_along(axes: list[frozenset[str]], branch: Callable[..., PyTree]) -> Callable[..., PyTree]:
    def varied(*operands):
        leaves, tree = jax.tree.flatten(branch(*operands))
        return jax.tree.unflatten(tree, map(made_to_vary, leaves, axes))

    return varied


def settled(step: Callable[[PyTree], PyTree], start: PyTree, steps: int, tolerance: float | None) -> PyTree:
    """The first of step(start), step(step(start)), ... that its step does not change, or the last of `steps`."""

    def move(carry):
        after = step(carry[0])
        pairs = zip(jax.tree.leaves(after), jax.tree.leaves(carry[0]), strict=True)
        changes = [_changes(new, old, tolerance) for new, old in pairs]
        return after, jnp.any(jnp.stack(changes)) if changes else jnp.zeros((), bool)

    def turn(carry, _):
        return cond(carry[1], move, lambda carry: carry, carry), None

    return scan(turn, (start, jnp.ones((), bool)), length=steps)[0][0]


def _changes(after: Array, before: Array, tolerance: float | None) -> Array:
    """Whether an element has changed by more than `tolerance` times the largest; never where one is NaN."""
    allowed = 4 * float(jnp.finfo(after.dtype).eps) if tolerance is None else tolerance
    after, before = widen(after), widen(before)
    largest = jnp.max(jnp.abs(after), initial=0)
    return jnp.max(jnp.abs(after - before), initial=0) > allowed * largest


def varies_along(v: Array) -> frozenset[str]:
    """The axes of `shard_map` along which devices hold different values of v; none outside of it."""
    return jax.typeof(v).mat.varying


def made_to_vary(v: Array, axes: frozenset[str]) -> Array:
    """v, of a type that says that devices along these axes too may hold other ones."""
    more = tuple(axes - varies_along(v))
    return lax.pcast(v, more, to="varying") if more else v


def _varying(turn: Callable[[PyTree], PyTree], start: PyTree) -> PyTree:
    """The start of a carry, made to vary along what the carry varies along after any number of turns."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return start
    leaves, tree = jax.tree.flatten(start)
    while True:
        after = jax.make_jaxpr(turn)(jax.tree.unflatten(tree, leaves)).out_avals
        grown = [made_to_vary(v, a.mat.varying) for v, a in zip(leaves, after, strict=True)]
        if all(varies_along(g) == varies_along(v) for g, v in zip(grown, leaves, strict=True)):
            return jax.tree.unflatten(tree, leaves)
        leaves = grown
