"""predict: what a trained network says of new rows, in a user's own units and names."""

import csv
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bpref.nearest import require_known
from bpref.train.data.cells import Cells, read_cells
from bpref.train.data.columns import from_settings
from bpref.train.data.mapped import read_npy
from bpref.train.data.read_npz import read_arrays
from bpref.train.data.table import require_finite, require_floating_matrix
from bpref.train.keeping.begun import Json
from bpref.train.keeping.load import Loaded

OF_CLASSES = {
    "softmax_cross_entropy": ("probability", jax.nn.softmax),
    "sigmoid_cross_entropy": ("probability", jax.nn.sigmoid),
}
"""What the output for a class is, by the loss; after any other loss a score."""


def rows_of(units: Json, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The features of a file, (N, d) in its own units, and notes; of a .csv or .tsv, a .npy, or the X of a .npz.

    Columns are found by their names, in any order; others are left out.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no such file; a column that was trained on is not there, or a value missing or unknown in it.
    """
    if path.suffix.lower() in (".npz", ".npy"):
        arrays = read_arrays(path) if path.suffix.lower() == ".npz" else {"X": read_npy(path)}
        require_known("array", "X", arrays)
        X, names = np.asarray(arrays["X"]), tuple(units["features"])
        require_floating_matrix(X)
        if X.shape[1] != len(names):
            raise ValueError(f"{path}: X has {X.shape[1]} columns, expected the {len(names)} that were trained on")
        require_finite(X, names)
        return X, ()
    cells = read_cells(path)
    columns = from_settings(units)
    absent = [column.name for column in columns if column.name not in cells.columns]
    if absent:
        raise ValueError(f"{path}: there is no column {', '.join(map(repr, absent))}, which was trained on")
    X = np.concatenate([column.encoded(cells) for column in columns], 1)
    return X, (*cells.notes, *_left_out(cells, {column.name for column in columns}, units["target"]))


def _left_out(cells: Cells, known: set[str], target: str) -> list[str]:
    others = [repr(name) for name in cells.columns if name not in known and name != target]
    return [f"{cells.path}: left out, since it was not trained on: {', '.join(others)}"] if others else []


def predictions(loaded: Loaded, X: np.ndarray) -> tuple[list[str], list[list[str]]]:
    """A header and a row for each of X: the target, and of classes what each of them is given.

    Args:
      loaded: of a table.
      X: (N, d), in the units of the file that was trained on.
    """
    units = loaded.settings["units"]
    standard = (np.asarray(X, np.float64) - units["mean"]) / units["scale"]
    y, _ = loaded.network.forward(loaded.params, jnp.asarray(standard, jnp.float32))
    if not units["classes"]:
        quantity = np.asarray(y, np.float64)[:, 0] * units["target_scale"] + units["target_mean"]
        return [units["target"]], [[f"{v:.6g}"] for v in quantity]
    what, of_logits = OF_CLASSES.get(loaded.settings["loss"], ("score", lambda y: y))
    each = np.asarray(of_logits(y))
    header = [units["target"], *(f"{what} of {name}" for name in units["classes"])]
    return header, [[units["classes"][int(np.argmax(row))], *(f"{v:.6g}" for v in row)] for row in each]


def as_csv(header: list[str], rows: list[list[str]]) -> str:
    """The text of a file."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()
