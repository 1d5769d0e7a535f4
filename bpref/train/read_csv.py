"""read_csv: a user's own comma-separated file as a `Table`; every error names the line and the column."""

import csv
import math
from pathlib import Path

import numpy as np

from bpref.nearest import require_known
from bpref.train.table import MOST_CLASSES, Table, Task, require_classes


def read_csv(path: Path, target: str, task: Task | None = None) -> Table:
    """The table in a CSV file with a header line: numeric features, and a numeric or class target.

    Args:
      path: comma-separated, UTF-8.
      target: the name of the column to predict.
      task: left out, a target of text is classification, and so is one of whole numbers with at most 20
        distinct values that are at most half as many as the examples; any other is regression. A target
        that is text in some rows and a number in others is taken for numbers with a mistake in them.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not such a table; the message names the line of the file and the column.
    """
    header, rows, lines = _read_cells(path)
    require_known("column", target, header)
    features = tuple(name for name in header if name != target)
    if not features:
        raise ValueError(f"{path}: there is no column but the target {target!r}")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    X = np.array([_numbers(path, name, columns[name], lines) for name in features]).T
    y, classes = _target(path, target, columns[target], lines, task)
    return Table(X, y, features, target, classes)


def _read_cells(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows, and the line of the file that each row ends on; blank lines are passed over."""
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append([cell.strip() for cell in row])
                    lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    header, *rows = rows
    _require_header(path, header)
    if not rows:
        raise ValueError(f"{path}: there is a header and no data")
    for row, line in zip(rows, lines[1:], strict=True):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: {len(row)} values, expected {len(header)} as in the header")
    return header, rows, lines[1:]


def _require_header(path: Path, header: list[str]) -> None:
    if all(_is_number(cell) for cell in header):
        raise ValueError(f"{path}, line 1: expected the names of the columns, got the numbers {', '.join(header)}")
    if "" in header:
        raise ValueError(f"{path}, line 1: column {header.index('') + 1} has no name")
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path}, line 1: the name {name!r} stands {header.count(name)} times")


def _numbers(path: Path, name: str, cells: tuple[str, ...], lines: list[int]) -> list[float]:
    numbers = []
    for cell, line in zip(cells, lines, strict=True):
        where = f"{path}, line {line}, column {name!r}"
        if not cell:
            raise ValueError(f"{where}: the value is missing")
        if not _is_number(cell):
            raise ValueError(f"{where}: {cell!r} is not a number")
        numbers.append(float(cell))
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"{where}: {cell!r} is not a finite number")
    return numbers


def _target(
    path: Path, name: str, cells: tuple[str, ...], lines: list[int], task: Task | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """y, and the names of the classes: none for regression."""
    if "" in cells:
        raise ValueError(f"{path}, line {lines[cells.index('')]}, column {name!r}: the value is missing")
    numeric = [_is_number(cell) for cell in cells]
    text = not (any(numeric) if task is None else all(numeric))
    if task == "regression" or (task is None and not text and not _few_whole_numbers(cells)):
        return np.array(_numbers(path, name, cells, lines)), ()
    if text:
        classes = sorted(set(cells))
    else:
        _require_whole(path, name, cells, lines)
        cells = tuple(f"{float(cell):.0f}" for cell in cells)
        classes = sorted(set(cells), key=float)
    require_classes(f"{path}, column {name!r}", len(cells), classes)
    index = {label: number for number, label in enumerate(classes)}
    return np.array([index[cell] for cell in cells]), tuple(classes)


def _require_whole(path: Path, name: str, cells: tuple[str, ...], lines: list[int]) -> None:
    for cell, line in zip(cells, lines, strict=True):
        if not float(cell).is_integer():
            raise ValueError(
                f"{path}, line {line}, column {name!r}: the class label {cell} is neither an integer nor text"
            )


def _few_whole_numbers(cells: tuple[str, ...]) -> bool:
    if not all(_is_number(cell) for cell in cells):
        return False
    distinct = {float(cell) for cell in cells}
    return all(v.is_integer() for v in distinct) and len(distinct) <= min(MOST_CLASSES, len(cells) // 2)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
