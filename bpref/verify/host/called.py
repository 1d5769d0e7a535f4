"""What is called: a function and its backward over flat lists of NumPy arrays, wherever it computes."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.verify.examining.faults import blamed, copies, on_device, takes
from bpref.verify.examining.program import output_name
from bpref.verify.examining.refusals import CannotCheck
from bpref.verify.examining.subject import Entry, Misfit, Subject
from bpref.verify.oracle import Arrays, Leaf, Specs, is_differentiable

Pull = Callable[[Arrays], list[Entry]]


class Called(NamedTuple):
    """A function with a backward, ready to be called.

    Attributes:
      name: what reports call it.
      names: the name of each argument's leaf.
      leaves: those leaves: NumPy arrays, or `jax.ShapeDtypeStruct`s to be filled.
      differentiable: which of them have a cotangent.
      sweep: `leaves -> (y, pull)`; `pull(dy)` gives one entry for each leaf: an array, None or a `Misfit`.
      plain: `leaves -> y`, the function alone, a list of arrays.
      x64: whether the caller has 64-bit numbers enabled.
      output: what reports call its output.
      scale: what the cotangents of its output are multiplied by.
    """

    name: str
    names: tuple[str, ...]
    leaves: list[Leaf]
    differentiable: tuple[bool, ...]
    sweep: Callable[[Arrays], tuple[Arrays, Pull]]
    plain: Callable[[Arrays], Arrays]
    x64: bool = False
    output: str = "y"
    scale: float = 1.0

    def outputs(self, count: int) -> list[str]:
        """The names of so many outputs."""
        return [self.output] if count == 1 else [f"{self.output}[{i}]" for i in range(count)]


def called(subject: Subject) -> Called:
    """A subject in this form, compiled where JAX can trace it, since it is called many times."""
    specs = subject.specs
    forward, given = compiled(subject.plain, specs)
    by_hand = _compiled_backward(subject, specs) if given is on_device else None
    # A backward in NumPy may write into what it is given, beside a function that JAX can trace.
    to_sweep = copies if by_hand is None and not takes(subject, on_device) else given

    def sweep(leaves: Arrays) -> tuple[Arrays, Pull]:
        if (entries_of := by_hand) is not None:
            return plain(leaves), lambda dy: [_as_numpy(v) for v in entries_of(given(leaves), given(dy))]
        with np.errstate(all="ignore"):
            y, pull = subject.sweep(to_sweep(leaves))
        tree = jax.tree.structure(y)

        def pulled(dy: Arrays) -> list[Entry]:
            try:
                with np.errstate(all="ignore"):
                    entries = pull(jax.tree.unflatten(tree, to_sweep(dy)))
                return [_as_numpy(v) for v in entries]
            except Exception as error:
                raise CannotCheck(blamed(subject, f"the backward of {subject.name}", error)) from error

        return _arrays(y), pulled

    def plain(leaves: Arrays) -> Arrays:
        with np.errstate(all="ignore"):
            return _arrays(forward(given(leaves)))

    return Called(
        subject.name,
        subject.names,
        subject.leaves,
        tuple(is_differentiable(v) for v in subject.leaves),
        sweep,
        plain,
        bool(jax.config.read("jax_enable_x64")),
        output_name(subject.names),
    )


def widened(values: Arrays, chosen: tuple[bool, ...], dtype: str = "float64") -> Arrays:
    """Those chosen in `dtype`, complex ones in that of twice its bits."""
    return [in_dtype(v, dtype) if keep else v for v, keep in zip(values, chosen, strict=True)]


def in_dtype(v: np.ndarray, dtype: str) -> np.ndarray:
    """A floating-point array in `dtype`; a complex one in complex128 for float64, else complex64."""
    if jnp.issubdtype(v.dtype, jnp.complexfloating):
        return np.asarray(v).astype(np.complex128 if dtype == "float64" else np.complex64)
    return np.asarray(v).astype(jnp.dtype(dtype)) if jnp.issubdtype(v.dtype, jnp.floating) else v


def compiled(f: Callable, specs: Specs) -> tuple[Callable, Callable[[Arrays], list]]:
    """A function, compiled where JAX can trace it, and what its arguments have to pass through."""
    try:
        jax.eval_shape(f, specs)
    except Exception:
        return f, copies
    return jax.jit(f), on_device


def _compiled_backward(subject: Subject, specs: Specs) -> Callable[[Arrays, Arrays], list[Entry]] | None:
    """`(leaves, dy) -> entries`, if JAX can trace the backward."""
    others: dict[int, Entry] = {}

    @jax.jit
    def arrays_of(leaves, dy):
        y, pull = subject.sweep(leaves)
        entries = dict(enumerate(pull(jax.tree.unflatten(jax.tree.structure(y), dy))))
        arrays = {i: v for i, v in entries.items() if isinstance(v, jax.Array)}
        others.update({i: v for i, v in entries.items() if i not in arrays})
        return arrays

    def by_hand(leaves, dy):
        arrays = arrays_of(leaves, dy)
        return [arrays[i] if i in arrays else others[i] for i in range(len(specs))]

    try:
        jax.eval_shape(by_hand, specs, jax.tree.leaves(jax.eval_shape(subject.plain, specs)))
    except Exception:
        return None
    return by_hand


def _arrays(y: PyTree) -> Arrays:
    return [np.array(v) for v in jax.tree.leaves(y)]


def _as_numpy(v: Entry) -> np.ndarray | Misfit | None:
    """A copy: a host function may write each answer into the same buffer."""
    return v if v is None or isinstance(v, Misfit) else np.array(v)
