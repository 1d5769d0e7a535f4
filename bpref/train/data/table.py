"""Table: examples as rows, one target, and the promise that both are fit to train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from bpref.train.data.rows import Examples, examples, in_parts

if TYPE_CHECKING:
    from bpref.train.data.columns import Column

Task = Literal["regression", "classification"]

MOST_CLASSES = 20
"""A target of whole numbers with more distinct values than this is taken as a quantity, where nothing else is said."""

EXAMPLES_OF_A_CLASS, EXAMPLES_OF_A_NUMBER = 2, 10
"""Of more classes than that, each needs so many examples on average; and numbers that do not count the classes need
more, since a quantity would have few."""


@dataclass(frozen=True, eq=False)
class Table:
    """N examples of d features, and what is to be predicted from them.

    Attributes:
      X: (N, d), floating-point and finite; no column is constant. What is memory-mapped becomes `Rows`.
      y: (N,), floating-point and finite for regression; class labels 0 ... C-1, integers, for classification.
      feature_names: d names, for messages.
      target_name: what y is called in messages.
      classes: the C names of the classes; empty for regression.
      columns: of a user's own file, how each of its columns became features, as `bpref.train.data.columns` has it.
      notes: what was found out in the reading, in sentences.

    Raises:
      TypeError: X is not floating-point; y is neither floating-point (regression) nor integer (classification).
      ValueError: shapes that do not fit, fewer than two examples, a value that is not finite, a constant
        column, a constant target, a label out of range. The message names the row (the first one is row 1)
        and the column.
    """

    X: Examples
    y: np.ndarray
    feature_names: tuple[str, ...] = ()
    target_name: str = "y"
    classes: tuple[str, ...] = ()
    columns: tuple["Column", ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        X, y = examples(self.X), np.asarray(self.y)
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "y", y)
        require_floating_matrix(X)
        if not self.feature_names:
            object.__setattr__(self, "feature_names", tuple(f"column {j + 1}" for j in range(X.shape[1])))
        if len(self.feature_names) != X.shape[1]:
            raise ValueError(f"X has {X.shape[1]} columns, but there are {len(self.feature_names)} feature names")
        if y.shape != X.shape[:1]:
            raise ValueError(f"{self.target_name} has shape {y.shape}, expected ({len(X)},), one for each row of X")
        if len(X) < 2:
            raise ValueError(f"the data has {count(len(X), 'example')}, expected at least two: to train and to test on")
        require_finite(X, self.feature_names)
        require_varying(X, self.feature_names)
        if self.task == "regression":
            self._require_numbers()
        else:
            self._require_labels()

    @property
    def task(self) -> Task:
        """Regression, unless there are classes."""
        return "classification" if self.classes else "regression"

    def _require_numbers(self) -> None:
        if not np.issubdtype(self.y.dtype, np.floating):
            raise TypeError(
                f"{self.target_name} has dtype {self.y.dtype}, expected a floating-point dtype for regression "
                "(or the names of the classes)"
            )
        require_finite(self.y[:, None], (self.target_name,))
        if (self.y == self.y[0]).all():
            raise ValueError(
                f"{self.target_name} is constant ({self.y[0]:g} in all {len(self.y)} rows): there is nothing to learn"
            )

    def _require_labels(self) -> None:
        if not np.issubdtype(self.y.dtype, np.integer):
            raise TypeError(f"{self.target_name} has dtype {self.y.dtype}, expected integer class labels")
        if len(self.classes) == 1:
            raise ValueError(f"{self.target_name} has one class, {self.classes[0]!r}: there is nothing to tell apart")
        outside = np.flatnonzero((self.y < 0) | (self.y >= len(self.classes)))
        if outside.size:
            row = outside[0]
            raise ValueError(
                f"row {row + 1}, {self.target_name}: label {self.y[row]} is out of range, "
                f"expected 0 ... {len(self.classes) - 1} for {len(self.classes)} classes"
            )


def require_classes(target: str, N: int, classes: Sequence[str]) -> None:
    """Raise `ValueError` where the classes of a target are too many to be classes.

    Args:
      target: what the target is called in messages.
      N: how many examples there are.
      classes: the names of the classes, in order.
    """
    C = len(classes)
    seen = f"{target}: {C:,} different {{}} in {N:,} rows"
    if C <= MOST_CLASSES:
        return
    if _are_quantities(classes) and N < EXAMPLES_OF_A_NUMBER * C:
        raise ValueError(
            f"{seen.format('numbers')} are a quantity, and no classes; the task for that is regression. If they are "
            f"classes, number them 0 ... {C - 1} or give them names"
        )
    if N < EXAMPLES_OF_A_CLASS * C:
        raise ValueError(
            f"{seen.format('classes')} are fewer than {EXAMPLES_OF_A_CLASS} examples of each; is it the right column?"
        )


def _are_quantities(classes: Sequence[str]) -> bool:
    """Whether they are whole numbers that do not just count from 0 or 1."""
    numbers = [int(name) if name.removeprefix("-").isdigit() else None for name in classes]
    counted = (list(range(len(classes))), list(range(1, len(classes) + 1)))
    return None not in numbers and numbers not in counted


def require_floating_matrix(X: Examples) -> None:
    """Raise unless X is (N, d) and floating-point, with at least one row and one column."""
    if not np.issubdtype(X.dtype, np.floating):
        raise TypeError(f"X has dtype {X.dtype}, expected a floating-point dtype; cast it: X.astype('float32')")
    if X.ndim != 2:
        raise ValueError(f"X has shape {X.shape}, expected (N, d): one row for each example")
    if X.shape[1] == 0:
        raise ValueError(f"X has shape {X.shape}, expected (N, d) with at least one feature d")
    if X.shape[0] == 0:
        raise ValueError(f"X has shape {X.shape}: the data is empty")


def require_finite(X: Examples, names: Sequence[str]) -> None:
    """Raise `ValueError` that names the first row and column where X is NaN or infinite."""
    for first, part in in_parts(X):
        bad = np.argwhere(~np.isfinite(part))
        if bad.size:
            row, column = bad[0]
            raise ValueError(f"row {first + row + 1}, {names[column]}: {part[row, column]} is not a finite number")


def require_varying(X: Examples, names: Sequence[str]) -> None:
    """Raise `ValueError` that names the first column of X whose values are all the same."""
    constant = np.flatnonzero(are_alike(X))
    if constant.size:
        column = constant[0]
        raise ValueError(
            f"{names[column]} is constant ({X[:1][0, column]:g} in all {len(X)} rows) and tells nothing; leave it out"
        )


def are_alike(X: Examples) -> np.ndarray:
    """(d,), whether the values of a column are all the same."""
    return np.all([(X[:1] == part).all(axis=0) for _, part in in_parts(X)], axis=0)


def count(n: int, noun: str) -> str:
    """`1 example`, `3 examples`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
