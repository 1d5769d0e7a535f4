"""split: the two halves of a backward apart, dx now and dparams later.

The seed's two equations need each other's results nowhere:

    dA[l-1] = dZ[l] W[l]            what the layer below waits for
    dW[l]   = dZ[l]^T A[l-1]        what nobody waits for until the step

So a sweep can go down the network by the first alone, keep dZ[l] and the cache at every leaf, and let the second fill
the times at which a pipeline of devices would wait ("zero bubble", Qi et al., arXiv:2401.10241: B and W).

Each half is the leaf's own backward, of which the other half's result is not used: under jit XLA removes what only that
needed. What is shared has its cotangents in the second half too, from all of its places, added up.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.apart import sealed
from bpref.compose.parts import added, pull
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, described, widen
from bpref.layer import Layer, With, require_layer


@jax.tree_util.register_dataclass
@dataclass
class Later:
    """What a leaf's dparams will be made of.

    Attributes:
      cache: the leaf's.
      dy: the cotangent of its output.
      leaf: the leaf.
      ranks: of the arrays of cache and dy as the leaf has them; `scan` puts an axis in front.
    """

    cache: PyTree
    dy: PyTree
    leaf: Layer = field(metadata={"static": True})
    ranks: tuple[int, ...] = field(metadata={"static": True})

    @property
    def depth(self) -> int:
        """How many axes of turns are in front."""
        extra = [v.ndim - rank for v, rank in zip(jax.tree.leaves((self.cache, self.dy)), self.ranks, strict=True)]
        return extra[0] if extra else 0


def split_backward(leaf: Layer) -> Layer:
    """A leaf transformation, for `map_leaves`: the backward gives dx, and in the place of dparams what they need.

    `backward_params` makes dparams of that. Compile the two apart.

    Example:
      >>> network = bpref.serial(bpref.linear(8), bpref.tanh(), bpref.linear(3))
      >>> params = network.init(jax.random.key(0), X)
      >>> now = bpref.map_leaves(bpref.split_backward, network)
      >>> y, later, dx = bpref.backpropagate(now, params, X, dy)
      >>> dparams = bpref.backward_params(params, later)

    Raises:
      TypeError: `leaf` is no Layer.
    """
    require_layer("split_backward", "leaf", leaf)

    def backward(params, cache, dy):
        value, data = dy if leaf.begin is not None else (dy, None)
        dparams, dx, of_data = pull(data, leaf, params, cache, value)
        if jax.tree.leaves((dparams, of_data)):
            arrays = jax.tree.leaves((cache, value))
            dparams = Later(cache, value, leaf, tuple(v.ndim for v in arrays))
        return dparams, dx if leaf.begin is None else With(dx, None, None)

    return sealed("split_backward", leaf, split_backward, backward=backward)


def backward_params(params: PyTree, later: PyTree) -> PyTree:
    """dparams, of what the dx half of the backward has left.

    Args:
      params: those of the forward.
      later: in the place of dparams, by the backward of a network whose leaves are `split_backward`.

    Example:
      >>> split = bpref.map_leaves(bpref.split_backward, bpref.linear(3))
      >>> p = split.init(jax.random.key(0), X)
      >>> _, later, dX = bpref.backpropagate(split, p, X, dy)
      >>> bpref.backward_params(p, later).W.shape
      (3, 2)

    Raises:
      TypeError: `later` has another tree than that backward gives for params.
      ValueError: two compositions share arrays by the same name, or one inside of `scan` does.
    """
    each, tree = jax.tree.flatten(later, is_leaf=_is_leaf)
    try:
        params_of_each = tree.flatten_up_to(params)
    except ValueError as error:
        raise TypeError(
            f"backward_params: later is {described(later)} of another tree than params; expected what the backward of "
            "a network whose leaves are split_backward gives for these params"
        ) from error
    pairs = list(zip(each, params_of_each, strict=True))
    owners = [(kept, own) for kept, own in pairs if _is_owner(kept, own)]
    names = [name for _, own in owners for name in own]
    if len(set(names)) < len(names) or any(kept.depth for kept, _ in owners):
        raise ValueError(
            f"backward_params: what is shared is ({', '.join(names)}); expected each name once, and shared around "
            "scan, not inside of it"
        )
    values = {name: v for _, own in owners for name, v in own.items()}
    totals: dict[str, PyTree] = {}

    def made(kept, own):
        dparams, of_data = _dparams(kept, own, values)
        for name, d in (of_data or {}).items():
            totals[name] = added(totals.get(name), d)
        return dparams

    dparams = [kept if kept is None or _is_owner(kept, own) else made(kept, own) for kept, own in pairs]
    for i, (kept, own) in enumerate(pairs):
        if _is_owner(kept, own):
            dparams[i] = with_zeros({name: totals.get(name) for name in own}, own)
    return jax.tree.unflatten(tree, dparams)


def _dparams(kept: Later, params: PyTree, values: dict[str, Array]) -> tuple[PyTree, PyTree]:
    """dparams of a leaf, stacked as its params are, and the sum over its turns of those of what is shared."""

    def sweep(params, cache, dy):
        dparams, _, of_data = pull(values, kept.leaf, params, cache, dy)
        return dparams, of_data

    for _ in range(kept.depth):
        sweep = jax.vmap(sweep)
    dparams, of_data = sweep(params, kept.cache, kept.dy)
    turns = tuple(range(kept.depth))
    return dparams, jax.tree.map(lambda d: cast(jnp.sum(widen(d), turns), d.dtype) if turns else d, of_data)


def _is_leaf(v: object) -> bool:
    return v is None or isinstance(v, Later)


def _is_owner(kept: Later | None, params: PyTree) -> bool:
    """Whether a leaf is that of arrays that are shared: it puts out its params, a dict by their names."""
    return isinstance(params, dict) and isinstance(kept, Later) and not jax.tree.leaves(kept.cache)
