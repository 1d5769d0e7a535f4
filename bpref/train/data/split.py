"""split: which examples are trained on and which are held out, and one scale for both."""

from typing import NamedTuple

import numpy as np

from bpref.train.data.rows import Examples, Rows, in_parts, of_rows
from bpref.train.data.table import Table, are_alike, count


class Split(NamedTuple):
    """A table in two parts, standardised by the mean and the deviation of the training part alone.

    Attributes:
      X, y: the training part: (n, d) and (n,); X of a file `Rows`.
      X_test, y_test: the part held out: (m, d) and (m,).
      X_mean, X_scale: (d,); an example in its own units is `X * X_scale + X_mean`.
      y_mean, y_scale: likewise a regression target; 0 and 1 for classes.
    """

    X: Examples
    y: np.ndarray
    X_test: Examples
    y_test: np.ndarray
    X_mean: np.ndarray
    X_scale: np.ndarray
    y_mean: float
    y_scale: float


def split(table: Table, seed: int, test_fraction: float = 0.2) -> Split:
    """Hold out `test_fraction` of the examples, rounded up, and standardise.

    The parts are those of scikit-learn's `train_test_split(X, y, test_size=test_fraction, random_state=seed)`,
    so that scores can be compared with what is published for it. A column that happens to be constant in the
    training part is centred and not scaled.

    Raises:
      ValueError: a part has no example; the regression targets held out are all the same, so that R^2 has no
        value; a column's values are too large or too small to standardise; `seed` is not in 0 ... 2**32 - 1.
    """
    train, test = rows_of_split(len(table.X), seed, test_fraction)
    X, X_mean, X_scale = _standardise(table.X, train, table.feature_names)
    X, X_test = of_rows(X, train), of_rows(X, test)
    if table.task == "classification":
        return Split(X, table.y[train], X_test, table.y[test], X_mean, X_scale, 0.0, 1.0)
    y, y_mean, y_scale = _standardise(table.y[:, None], train, (table.target_name,))
    y = np.asarray(y)[:, 0]
    if (y[test] == y[test][0]).all():
        raise ValueError(
            f"{table.target_name} has one value in the {count(len(test), 'example')} held out by seed {seed}, "
            "which R^2 cannot be computed from: more data or another seed is needed"
        )
    return Split(X, y[train], X_test, y[test], X_mean, X_scale, float(y_mean[0]), float(y_scale[0]))


def rows_of_split(N: int, seed: int, test_fraction: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Which of N examples are trained on, and which are held out; raises `ValueError` as `split`."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}, expected an integer in 0 ... {2**32 - 1}")
    held_out = int(np.ceil(test_fraction * N))
    if not 0 < held_out < N:
        raise ValueError(f"test fraction {test_fraction} of {count(N, 'example')} leaves none to train or none to test")
    order = np.random.RandomState(seed).permutation(N)
    return order[held_out:], order[:held_out]


def _standardise(v: Examples, train: np.ndarray, names: tuple[str, ...]) -> tuple[Examples, np.ndarray, np.ndarray]:
    """All rows of v by the mean and the deviation of the rows `train`, and these two."""
    v = v.astype(np.float64)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def standardised(rows):
        return (rows - mean) / scale

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean, deviation = _moments(of_rows(v, train))
        scale = np.where(are_alike(of_rows(v, train)), 1.0, deviation)
    for _, part in in_parts(v):
        finite = np.isfinite(standardised(part)).all(axis=0) & np.isfinite(scale)
        for column in np.flatnonzero(~finite):
            largest = np.abs(part[:, column]).max()
            size = "large" if largest > 1 else "small"
            raise ValueError(f"{names[column]}: its values are too {size} to standardise (up to {largest:g})")
    return (v.through(standardised) if isinstance(v, Rows) else standardised(v)), mean, scale


def _moments(v: Examples) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of the columns."""
    if not isinstance(v, Rows):
        return v.mean(axis=0), v.std(axis=0)
    mean = np.sum([part.sum(axis=0) for _, part in in_parts(v)], axis=0) / len(v)
    squares = np.sum([((part - mean) ** 2).sum(axis=0) for _, part in in_parts(v)], axis=0) / len(v)
    return mean, np.sqrt(squares)


def least_squares_r2(parts: Split) -> float:
    """The test R^2 of the best linear fit to the training part: what a network should not fall behind."""
    ones = np.ones((len(parts.X), 1))
    weights = np.linalg.lstsq(np.hstack([ones, parts.X[:]]), parts.y, rcond=None)[0]
    residual = parts.y_test - weights[0] - parts.X_test[:] @ weights[1:]
    return float(1 - np.sum(residual**2) / np.sum((parts.y_test - parts.y_test.mean()) ** 2))
