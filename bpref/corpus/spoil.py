"""Ways to make a wrong derivation out of a right one: change one cotangent, or the one that comes in."""

from collections.abc import Callable

from jax import Array
from jaxtyping import PyTree

from bpref.corpus.derivation import Backward


def with_cotangent(backward: Backward, index: int, change: Callable[[Array], Array | None]) -> Backward:
    """The same derivation, but `change` is applied to the cotangent of argument `index` before it is returned."""

    def spoiled(args: tuple, dy: PyTree) -> tuple:
        cotangents = backward(args, dy)
        return (*cotangents[:index], change(cotangents[index]), *cotangents[index + 1 :])

    return spoiled


def with_swapped(backward: Backward, i: int, j: int) -> Backward:
    """The same derivation, but the cotangents of arguments `i` and `j` are returned in each other's place."""

    def spoiled(args: tuple, dy: PyTree) -> tuple:
        cotangents = list(backward(args, dy))
        cotangents[i], cotangents[j] = cotangents[j], cotangents[i]
        return tuple(cotangents)

    return spoiled


def with_incoming(backward: Backward, change: Callable[[PyTree], PyTree]) -> Backward:
    """The same derivation, but `change` is applied to `dy` first, so that every cotangent is that of another `dy`."""
    return lambda args, dy: backward(args, change(dy))


def without(backward: Backward, index: int) -> Backward:
    """The same derivation, but one cotangent is not returned at all: the tuple is one too short."""

    def spoiled(args: tuple, dy: PyTree) -> tuple:
        cotangents = backward(args, dy)
        return (*cotangents[:index], *cotangents[index + 1 :])

    return spoiled
