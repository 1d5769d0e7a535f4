"""updates: what an optimiser's updates are put through: clipping, parameters that rest, accumulation, an average."""

import math
from collections.abc import Hashable
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import PyTree

from bpref.dtypes import widen
from bpref.naming import flat_names, name_of
from bpref.nearest import require_known
from bpref.train.averaging import averaging
from bpref.train.step import of_network


class Updates(NamedTuple):
    """How updates are changed, in this order.

    Attributes:
      clip: `KIND:C`, the gradient's largest: `global`, the norm of all of it (Pascanu et al., arXiv:1211.5063), `leaf`,
        that of each array, or `value`, each number.
      frozen: patterns of the names of parameters that are not trained, such as `0.*` or `*.b`.
      average: the decay of an exponential moving average of the parameters, which is what is evaluated and kept;
        it grows to this from 0.1, as (1 + t) / (10 + t) does.
      accumulate: so many batches give one update, by the mean of their gradients.
      decayed: patterns of the names that weight decay is for; None for matrices of weights.
    """

    clip: str | None = None
    frozen: tuple[str, ...] = ()
    average: float | None = None
    accumulate: int = 1
    decayed: tuple[str, ...] | None = None

    @property
    def of_the_whole(self) -> list[str]:
        """What cannot be done layer by layer, by the names of the options."""
        clips = self.clip is not None and self.clip.rpartition(":")[0] in ("", "global")
        given = {"clip": clips, "freeze": self.frozen, "average": self.average, "decay": self.decayed is not None}
        return [f"--{option}" for option, value in given.items() if value]


PLAIN = Updates()
"""As the optimiser makes them."""

CLIPS = {
    "global": optax.clip_by_global_norm,
    "leaf": lambda C: optax.stateless(lambda updates, params: jax.tree.map(lambda u: _within(C, u), updates)),
    "value": optax.clip,
}
"""By kind, what clips to a largest norm or value."""


def put_through(optimizer: optax.GradientTransformation, updates: Updates) -> optax.GradientTransformation:
    """The optimiser with all that `updates` names around it.

    Raises:
      ValueError: a kind of clipping that there is not, a number out of its range.
    """
    if updates.clip is not None:
        optimizer = optax.chain(_clipping(updates.clip), optimizer)
    if updates.frozen:
        parts: dict[Hashable, optax.GradientTransformation] = {"trained": optimizer, "frozen": optax.set_to_zero()}
        optimizer = optax.partition(parts, lambda params: _labels(params, updates.frozen))
    if updates.average is not None:
        optimizer = averaging(optimizer, updates.average)
    if updates.accumulate < 1:
        raise ValueError(f"accumulate is {updates.accumulate}, expected at least 1 batch")
    if updates.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, updates.accumulate).gradient_transformation()
    return optimizer


def named_by(patterns: tuple[str, ...], params: PyTree) -> PyTree:
    """True for the arrays whose name in the network one of the patterns fits."""

    def fits(path, _):
        return any(fnmatchcase(_of_network_name(params, name_of(path)), pattern) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(fits, params)


def require_named(patterns: tuple[str, ...], params: PyTree) -> None:
    """Raise `ValueError` for a pattern that fits no parameter of the objective's `params`."""
    names = list(flat_names(of_network(params)))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no parameter is called {pattern!r}; there is {', '.join(names)}")


def require_trained(frozen: tuple[str, ...], params: PyTree) -> None:
    """Raise `ValueError` where no parameter of the objective's `params` is left to train."""
    if frozen and all(jax.tree.leaves(named_by(frozen, params))):
        raise ValueError(f"freeze is {','.join(frozen)!r}: every parameter is frozen, and none is left to train")


def _clipping(clip: str) -> optax.GradientTransformation:
    kind, _, most = clip.rpartition(":")
    kind = kind or "global"
    require_known("kind of clipping", kind, CLIPS)
    try:
        C = float(most)
    except ValueError:
        C = math.nan
    if not (C > 0 and math.isfinite(C)):
        raise ValueError(f"clip is {clip!r}, expected a positive number, such as 1.0, leaf:1.0 or value:0.5")
    return CLIPS[kind](C)


def _within(C: float, u: Array) -> Array:
    norm = jnp.sqrt(jnp.sum(widen(u) ** 2))
    return (widen(u) * jnp.minimum(1.0, C / jnp.maximum(norm, C))).astype(u.dtype)


def _labels(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    return jax.tree.map(lambda rests: "frozen" if rests else "trained", named_by(frozen, params))


def _of_network_name(params: PyTree, name: str) -> str:
    """A name in an objective's params as it is in the network's: of a pair, what stands first falls away."""
    if type(params) is not tuple:
        return name
    first, _, rest = name.partition(".")
    return rest if first == "0" else f"loss.{rest}"
