"""The program of an examination: a subject's forward and its backward, beside the oracle's.

Everything a law compares is computed in one program, the hand's and the oracle's side by side: what both compute is
computed once.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.stages import Traced
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import Typed
from bpref.verify.examining.subject import Entry, Misfit, Subject
from bpref.verify.naming import describe, leaf_names
from bpref.verify.oracle import Arrays, Leaf, Values, is_differentiable, with_cotangents
from bpref.verify.programs.running import in_float64, when_run

COTANGENTS = 2
"""How many random cotangents of the output each point is tried with."""

POINTS = 3
"""How many points a derivation is tried at; the first has the values that were given."""

SCALES = (1.0, 2.0**20, 2.0**-20)
"""What the cotangents are multiplied by at each point, so that a clip is met wherever it is set."""


class Seen(NamedTuple):
    """The values of one run, by name. Outputs are as they are; cotangents have a leading axis, one entry per dy.

    Attributes:
      y, y_oracle: the output, by hand and by the oracle.
      hand, oracle: the cotangents, derived by hand and by autodiff.
      combined: the hand's cotangents of 2 dys[0] - 3 dys[1], for the law of linearity.
      zero: the hand's cotangents of 0.
      alone: the hand's cotangents of dys[0], where the others come from under `vmap`.
    """

    y: dict[str, np.ndarray]
    y_oracle: dict[str, np.ndarray]
    hand: dict[str, np.ndarray]
    oracle: dict[str, np.ndarray]
    combined: dict[str, np.ndarray]
    zero: dict[str, np.ndarray]
    alone: dict[str, np.ndarray]


class Program(NamedTuple):
    """A subject traced for inputs of certain shapes and dtypes, and ready to run.

    Attributes:
      run: `(leaves, dys) -> Seen`, of NumPy arrays.
      rounded: the same in float64 with every operation rounded at random.
      oracle: what the oracle gives alone, in as few operations; the hand's is empty.
      names: the name of each leaf.
      traced: the program as JAX traced it, the subject's jaxpr and the oracle's in one.
      misfits: what is wrong with the form of a cotangent, by name.
      absent: the names of the differentiable arguments for which the backward returned `None`.
      unbatched: why `vmap` could not be used, or empty.
    """

    run: Callable[[Arrays, Arrays], Seen]
    rounded: Callable[[Arrays, Arrays], Seen]
    oracle: Callable[[Arrays, Arrays], Seen]
    names: tuple[str, ...]
    traced: Traced
    misfits: dict[str, str]
    absent: set[str]
    unbatched: str

    def gradients(self, leaves: Arrays, dys: Arrays) -> dict[str, np.ndarray]:
        """The oracle's cotangents alone."""
        return self.oracle(leaves, dys).oracle


def output_name(names: tuple[str, ...]) -> str:
    """`y`, or `output` for a function that has an argument of that name."""
    return "output" if any(n.split(".")[0].split("[")[0] == "y" for n in names) else "y"


def output_shapes(subject: Subject, leaves: Sequence[Leaf]) -> PyTree:
    """The tree of the output's shapes and dtypes; nothing is computed."""
    return jax.eval_shape(subject.plain, leaves)


def unchanged(f: Callable) -> Callable:
    return f


def trace_program(
    subject: Subject,
    leaves: Sequence[Typed],
    dys: Sequence[Typed],
    adapt: Callable[[Callable], Callable] = unchanged,
    derivation: bool = True,
) -> Program:
    """Trace the examination of `subject` for inputs like these; `dys` are stacks of `COTANGENTS`.

    Args:
      subject, leaves, dys: what is examined, and the shapes and dtypes of its inputs.
      adapt: applied to the whole before it is traced: `lift`, to evaluate it in float64 whatever it casts down to.
      derivation: whether it is examined in float64, with the cotangents that the laws need. It is not compiled then,
        where it is small. False for a program in the dtypes that it is used in, compiled when it is first run, as
        XLA's rounding is what is looked at.
    """
    misfits: dict[str, str] = {}
    absent: set[str] = set()
    unbatched = ""
    output = output_name(subject.names)

    def by_hand(pull, y, dy):
        return _fitting(subject, leaves, pull(completed(dy, y)), misfits, absent)

    def examined(leaves, dys):
        nonlocal unbatched
        y, pull = subject.sweep(leaves)
        y_oracle, cotangents = with_cotangents(subject.primal, leaves)
        more = [jnp.stack([*v, 2 * v[0] - 3 * v[1], jnp.zeros_like(v[0])]) for v in dys] if derivation else dys

        def by_oracle(dy):
            cotangent = cotangents(completed(dy, y_oracle))[0]
            return {name: c for name, c in zip(subject.names, cotangent, strict=True) if c is not None}

        alone = by_hand(pull, y, [v[0] for v in dys]) if derivation else {}
        try:
            together = jax.vmap(lambda dy: by_hand(pull, y, dy))(more)
        except NotImplementedError as error:
            unbatched = str(error).splitlines()[0]
            together = _one_by_one(lambda dy: by_hand(pull, y, dy), more)
        stacked = _one_by_one(by_oracle, dys) if unbatched else jax.vmap(by_oracle)(dys)
        return _outputs(output, y), _outputs(output, y_oracle), together, stacked, alone

    traced = jax.jit(adapt(examined)).trace(leaves, dys)
    plain, rounded, by_the_oracle = (in_float64 if derivation else when_run)(traced, _of_the_oracle)

    def seen_by(run):
        def seen(leaves, dys):
            y, y_oracle, together, oracle, alone = run(leaves, dys)
            drawn = {name: v[:COTANGENTS] for name, v in together.items()}
            combined, zero = (
                {name: v[i] for name, v in together.items() if derivation} for i in (COTANGENTS, COTANGENTS + 1)
            )
            return Seen(y, y_oracle, drawn, oracle, combined, zero, alone)

        return seen

    def seen_of_the_oracle(leaves, dys):
        y_oracle, oracle = by_the_oracle(leaves, dys)
        return Seen({}, y_oracle, {}, oracle, {}, {}, {})

    return Program(
        seen_by(plain), seen_by(rounded), seen_of_the_oracle, subject.names, traced, misfits, absent, unbatched
    )


def _of_the_oracle(outputs: tuple) -> tuple:
    """`y_oracle` and its cotangents, of what `examined` returns."""
    _, y_oracle, _, oracle, _ = outputs
    return y_oracle, oracle


def _one_by_one(f: Callable[[list[Array]], dict[str, Array]], stacks: Sequence[Array]) -> dict[str, Array]:
    """What `vmap` of `f` gives, without it."""
    each = [f([v[i] for v in stacks]) for i in range(len(stacks[0]))]
    return {name: jnp.stack([e[name] for e in each]) for name in each[0]}


def run_traced(subject: Subject, leaves: Sequence[Array | np.ndarray], dy: Values) -> dict[str, Array]:
    """The outputs and the hand's cotangents by name."""
    y, pull = subject.sweep(leaves)
    return _outputs(output_name(subject.names), y) | _fitting(subject, leaves, pull(completed(dy, y)), {}, set())


def run_eagerly(subject: Subject, leaves: Sequence[Array | np.ndarray], dy: Arrays) -> dict[str, np.ndarray]:
    """The same operation by operation, without compiling the whole."""
    return jax.device_get(run_traced(subject, [jnp.asarray(v) for v in leaves], [jnp.asarray(v) for v in dy]))


def _outputs(name: str, y: PyTree) -> dict[str, Array]:
    """The outputs that are differentiated, by name."""
    return {n: v for n, v in zip(leaf_names(name, y), jax.tree.leaves(y), strict=True) if is_differentiable(v)}


def completed(dy: Iterable[ArrayLike], y: PyTree) -> PyTree:
    """`dy`, given for the differentiable leaves of `y` alone, as a tree of `y`'s; integers have JAX's `float0`."""
    leaves, tree = jax.tree.flatten(y)
    given = iter(dy)
    return jax.tree.unflatten(
        tree, [next(given) if is_differentiable(v) else np.zeros(v.shape, jax.dtypes.float0) for v in leaves]
    )


def swept(sweep: Callable, leaves: Values) -> list[Array]:
    """The arrays among the cotangents that a sweep gives for a cotangent of ones."""
    y, pull = sweep(leaves)
    return [v for v in pull(_ones(y)) if hasattr(v, "dtype")]


def pulled(primal: Callable, leaves: Values) -> PyTree:
    """What the oracle gives for a cotangent of ones."""
    y, cotangents = with_cotangents(primal, leaves)
    return cotangents(_ones(y))


def _ones(y: PyTree) -> PyTree:
    def one(v):
        return jax.numpy.ones_like(v) if is_differentiable(v) else np.zeros(v.shape, jax.dtypes.float0)

    return jax.tree.map(one, y)


def _fitting(
    subject: Subject, leaves: Sequence[Typed], entries: list[Entry], misfits: dict[str, str], absent: set[str]
) -> dict[str, Array]:
    """Those cotangents that are arrays, by name; what is wrong with the form of one is noted.

    A cotangent of another shape is kept, since its values may say what is wrong.
    """
    arrays = {}
    for name, leaf, entry in zip(subject.names, leaves, entries, strict=True):
        differentiable = is_differentiable(leaf)
        if isinstance(entry, Misfit):
            misfits[name] = entry.detail
        elif entry is None:
            absent.update({name} if differentiable else ())
        elif getattr(entry, "dtype", None) == jax.dtypes.float0:
            if differentiable:
                misfits[name] = f"its cotangent is of float0, expected {describe(leaf)}"
        elif differentiable:  # what comes for integers is not looked at, as in JAX
            try:
                arrays[name] = jnp.asarray(entry)
            except TypeError:
                misfits[name] = f"its cotangent is {describe(entry)}, expected {describe(leaf)}"
    return arrays
