"""Rows: examples that stay in a file, memory-mapped, until a batch asks for them.

There may be more of them than fit into memory. `grain` was tried for their order, for sharding and for reading ahead,
and stays out: it reads example by example, a batch of 64 contexts of 257 tokens in 3.8 ms, which one gather of their
rows has in 0.15 ms; and it gives each process examples of its own, so that what is trained depends on how many there
are. Here each process takes its part of the same batches.
"""

import os
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

LOOKED_AT = 2**26
"""Bytes of a file that are looked at together."""

Change = Callable[[np.ndarray], np.ndarray]
"""`(..., *of a row) -> (..., *of another)`, row by row, whatever axes stand in front."""


class Changed(OSError):
    """A file is not as it was when it was mapped; reading on would give other examples, or end the process."""


class Rows:
    """Some rows of a memory-mapped array, in an order of their own, and what is made of each as it is read.

    Args:
      mapped: (M, ...), as `numpy.load(file, mmap_mode="r")` gives it, or a view of that.
      kept: which of them; None for all.
      made: what becomes of those that are read.

    Attributes:
      shape, dtype: of all of them, as they are given.
    """

    def __init__(self, mapped: np.memmap, kept: np.ndarray | None = None, made: tuple[Change, ...] = ()):
        self.mapped, self.kept, self.made = mapped, kept, made
        self.file = os.fspath(mapped.filename or "")
        self._stamp = stamp_of(self.file)

    def __len__(self) -> int:
        return len(self.mapped) if self.kept is None else len(self.kept)

    def __getitem__(self, rows: slice | ArrayLike) -> np.ndarray:
        """Those rows, in memory; raises `Changed`."""
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        self._require_unchanged()
        read = np.array(self.mapped[numbers if self.kept is None else self.kept[numbers]])
        for change in self.made:
            read = change(read)
        return read

    @cached_property
    def _of_none(self) -> np.ndarray:
        read = np.array(self.mapped[:0])
        for change in self.made:
            read = change(read)
        return read

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._of_none.shape[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._of_none.dtype

    @property
    def nbytes(self) -> int:
        """Of all of them, if they were read."""
        return len(self) * int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def of(self, rows: np.ndarray) -> "Rows":
        """Some of these."""
        return Rows(self.mapped, rows if self.kept is None else self.kept[rows], self.made)

    def through(self, change: Change) -> "Rows":
        """The same rows, with one more change."""
        return Rows(self.mapped, self.kept, (*self.made, change))

    def astype(self, dtype: DTypeLike) -> "Rows":
        """The same rows in another dtype."""
        return self if self.dtype == dtype else self.through(lambda v: v.astype(dtype))

    def _require_unchanged(self) -> None:
        if (now := stamp_of(self.file)) != self._stamp:
            what = "is gone" if now is None else "has changed since it was opened"
            raise Changed(f"{self.file} {what}; its examples are read while a run goes on")


Examples = np.ndarray | Rows
"""In memory, or not."""


def examples(v: PyTree) -> Examples:
    """A memory-mapped array as `Rows` of it, and anything else as an array in memory."""
    if isinstance(v, Rows):
        return v
    return Rows(v) if isinstance(v, np.memmap) and v.filename is not None else np.asarray(v)


def of_rows(v: Examples, rows: np.ndarray) -> Examples:
    """Some of the examples; of a file, without reading them."""
    return v.of(rows) if isinstance(v, Rows) else v[rows]


def in_parts(v: Examples) -> Iterator[tuple[int, np.ndarray]]:
    """`(first, rows)` one after the other: of a file some at a time, what is in memory at once."""
    each = max(1, LOOKED_AT // max(1, v.nbytes // len(v))) if isinstance(v, Rows) else len(v)
    for first in range(0, len(v), each):
        yield first, v[first : first + each]


def stamp_of(file: str) -> tuple[int, int] | None:
    """A file's size and when it was last written; None where it is gone."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
