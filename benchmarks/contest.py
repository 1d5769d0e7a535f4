"""One row of a benchmark: a computation by hand, what it competes with, and the bounds it is to reach."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.paired import Ratio, beside_each, repetitions
from bpref.layer import Layer


class Contest(NamedTuple):
    """Callables that take `*arguments`, can be compiled, and give the same value and gradients.

    Attributes:
      name: what is computed, and at which sizes.
      hand: bpref's forward and backward.
      own: bpref's forward, and autodiff of it.
      rivals: others' ways of doing it, by name; the first is the plain form under `jax.value_and_grad`.
      arguments: what all of them are called with.
      memory_bound, time_bound: the greatest ratio by hand / by the first of `rivals` that is good enough, or `None`.
    """

    name: str
    hand: Callable[..., Any]
    own: Callable[..., Any]
    rivals: Mapping[str, Callable[..., Any]]
    arguments: tuple[Any, ...]
    memory_bound: float | None = None
    time_bound: float | None = None


OWN = "autodiff of its own forward"
"""The rival that comes first in every contest."""


class Outcome(NamedTuple):
    """What was seen of one rival: temp bytes by hand and by it, the ratio of times, and the bounds on both."""

    contest: str
    rival: str
    temp: tuple[int, int]
    time: Ratio
    memory_bound: float | None
    time_bound: float | None

    @property
    def memory(self) -> float:
        """The temp memory, hand / rival."""
        return self.temp[0] / max(self.temp[1], 1)

    def __str__(self) -> str:
        """A row of a table."""
        memory = f"{self.memory:.3g} of {self.temp[1] / 1e6:.1f} MB{_against(self.memory, self.memory_bound)}"
        time = f"{self.time} of {1e3 * self.time.other_seconds:.0f} ms{_against(self.time.median, self.time_bound)}"
        return f"| {self.contest} | {self.rival} | {memory} | {time} |"


def _against(seen: float, bound: float | None) -> str:
    return "" if bound is None else f", {'within' if seen <= bound else '**above**'} {bound}"


class Program(NamedTuple):
    """A compiled computation: what it allocates beside inputs and outputs, and a call of it that waits."""

    temp: int
    run: Callable[[], Any]


def compiled(f: Callable[..., Any], arguments: tuple[Any, ...]) -> Program:
    program = jax.jit(f).lower(*arguments).compile()
    memory = program.memory_analysis()
    return Program(memory.temp_size_in_bytes if memory else 0, lambda: jax.block_until_ready(program(*arguments)))


def outcomes(contest: Contest, seconds: float) -> list[Outcome]:
    """Hand beside all rivals in turn, in this process; the bounds are on the first that is not autodiff of its own."""
    names = [OWN, *contest.rivals]
    hand, *others = (compiled(f, contest.arguments) for f in (contest.hand, contest.own, *contest.rivals.values()))
    rounds = min(repetitions(other.run, seconds) for other in (hand, *others))
    times = beside_each([hand.run, *(other.run for other in others)], rounds)
    bounds = dict.fromkeys(names, (None, None)) | {names[1]: (contest.memory_bound, contest.time_bound)}
    return [
        Outcome(contest.name, name, (hand.temp, other.temp), time, *bounds[name])
        for name, other, time in zip(names, others, times, strict=True)
    ]


def by_hand(layer: Layer) -> Callable[..., Any]:
    """`(params, x, w)` to the value and the gradients of sum(y w), as a layer computes them."""

    def run(params, x, w):
        y, cache = layer.forward(params, x)
        return inner(y, w), layer.backward(params, cache, w)

    return run


def gradients(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same of y = f(params, x), by autodiff."""
    return jax.value_and_grad(lambda params, x, w: inner(f(params, x), w), argnums=(0, 1))


def gradients_of_own(layer: Layer) -> Callable[..., Any]:
    """The same of a layer's own forward."""
    return gradients(lambda params, x: layer.forward(params, x)[0])


def inner(y: Any, w: Any) -> jax.Array:
    """The sum of products of all elements of two trees."""
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, y, w))
