"""Every reader of a file, on files that nobody wrote: good ones, damaged ones, and noise.

    python -m tests.fuzz [--inputs 100000] [READER ...]

What is none of a reader's files it refuses by `ValueError`, `TypeError` or `OSError` of one line; what it accepts must
be what another reader finds in there, or what its own words promise. None may take seconds, or unpickle anything.
"""

import argparse
import csv
import gzip
import io
import json
import pickle
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors

from bpref.cli.errors import UsageError
from bpref.cli.tasks import _asked
from bpref.leftovers import undo_all
from bpref.naming import flat_names
from bpref.train.data import mapped
from bpref.train.data import read_csv as of_csv
from bpref.train.data.cells import MISSING
from bpref.train.data.mapped import map_npz, read_idx, read_npy
from bpref.train.data.read_csv import read_csv
from bpref.train.data.read_npz import read_arrays, read_npz
from bpref.train.data.text import byte_pairs, read_text, texts_of
from bpref.train.keeping.begun import begun_with, require_the_same, score_of
from bpref.train.keeping.checkpoint import _sha256
from bpref.train.keeping.load import load
from bpref.train.keeping.record import rows_of
from bpref.train.predict import rows_of as rows_to_predict
from tests.fuzzed_files import (
    EPOCH,
    UNITS,
    arrays,
    as_json,
    changed,
    damaged,
    idx,
    lines,
    npy,
    npz,
    safetensors,
    tables,
    texts,
    tokens,
)

SECONDS = 10.0
"""What no input may take of a processor; the machine may do other things meanwhile."""

REFUSED = (ValueError, TypeError, OSError, UsageError)


class Unpickled(BaseException):
    """Something was about to be unpickled."""


class Reader(NamedTuple):
    """What is tried.

    Attributes:
      file: its name.
      contents: what is in it.
      reads: reads the file, and raises `AssertionError` where what it accepts is wrong.
    """

    file: str
    contents: st.SearchStrategy[bytes]
    reads: Callable[[Path, bytes], object]


def reads_csv(path: Path, content: bytes) -> None:
    table = read_csv(path, "y")
    assert np.isfinite(table.X).all()
    text = content.decode("utf-8-sig")
    first = next(line for line in text.splitlines() if line.strip())
    separator = max(",;\t", key=lambda s: len(next(csv.reader([first], delimiter=s))))
    rows = [
        r
        for r in csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        if any(c.strip() for c in r)
    ]
    header, *rows = [[cell.strip() for cell in row] for row in rows]
    header = [" ".join(name.splitlines()) for name in header]
    assert len(rows) == len(table.X)
    for column in table.columns:
        cells = [row[header.index(column.name)] for row in rows]
        assert not any(cell.lower() in MISSING for cell in cells)
        if not column.classes:
            assert all(cell.isascii() and "_" not in cell for cell in cells)
            np.testing.assert_array_equal(table.X[:, table.feature_names.index(column.name)], np.array(cells, float))
    if table.classes:
        assert len({label + 0.0 if isinstance(label, float) else label for label in table.classes}) == len(
            table.classes
        )


def reads_csv_in_parts(path: Path, content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "IN_MEMORY", 0)
        patch.setattr(of_csv, "ROWS", 2)
        try:
            table = read_csv(path, "y")
            X = table.X[:]
        finally:
            undo_all()
    whole = read_csv(path, "y")
    np.testing.assert_array_equal(X, whole.X)
    np.testing.assert_array_equal(table.y, whole.y)
    assert (table.feature_names, table.classes, table.columns) == (whole.feature_names, whole.classes, whole.columns)


LEARNED = byte_pairs(["the cat sat, and 12 x's\n\n  on é\t "] * 20, 300)


def reads_text_in_parts(path: Path, content: bytes) -> None:
    text = content.decode()
    parts = list(texts_of(np.frombuffer(content, np.uint8), 8))
    assert "".join(parts) == text
    assert [i for part in parts for i in LEARNED.encode(part)] == list(LEARNED.encode(text))


def reads_predict(path: Path, content: bytes) -> None:
    X, _ = rows_to_predict(UNITS, path)
    assert X.shape[1:] == (2,)
    assert np.isfinite(X).all()


def reads_npy(path: Path, content: bytes) -> None:
    np.testing.assert_array_equal(read_npy(path), np.load(io.BytesIO(content), allow_pickle=False))


def reads_npz(path: Path, content: bytes) -> None:
    found = [read(path) for read in (map_npz, read_arrays)]
    for name, v in np.load(io.BytesIO(content), allow_pickle=False).items():
        for read in found:
            np.testing.assert_array_equal(read[name], v)
    table = read_npz(path)
    assert np.isfinite(table.X).all()
    assert len(table.y) == len(table.X)


def reads_idx(path: Path, content: bytes) -> None:
    v = read_idx(path)
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    code = {np.dtype(dtype): code for code, dtype in mapped.OF_IDX.items()}[v.dtype]
    assert bytes([0, 0, code, v.ndim]) + struct.pack(f">{v.ndim}I", *v.shape) + v.tobytes() == plain


def reads_tokens(path: Path, content: bytes) -> None:
    read = read_text(path, 2, "uint16", 300)
    ids = np.frombuffer(content, "<u2")
    assert ids.max() < 300
    np.testing.assert_array_equal(read.train[0].ravel(), ids[: read.train[0].size])


def reads_text(path: Path, content: bytes) -> None:
    read = read_text(path, 2)
    text = content.decode()
    after = text[len(text) - int(len(text) * 0.1) :].encode()
    assert bytes(np.asarray(read.test[1], np.uint8).ravel()) == after[1 : read.test[1].size + 1]


def reads_run(path: Path, content: bytes) -> None:
    loaded = load(path)
    held = load_safetensors(content)
    for name, v in flat_names(loaded.params).items():
        assert np.issubdtype(v.dtype, np.floating)
        np.testing.assert_array_equal(v, held[name])
    assert isinstance(loaded.settings, dict)


def reads_begun(path: Path, content: bytes) -> None:
    assert isinstance(begun_with(path.parent), dict)
    assert isinstance(score_of(path.parent), str)
    require_the_same(path.parent, EPOCH)
    assert told(json.loads(content)) == told(EPOCH)


def told(settings: dict) -> dict:
    """What is not there is None: a run may be older than an option."""
    return {name: v for name, v in settings.items() if v is not None}


def is_number(v: object) -> bool:
    return v is None or (isinstance(v, int | float) and not isinstance(v, bool))


def reads_metrics(path: Path, content: bytes) -> None:
    for row in rows_of(path.parent):
        assert all(is_number(row.get(name)) for name in EPOCH if name != "gradient_norm")
        assert isinstance(row["epoch"], int)
        assert all(map(is_number, row["gradient_norm"].values()))


SEALED = {"about": {"step": 3}, "files": {}}
SEALED |= {"sha256": _sha256(SEALED)}


def reads_seal(path: Path, content: bytes) -> None:
    from bpref.train.keeping.checkpoint import Checkpoints

    (path.parent / "3").mkdir(exist_ok=True)
    if damage := Checkpoints(path.parent)._damage(3):
        raise ValueError(damage)
    assert json.loads(content) == SEALED


def reads_task(path: Path, content: bytes) -> None:
    rule, framework = _asked(str(path.parent))
    assert json.loads(content)["rule"]
    assert (rule.name, framework) != ("", "")


ABOUT = {"rule": "linear", "framework": "jax", "version": "0.1"}

READERS = {
    "csv": Reader("t.csv", damaged(tables()), reads_csv),
    "csv in parts": Reader("t.csv", damaged(tables()), reads_csv_in_parts),
    "predict": Reader("t.csv", damaged(tables()), reads_predict),
    "npy": Reader("t.npy", damaged(arrays().map(npy)), reads_npy),
    "npz": Reader("t.npz", damaged(npz()), reads_npz),
    "idx": Reader("t-idx", damaged(idx()), reads_idx),
    "tokens": Reader("t.bin", damaged(tokens()), reads_tokens),
    "text": Reader("t.txt", damaged(texts()), reads_text),
    "text in parts": Reader("t.txt", damaged(texts()), reads_text_in_parts),
    "safetensors": Reader("params.safetensors", damaged(safetensors()) | safetensors(), reads_run),
    "run.json": Reader("run.json", as_json(st.just(EPOCH)), reads_begun),
    "metrics": Reader("metrics.jsonl", lines(changed(EPOCH)), reads_metrics),
    "checkpoint": Reader("3.json", as_json(st.just(SEALED) | changed(SEALED)), reads_seal),
    "task.json": Reader("task.json", as_json(changed(ABOUT)), reads_task),
}  # fmt: skip


@contextmanager
def nothing_unpickled() -> Iterator[None]:
    """Within, whoever unpickles raises `Unpickled`."""

    def refuse(*given, **named):
        raise Unpickled

    before = pickle.load, pickle.loads
    pickle.load = pickle.loads = refuse
    try:
        yield
    finally:
        pickle.load, pickle.loads = before


def tried(name: str, inputs: int, directory: Path, derandomize: bool = False) -> Counter:
    """Try a reader so often; how many of its files were accepted, and refused. Raises what it must not."""
    reader, seen = READERS[name], Counter()
    path = directory / reader.file

    @settings(
        max_examples=inputs,
        derandomize=derandomize,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.contents)
    def look(content: bytes) -> None:
        path.write_bytes(content)
        begin = time.process_time()
        try:
            with nothing_unpickled():
                reader.reads(path, content)
            seen["accepted"] += 1
        except REFUSED as error:
            said = str(error)
            seen["refused"] += 1
        else:
            said = "accepted"
        assert said
        assert "\n" not in said, said
        assert time.process_time() - begin < SECONDS

    look()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--gigabytes", type=int, default=16, help="of address space, which no file may ask for")
    asked = parser.parse_args()
    names = asked.readers or list(READERS)
    resource.setrlimit(resource.RLIMIT_AS, (asked.gigabytes * 2**30, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            folder = Path(directory) / name
            folder.mkdir()
            begin = time.monotonic()
            seen = tried(name, -(-asked.inputs // len(names)), folder)
            took = time.monotonic() - begin
            print(f"{name}: {seen['accepted']:,} accepted, {seen['refused']:,} refused, {took:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
