"""How long a check of `bpref.check` takes beside one of `check_grads`, on the right derivations of the corpus."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.checker_trials import arguments
from benchmarks.checkers import by_bpref, by_check_grads
from benchmarks.paired import Ratio, paired
from bpref.corpus import DERIVATIONS, Derivation

DTYPE = "float32"


def warm(d: Derivation, pairs: int) -> Ratio:
    """Checks of the same function with the same shapes as before; every one with other values."""
    hand, other = (of(d.forward, d.backward) for of in (by_bpref, by_check_grads))
    points = [_arrays(d, seed) for seed in range(4)]
    ours, theirs = (itertools.cycle(enumerate(points)) for _ in range(2))

    def next_of(ask: Callable[..., Any], it: Any) -> Callable[[], object]:
        def run():
            seed, args = next(it)
            return ask(args, seed)

        return run

    return paired(next_of(hand, ours), next_of(other, theirs), pairs, warm=2)


def cold(d: Derivation, pairs: int) -> Ratio:
    """First checks of functions never seen before, by a JAX that has compiled nothing yet."""
    args = _arrays(d, 0)
    times = np.empty((pairs, 2))
    for i in range(pairs):
        for which in (0, 1) if i % 2 else (1, 0):
            ask = (by_bpref, by_check_grads)[which](_afresh(d.forward), _afresh(d.backward))
            jax.clear_caches()
            start = time.perf_counter()
            ask(args, i)
            times[i, which] = time.perf_counter() - start
    low, median, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
    return Ratio(float(median), float(low), float(high), *map(float, np.median(times, axis=0)))


def _arrays(d: Derivation, seed: int) -> tuple:
    return tuple(map(jnp.asarray, arguments(d, DTYPE, seed)))


def _afresh(f: Callable[..., Any]) -> Callable[..., Any]:
    """A new function that is the same, with its parameters' names."""
    return functools.update_wrapper(lambda *args: f(*args), f)


def times(names: Sequence[str], pairs_cold: int, pairs_warm: int) -> Iterator[tuple[str, dict[str, Ratio]]]:
    """Ratios bpref / check_grads by temperature, and by function."""
    of = [DERIVATIONS[name] for name in names]
    cold(of[0], 1)  # what a process does but once is neither's cost
    yield "cold", {d.name: cold(d, pairs_cold) for d in of}
    yield "warm", {d.name: warm(d, pairs_warm) for d in of}


def geometric_mean(ratios: dict[str, Ratio]) -> float:
    return float(np.exp(np.mean([np.log(r.median) for r in ratios.values()])))


def largest(ratios: dict[str, Ratio]) -> tuple[str, Ratio]:
    return max(ratios.items(), key=lambda item: item[1].median)
