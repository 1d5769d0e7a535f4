"""How long a check of `bpref.check` takes beside one of `check_grads`, on the right derivations of the corpus."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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


def _arrays(d: Derivation, seed: int) -> tuple:
    return tuple(map(jnp.asarray, arguments(d, DTYPE, seed)))


def times(names: Sequence[str], pairs: int) -> Iterator[tuple[str, dict[str, Ratio]]]:
    """Ratios bpref / check_grads by temperature, and by function; of cold checks see `bench_suite`."""
    yield "warm", {name: warm(DERIVATIONS[name], pairs) for name in names}


def geometric_mean(ratios: dict[str, Ratio]) -> float:
    return float(np.exp(np.mean([np.log(r.median) for r in ratios.values()])))


def largest(ratios: dict[str, Ratio]) -> tuple[str, Ratio]:
    return max(ratios.items(), key=lambda item: item[1].median)
