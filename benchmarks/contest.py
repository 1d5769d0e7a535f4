"""One row of a benchmark: a computation by hand, what it competes with, and the bounds it is to reach."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Contest(NamedTuple):
    """Callables that take `*arguments`, can be compiled, and give the same value and gradients.

    Attributes:
      name: what is computed, and at which sizes.
      hand: bpref's forward and backward.
      rivals: others' ways of doing it, by name; the first is the naive form under `jax.value_and_grad`.
      arguments: what all of them are called with.
      memory_bound, time_bound: the greatest ratio hand / first rival that is good enough; `None` where none is set.
    """

    name: str
    hand: Callable[..., Any]
    rivals: Mapping[str, Callable[..., Any]]
    arguments: tuple[Any, ...]
    memory_bound: float | None = None
    time_bound: float | None = None
