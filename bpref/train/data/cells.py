"""The cells of a user's own file: a header and rows, their separator found, and which values are missing."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, TextIO

SEPARATORS = (",", ";", "\t")
"""The one that parts the header into most names is the file's; of several the first."""

MISSING = {"", "na", "n/a", "nan", "null"}
"""What stands for a value that is missing, in small letters."""

OF_INDEX = "{}: the first column has no name and numbers the rows; it is left out"

FIRST_LINE = 2**20
"""Characters of the first line that are looked at, for what parts it."""


class Cells(NamedTuple):
    """A table of text.

    Attributes:
      path: the file.
      columns: by name, the cells of all rows.
      lines: the line of the file that each row ends on.
      notes: what was found out, in sentences.
    """

    path: Path
    columns: dict[str, tuple[str, ...]]
    lines: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def where(self, row: int, column: str) -> str:
        """The place of a cell, for messages."""
        return f"{self.path}, line {self.lines[row]}, column {column!r}"

    def rows(self, kept: list[int]) -> "Cells":
        """Those rows alone."""
        columns = {name: tuple(cells[row] for row in kept) for name, cells in self.columns.items()}
        return self._replace(columns=columns, lines=tuple(self.lines[row] for row in kept))


def is_missing(cell: str) -> bool:
    return cell.lower() in MISSING


def is_number(cell: str) -> bool:
    """Whether it is a number as files have them; Python reads 1_000 and other scripts' digits too."""
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell


def read_cells(path: Path) -> Cells:
    """A file of values parted by commas, semicolons or tabs, in UTF-8, with a header; blank lines are passed over.

    A first column without a name, whose values are different whole numbers, is the index that pandas' `to_csv` writes:
    it is left out, with a note.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not such a file.
    """
    rows, lines = [], []
    with _of_csv(path) as file:
        text = file.read()
        for line, row in _rows(io.StringIO(text, newline=""), text):
            rows.append(row)
            lines.append(line)
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    header, rows = _names(rows[0]), rows[1:]
    if rows and not header[0] and len(header) > 1 and _number_rows([row[0] for row in rows]):
        notes = (OF_INDEX.format(path),)
    else:
        notes = ()
    _require_header(path, header[len(notes) :])
    if not rows:
        raise ValueError(f"{path}: there is a header and no data")
    for row, line in zip(rows, lines[1:], strict=True):
        _require_length(path, line, row, header)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    if notes:
        del columns[""]
    return Cells(path, columns, tuple(lines[1:]), notes)


def cells_in_parts(path: Path, at_once: int) -> Iterator[Cells]:
    """The same file, so many rows at a time; its notes come with the first.

    What has no name must rise from row to row here, to be taken for an index: it is not remembered.

    Raises:
      OSError, ValueError: as of `read_cells`, when that part is reached.
    """
    with _of_csv(path) as file:
        first = file.readline(FIRST_LINE)
        while first and not first.strip():
            first = file.readline(FIRST_LINE)
        file.seek(0)
        rows = _rows(file, first)
        header = _names(next(rows, (1, []))[1])
        if not header:
            raise ValueError(f"{path}: the file is empty")
        indexed, before, notes, is_empty = not header[0] and len(header) > 1, -1, (), True
        while part := list(islice(rows, at_once)):
            is_empty = False
            for line, row in part:
                _require_length(path, line, row, header)
            columns = list(zip(*(row for _, row in part), strict=True))
            if indexed and (indexed := _rise(columns[0], before)):
                notes, before = ((OF_INDEX.format(path),) if before < 0 else ()), int(columns[0][-1])
            _require_header(path, header[indexed:])
            lines = tuple(line for line, _ in part)
            yield Cells(path, dict(zip(header[indexed:], columns[indexed:], strict=True)), lines, notes)
        if is_empty:
            _require_header(path, header)
            raise ValueError(f"{path}: there is a header and no data")


@contextmanager
def _of_csv(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def _rows(file: TextIO, first: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file that has this first line, but for blank ones, with the line that each ends on."""
    reader = csv.reader(file, delimiter=_separator(first), skipinitialspace=True)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, [cell.strip() for cell in row]


def _rise(cells: Sequence[str], before: int) -> bool:
    """Whether they are whole numbers, each larger than that before it."""
    numbers = [before, *(int(cell) if cell.isdecimal() else -1 for cell in cells)]
    return all(a < b for a, b in pairwise(numbers))


def _require_length(path: Path, line: int, row: list[str], header: list[str]) -> None:
    if len(row) != len(header):
        raise ValueError(f"{path}, line {line}: {len(row)} values, expected {len(header)} as in the header")


def _separator(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([first], delimiter=separator), ())))


def _number_rows(cells: list[str]) -> bool:
    return all(cell.isdigit() for cell in cells) and len(set(cells)) == len(cells)


def _names(header: list[str]) -> list[str]:
    """The columns', each in one line: within quotes there may be several."""
    return [" ".join(name.splitlines()) for name in header]


def _require_header(path: Path, header: list[str]) -> None:
    if all(is_number(cell) for cell in header):
        raise ValueError(f"{path}, line 1: expected the names of the columns, got the numbers {', '.join(header)}")
    if "" in header:
        raise ValueError(f"{path}, line 1: column {header.index('') + 1} has no name")
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path}, line 1: the name {name!r} stands {header.count(name)} times")
