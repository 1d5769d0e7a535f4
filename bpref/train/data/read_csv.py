"""read_csv: a user's own file of separated values as a `Table`; every error names the line and the column."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bpref.nearest import require_known
from bpref.train.data import mapped
from bpref.train.data.cells import Cells, cells_in_parts, is_missing, is_number, read_cells
from bpref.train.data.columns import (
    OF_A_TARGET,
    RULES,
    Column,
    column_of,
    complete,
    has_comma,
    number,
    of_left_out,
    require_present,
    rows_without_missing,
)
from bpref.train.data.scratch import mapped_from
from bpref.train.data.split import rows_of_split
from bpref.train.data.table import MOST_CLASSES, Table, Task, require_classes

ROWS = 2**14
"""Of a large file, that are read together."""


def read_csv(path: Path, target: str, task: Task | None = None, missing: str = "refuse", seed: int = 0) -> Table:
    """The table in a CSV file with a header line: features of numbers or classes, and a numeric or class target.

    Args:
      path: parted by commas, semicolons or tabs, UTF-8; a file of more than 128 MB may be larger than memory, and its
        features must be numbers.
      target: the name of the column to predict.
      task: left out, a target of text is classification, and so is one of whole numbers with at most 20
        distinct values that are at most half as many as the examples; any other is regression. A column
        that is text in some rows and a number in others is taken for numbers with a mistake in them.
      missing: "refuse" a missing value; "drop" its row; "impute" the mean, or the most frequent class, of the rows
        that `split` by this seed trains on. A target is never imputed.
      seed: of the split.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not such a table; the message names the line of the file and the column.
    """
    require_known("rule for what is missing", missing, RULES)
    if path.stat().st_size > mapped.IN_MEMORY:
        return _read_in_parts(path, target, task, missing)
    cells = read_cells(path)
    features = _features(cells, target)
    if missing == "drop":
        cells = complete(cells, list(cells.columns))
    filled_from = rows_of_split(len(cells.lines), seed)[0] if missing == "impute" else None
    columns = tuple(column_of(cells, name, filled_from) for name in features)
    X = np.concatenate([column.encoded(cells) for column in columns], 1)
    y, classes = _target(cells, target, task)
    names = tuple(feature for column in columns for feature in column.features)
    imputed = (_imputed(cells, column) for column in columns if missing == "impute")
    return Table(X, y, names, target, classes, columns, (*cells.notes, *filter(None, imputed)))


def _features(cells: Cells, target: str) -> tuple[str, ...]:
    if len(cells.columns) == 1 and target not in cells.columns:
        raise ValueError(
            f"{cells.path}: there is one column, {next(iter(cells.columns))!r}; expected commas, semicolons or tabs"
        )
    require_known("column", target, cells.columns)
    features = tuple(name for name in cells.columns if name != target)
    if not features:
        raise ValueError(f"{cells.path}: there is no column but the target {target!r}")
    return features


def _read_in_parts(path: Path, target: str, task: Task | None, missing: str) -> Table:
    """The table of a file that may be larger than memory: its features are numbers, which are kept on disk."""
    large = f"{path} is larger than {mapped.IN_MEMORY >> 20} MB, and is not read at once"
    if missing == "impute":
        raise ValueError(f"{large}: of what is missing, rows can be left out (--missing drop), and nothing imputed")
    features, of_target, lines, notes, left_out = (), [], [], (), 0

    def parts() -> Iterator[np.ndarray]:
        nonlocal features, notes, left_out
        for cells in cells_in_parts(path, ROWS):
            features, notes = features or _features(cells, target), notes or cells.notes
            if missing == "drop":
                kept = rows_without_missing(cells, list(cells.columns))
                left_out += len(cells.lines) - len(kept)
                cells = cells.rows(kept)
            if not cells.lines:
                continue
            of_target.extend(cells.columns[target])
            lines.extend(cells.lines)
            try:
                yield np.concatenate([Column(name).encoded(cells) for name in features], 1)
            except ValueError as error:
                raise ValueError(f"{error}; {large}: its features must all be numbers") from None
        if left_out:
            notes += (of_left_out(path, left_out, left_out + len(lines)),)

    X = mapped_from(path, parts())
    y, classes = _target(Cells(path, {target: tuple(of_target)}, tuple(lines)), target, task)
    columns = tuple(map(Column, features))
    notes += (f"{large}: its numbers are in {X.filename} as long as this runs",)
    return Table(X, y, features, target, classes, columns, notes)


def _imputed(cells: Cells, column: Column) -> str:
    """What was put where, in a sentence; empty where nothing was missing."""
    times = sum(map(is_missing, cells.columns[column.name]))
    if not times:
        return ""
    value = f"its most frequent class, {column.fill!r}" if column.classes else f"its mean, {column.fill:g}"
    return f"{cells.path}, column {column.name!r}: {times} missing, in their place {value}"


def _target(file: Cells, name: str, task: Task | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """y, and the names of the classes: none for regression."""
    cells = file.columns[name]
    for row in range(len(cells)):
        require_present(file, row, name, OF_A_TARGET)
    numeric = [is_number(cell) for cell in cells]
    text = not (any(numeric) or all(map(has_comma, cells)) if task is None else all(numeric))
    if task == "regression" or (task is None and not text and not _few_whole_numbers(cells)):
        return np.array([number(file, row, name) for row in range(len(cells))]), ()
    if text:
        classes = sorted(set(cells))
    else:
        _require_whole(file, name)
        cells = tuple(f"{float(cell) + 0.0:.0f}" for cell in cells)
        classes = sorted(set(cells), key=float)
    require_classes(f"{file.path}, column {name!r}", len(cells), classes)
    index = {label: number for number, label in enumerate(classes)}
    return np.array([index[cell] for cell in cells]), tuple(classes)


def _require_whole(file: Cells, name: str) -> None:
    for row, cell in enumerate(file.columns[name]):
        if not float(cell).is_integer():
            raise ValueError(f"{file.where(row, name)}: the class label {cell} is neither an integer nor text")


def _few_whole_numbers(cells: tuple[str, ...]) -> bool:
    if not all(is_number(cell) for cell in cells):
        return False
    distinct = {float(cell) for cell in cells}
    return all(v.is_integer() for v in distinct) and len(distinct) <= min(MOST_CLASSES, len(cells) // 2)
