"""begun: what a run was begun with, in `run.json`, so that it is gone on with by the same and nothing else."""

import hashlib
import json
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bpref.train.data.rows import Rows, examples, stamp_of
from bpref.whole_file import whole_file

Json = dict[str, Any]
"""An object of JSON."""

BEGUN = "run.json"
"""The file's name."""


MOST_HASHED, HASHED_AT_ONCE = 2**30, 2**22
"""Bytes of rows: of more, the file itself is looked at from end to end, and of what its rows become some parts."""


def digest(*data: PyTree) -> str:
    """SHA-256 of arrays: their dtypes, shapes and contents. Of what is larger than `MOST_HASHED` and on disk, of the
    whole file, in the order that it lies there, and of rows that lie evenly in it, as they are given.
    """
    seen = hashlib.sha256()
    for v in map(examples, jax.tree.leaves(data)):
        seen.update(f"{v.dtype}{v.shape}".encode())
        if isinstance(v, Rows) and v.nbytes > MOST_HASHED:
            seen.update(_of_file(v.file, stamp_of(v.file)))
        for part in _parts(v) if isinstance(v, Rows) else (v,):
            seen.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return seen.hexdigest()


@lru_cache(8)
def _of_file(file: str, stamp: tuple[int, int] | None) -> bytes:
    """Of several arrays in one file, such as tokens and those that follow, once."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _parts(v: Rows) -> Iterator[np.ndarray]:
    """All rows, some at a time; of more than `MOST_HASHED` bytes a sixteenth of so many, from the first to the last."""
    rows = max(1, HASHED_AT_ONCE // max(1, v.nbytes // len(v)))
    whole = -(-len(v) // rows)
    looked_at = whole if v.nbytes <= MOST_HASHED else min(whole, max(2, MOST_HASHED // HASHED_AT_ONCE // 16))
    for part in np.linspace(0, whole - 1, looked_at).astype(int):
        yield v[part * rows : (part + 1) * rows]


def json_object(text: str | bytes) -> Json:
    """An object of JSON; raises `ValueError` where the text is none."""
    try:
        read = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(read, dict):
        raise ValueError(f"it is {type(read).__name__}, and no object")
    return read


def write_begun(directory: Path, settings: Json) -> None:
    """Write `run.json`, whole or not at all."""
    with whole_file(directory / BEGUN) as beside:
        beside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def score_of(directory: Path) -> str:
    """The name of what a run looks at in the test data."""
    return f"test {begun_with(directory).get('score', 'score')}"


def begun_with(directory: Path) -> Json:
    """What a run was begun with; nothing where that cannot be read."""
    try:
        return json_object((directory / BEGUN).read_bytes())
    except (OSError, ValueError):
        return {}


def require_the_same(directory: Path, settings: Json, but_for: Collection[str] = ()) -> None:
    """Raise `ValueError` for the settings that are not those which a run was begun with.

    Args:
      directory: the run's.
      settings: all of them, as they are now.
      but_for: the names of those that equality says nothing of.

    Raises:
      OSError: there is no `run.json`, or it cannot be read.
    """
    try:
        before = json_object((directory / BEGUN).read_bytes())
    except ValueError as error:
        raise ValueError(f"{directory / BEGUN} is damaged: it is no object of JSON") from error
    now = json.loads(json.dumps(settings))
    others = [name for name in before | now if name not in but_for and before.get(name) != now.get(name)]
    if others:
        parts = [f"{name} was {before.get(name)}, and is {now.get(name)} now" for name in others]
        raise begun_otherwise(directory, "; ".join(parts))


def begun_otherwise(directory: Path, how: str) -> ValueError:
    """Of a run that cannot be gone on with, since that is not the same."""
    return ValueError(f"{directory} cannot be gone on with, since it was begun otherwise: {how}")
