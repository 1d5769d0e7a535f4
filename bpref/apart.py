"""Leaves whose params are taken apart: what is not trained by `stateful`, what is shared by `shared`; and sealed ones.

A leaf that is taken apart has the rest of its params to itself, and is given the others beside x. That needs fields
which can be told apart, and a gradient in the place of dparams.
"""

from collections.abc import Callable

from bpref.layer import Layer, leaves


def taken_apart(
    leaf: Layer, begin: Callable, forward: Callable, backward: Callable, again: Callable[[Layer], Layer], **own
) -> Layer:
    """The leaf by functions that take `With`; what it is in evaluation is taken apart `again`."""
    evaluating = None if leaf.evaluating is None else again(leaf.evaluating)
    own |= {"begin": begin, "evaluating": evaluating, "couples": leaf.couples}
    return Layer(lambda key, x: begin(key, x)[0], forward, backward, leaf.name, **own)


def sealed(who: str, leaf: Layer, again: Callable[[Layer], Layer], **functions) -> Layer:
    """The leaf by functions that have something else than its gradient in the place of dparams, as `who` makes them.

    What it is in evaluation is transformed `again`.
    """
    evaluating = None if leaf.evaluating is None else again(leaf.evaluating)
    why = f"is transformed by {who} already; expected map_leaves of what stateful or shared gives"
    return leaf._replace(held=None, evaluating=evaluating, sealed=why, **functions)


def sealed_by(inside: Layer) -> str:
    """Why a leaf is sealed that has another layer in it; empty where that holds nothing that is not trained."""
    held = [leaf.name for _, leaf in leaves(inside) if leaf.held is not None]
    return f"has {held[0]} in it, and no place for its state; expected serial, whose ends shared ties" if held else ""


def require_parts(who: str, layer: Layer) -> None:
    """Raise `TypeError` for a leaf of the layer that is sealed."""
    for _, leaf in leaves(layer):
        if leaf.sealed:
            raise TypeError(f"{who}: {leaf.name} {leaf.sealed}")
