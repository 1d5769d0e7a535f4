"""read_npz: a user's own NumPy archive as a `Table`, or X and the target in a file of its own each."""

import zipfile
from pathlib import Path

import numpy as np

from bpref.nearest import require_known
from bpref.train.data import mapped
from bpref.train.data.table import Table, Task, require_classes, require_floating_matrix


def read_npz(path: Path, target: str = "y", task: Task | None = None) -> Table:
    """The table in an `.npz` file with the array X, the target's array and, if there is one, `feature_names`.

    Args:
      path: written by `numpy.savez` or `savez_compressed`.
      target: the name of the target's array, (N,) or (N, 1).
      task: left out, a floating-point target is regression, an integer or text one classification.

    Raises:
      OSError: the file cannot be read.
      TypeError: X is not floating-point.
      ValueError: it is not such an archive, or its arrays are no `Table`. Integer class labels must be
        0 ... C-1, and each of them must occur.
    """
    arrays = read_arrays(path)
    require_known("array", "X", arrays)
    require_known("array", target, arrays)
    names = tuple(str(name) for name in arrays.get("feature_names", ()))
    return _table(arrays["X"], arrays[target], names, target, task)


def read_npy_table(path: Path, target: Path, task: Task | None = None) -> Table:
    """The table of X in one `.npy` file, which may be larger than memory, and of the target in another.

    Raises:
      OSError, TypeError, ValueError: as of `read_npz`.
    """
    return _table(mapped.read_npy(path), np.asarray(mapped.read_npy(target)), (), str(target), task)


def _table(X: np.ndarray, y: np.ndarray, names: tuple[str, ...], target: str, task: Task | None) -> Table:
    require_floating_matrix(X)
    if y.shape == (len(X), 1):
        y = y[:, 0]
    if y.ndim != 1:
        raise ValueError(f"{target} has shape {y.shape}, expected ({len(X)},), one for each row of X")
    if task == "regression" or (task is None and np.issubdtype(y.dtype, np.floating)):
        return Table(X, y.astype(X.dtype) if np.issubdtype(y.dtype, np.integer) else y, names, target)
    labels, classes = labels_of(y, target)
    require_classes(target, len(labels), classes)
    return Table(X, labels, names, target, classes)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive by name, mapped where it is large; `ValueError` where it is none of plain arrays."""
    if path.stat().st_size > mapped.IN_MEMORY:
        return mapped.map_npz(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a .npz archive of plain arrays, as numpy.savez writes it ({error})") from error


def labels_of(y: np.ndarray, target: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels 0 ... C-1, and the names of the C classes."""
    if y.dtype.kind in "US":
        classes, labels = np.unique(y, return_inverse=True)
        return labels, tuple(str(name) for name in classes)
    whole = _whole(y, target)
    C = len(np.unique(whole))
    outside = np.flatnonzero((whole < 0) | (whole >= C))
    if outside.size:
        row = outside[0]
        raise ValueError(
            f"row {row + 1}, {target}: label {whole[row]} is out of range, "
            f"expected 0 ... {C - 1} for {C} distinct labels"
        )
    return whole, tuple(str(label) for label in range(C))


def _whole(y: np.ndarray, target: str) -> np.ndarray:
    if not (np.issubdtype(y.dtype, np.integer) or np.issubdtype(y.dtype, np.floating)):
        raise TypeError(f"{target} has dtype {y.dtype}, expected integer or text class labels")
    with np.errstate(invalid="ignore"):
        whole = y.astype(np.int64)
    wrong = np.flatnonzero(whole != y)
    if wrong.size:
        raise ValueError(f"row {wrong[0] + 1}, {target}: label {y[wrong[0]]} is not an integer")
    return whole
