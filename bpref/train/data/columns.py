"""Columns of a table as numbers: quantities as they are, classes one-hot, and what is put where a value is missing."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpref.nearest import require_known
from bpref.train.data.cells import Cells, is_missing, is_number
from bpref.train.data.table import require_classes
from bpref.train.keeping.begun import Json

RULES = ("refuse", "drop", "impute")
"""Of a missing value: it is an error; its row is left out; the mean, or the most frequent class, takes its place."""

OF_A_TARGET = "; no target is imputed, --missing drop leaves the row out"


@dataclass(frozen=True)
class Column:
    """How a column of a user's file becomes features.

    Attributes:
      name: in the header.
      classes: of a column of text, what stands in it, each with a feature that is 1 where it does and else 0.
      fill: what is put where a value is missing; None where that is refused.
    """

    name: str
    classes: tuple[str, ...] = ()
    fill: float | str | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The names of its features."""
        return tuple(f"{self.name}={c}" for c in self.classes) or (self.name,)

    def encoded(self, cells: Cells) -> np.ndarray:
        """Its features, (N, 1) or (N, classes); `ValueError` names the line of what is missing or unknown."""
        given = cells.columns[self.name]
        if not self.classes and given and (found := _numbers(given)) is not None:
            return found[:, None]
        return np.array([self._of(cells, row, cell) for row, cell in enumerate(cells.columns[self.name])])

    def _of(self, cells: Cells, row: int, cell: str) -> list[float]:
        if self.fill is None:
            require_present(cells, row, self.name)
        filled = self.fill if is_missing(cell) and self.fill is not None else cell
        if not self.classes:
            return [filled if isinstance(filled, float) else number(cells, row, self.name)]
        try:
            require_known("class", str(filled), self.classes)
        except ValueError as error:
            raise ValueError(f"{cells.where(row, self.name)}: {error}") from None
        return [float(filled == c) for c in self.classes]


def _numbers(cells: tuple[str, ...]) -> np.ndarray | None:
    """All of them at once, which takes a fifteenth of the time; None where one is none, or not finite."""
    written = "".join(cells)
    if "_" in written or not written.isascii():
        return None
    try:
        found = np.fromiter(map(float, cells), float, len(cells))
    except ValueError:
        return None
    return found if np.isfinite(found).all() else None


def column_of(cells: Cells, name: str, filled_from: np.ndarray | None) -> Column:
    """What a column is to be taken for: of classes where no value that is there is a number.

    Args:
      cells: the file.
      name: of the column.
      filled_from: the rows whose mean, or most frequent class, is put where a value is missing; None refuses those.
    """
    given = cells.columns[name]
    there = [cell for cell in given if not is_missing(cell)]
    is_text = there and not any(is_number(cell) or has_comma(cell) for cell in there)
    classes = tuple(sorted(set(there))) if is_text else ()
    if len(classes) == 1:
        raise ValueError(
            f"{cells.path}, column {name!r}: it is {classes[0]!r} in all rows and tells nothing; leave it out"
        )
    if classes:
        require_classes(f"{cells.path}, column {name!r}", len(there), classes)
    if filled_from is None:
        return Column(name, classes)
    known = [int(row) for row in filled_from if not is_missing(given[row])]
    if not known:
        raise ValueError(f"{cells.path}, column {name!r}: no value to train on is there to impute the others from")
    if classes:
        return Column(name, classes, Counter(given[row] for row in known).most_common(1)[0][0])
    return Column(name, (), float(np.mean([number(cells, row, name) for row in known])))


def number(cells: Cells, row: int, name: str) -> float:
    """The finite number in a cell."""
    cell = cells.columns[name][row]
    require_present(cells, row, name)
    if not is_number(cell):
        point = "; write it with a point" if has_comma(cell) else ""
        raise ValueError(f"{cells.where(row, name)}: {cell!r} is not a number{point}")
    if not math.isfinite(float(cell)):
        raise ValueError(f"{cells.where(row, name)}: {cell!r} is not a finite number")
    return float(cell)


def has_comma(cell: str) -> bool:
    """Whether it is a number in which a comma stands for the point."""
    return not is_number(cell) and is_number(cell.replace(",", ".", 1))


def require_present(cells: Cells, row: int, name: str, hint: str = " (see bpref train --missing)") -> None:
    """Raise `ValueError` where a value is missing."""
    if is_missing(cells.columns[name][row]):
        raise ValueError(f"{cells.where(row, name)}: the value is missing{hint}")


def complete(cells: Cells, names: list[str]) -> Cells:
    """The rows alone in which nothing is missing in these columns, and a note of the others."""
    N, kept = len(cells.lines), rows_without_missing(cells, names)
    if len(kept) == N:
        return cells
    return cells.rows(kept)._replace(notes=(*cells.notes, of_left_out(cells.path, N - len(kept), N)))


def rows_without_missing(cells: Cells, names: list[str]) -> list[int]:
    """The rows in which each of these columns has a value."""
    return [row for row in range(len(cells.lines)) if not any(is_missing(cells.columns[name][row]) for name in names)]


def of_left_out(path: Path, rows: int, N: int) -> str:
    """A note of so many of N rows; `ValueError` where they are all."""
    if rows == N:
        raise ValueError(f"{path}: something is missing in each of the {N} rows; none is left")
    return f"{path}: {rows} of {N} rows are left out, where a value is missing"


def as_settings(columns: tuple[Column, ...]) -> list[Json]:
    """What `json` can write of them."""
    return [{"name": c.name, "classes": list(c.classes), "fill": c.fill} for c in columns]


def from_settings(units: Json) -> list[Column]:
    """The columns of a run's `units`; of one without any, each feature is a quantity."""
    if units.get("columns"):
        return [Column(c["name"], tuple(c["classes"]), c["fill"]) for c in units["columns"]]
    return [Column(name) for name in units["features"]]
