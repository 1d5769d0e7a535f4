"""The trials of gradient checkers: the corpus' right and wrong derivations, and mutants of the right ones."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.checkers import IN_TORCH, Answer, Backward, Checker
from bpref.corpus import DERIVATIONS, Derivation, Wrong
from bpref.verify.mutating.mutants import mutants

RIGHT = ""


class Trial(NamedTuple):
    """One checker asked about one derivation at one point.

    Attributes:
      checker: its name.
      dtype: of the arguments.
      derivation: the function's name.
      case: the name of the wrong derivation or of the mutant; `RIGHT` for the right one.
      seed: of the arguments, and the key of the check.
      answer: what it says.
    """

    checker: str
    dtype: str
    derivation: str
    case: str
    seed: int
    answer: Answer

    def __str__(self) -> str:
        return f"{self.derivation}, {self.case or 'right'}, {self.dtype}, seed {self.seed}: {self.answer.said}"


def x64_for(dtype: str) -> Any:
    """float64 needs x64 switched on; all else is run as JAX comes."""
    return jax.enable_x64(dtype == "float64")


def arguments(d: Derivation, dtype: str, seed: int) -> tuple:
    return d.make_args(np.random.default_rng(seed), jnp.dtype(dtype))


def absent(dtype: str) -> dict[str, str]:
    """The functions that JAX does not have in a dtype, with the reason; no checker can be asked about them."""
    reasons = {}
    with x64_for(dtype):
        for d in DERIVATIONS.values():
            args = arguments(d, dtype, 0)
            try:
                jax.block_until_ready(d.backward(args, d.forward(*args)))
            except (NotImplementedError, ValueError) as error:
                reasons[d.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return reasons


def wrong_in(d: Derivation, wrong: Wrong, dtype: str) -> bool:
    """Whether a wrong derivation is wrong in a dtype: if its error is to return float32, in float32 it is right."""
    if wrong.kind != "dtype":
        return True
    with x64_for(dtype):
        args = arguments(d, dtype, 0)
        dy = jax.eval_shape(d.forward, *args)
        found, right = (jax.eval_shape(backward, args, dy) for backward in (wrong.backward, d.backward))
    return [v.dtype for v in jax.tree.leaves(found)] != [v.dtype for v in jax.tree.leaves(right)]


def mended_by_torch(d: Derivation, backward: Backward) -> bool:
    """Whether a wrong derivation is right once PyTorch has summed its cotangents to their shapes and cast them."""
    with x64_for("float64"):
        args = arguments(d, "float64", 0)
        dy = jax.tree.map(lambda v: np.random.default_rng(1).normal(size=v.shape), d.forward(*args))
        wrong, right = backward(args, dy), d.backward(args, dy)
    if len(wrong) != len(right) or any((w is None) != (r is None) for w, r in zip(wrong, right, strict=True)):
        return False
    return all(_agrees(_summed_to(w, r.shape), r) for w, r in zip(wrong, right, strict=True) if r is not None)


def _summed_to(v: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`v` with its leading axes, and those that are 1 in `shape`, summed; `v` itself where that does not give it."""
    v = np.asarray(v, np.float64)
    leading = v.ndim - len(shape)
    if leading < 0:
        return v
    ones = tuple(leading + i for i, n in enumerate(shape) if n == 1)
    summed = v.sum((*range(leading), *ones))
    return summed.reshape(shape) if summed.size == np.prod(shape) else v


def _agrees(v: np.ndarray, right: Any) -> bool:
    return v.shape == right.shape and np.allclose(v, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


def on_wrong(checkers: Sequence[Checker], dtype: str, seeds: Sequence[int], names: Sequence[str]) -> Iterator[Trial]:
    """Every wrong derivation of the functions named; to PyTorch, those which stay wrong there."""
    for d in map(DERIVATIONS.__getitem__, names):
        for wrong in d.wrong:
            if not wrong_in(d, wrong, dtype):
                continue
            able = [c for c in checkers if not (c in IN_TORCH and mended_by_torch(d, wrong.backward))]
            yield from _asked(able, d, wrong.backward, wrong.name, dtype, seeds)


def on_right(checkers: Sequence[Checker], dtype: str, seeds: Sequence[int], names: Sequence[str]) -> Iterator[Trial]:
    """The right derivations of the functions named."""
    for d in map(DERIVATIONS.__getitem__, names):
        yield from _asked(checkers, d, d.backward, RIGHT, dtype, seeds)


def on_mutants(checkers: Sequence[Checker], dtype: str, seeds: Sequence[int], names: Sequence[str]) -> Iterator[Trial]:
    """Every mutant of the right derivations of the functions named that is not known to compute the same."""
    for d in map(DERIVATIONS.__getitem__, names):
        with x64_for(dtype):
            args = arguments(d, dtype, 0)
            y = jax.eval_shape(d.forward, *args)
            rng = np.random.default_rng(0)
            dy = jax.tree.map(lambda v, rng=rng: rng.normal(size=v.shape).astype(v.dtype), y)
            changed = list(mutants(d.backward, args, dy))
        for mutant in changed:
            yield from _asked(checkers, d, mutant.backward, mutant.name, dtype, seeds)


def _asked(
    checkers: Sequence[Checker], d: Derivation, backward: Backward, case: str, dtype: str, seeds: Sequence[int]
) -> Iterator[Trial]:
    with x64_for(dtype):
        for checker in checkers:
            if dtype in checker.dtypes:
                ask = checker.of(d.forward, backward)
                for seed in seeds:
                    yield Trial(checker.name, dtype, d.name, case, seed, ask(arguments(d, dtype, seed), seed))
