"""What a table refuses, and the exact words."""

import numpy as np

from bpref.train import Table
from tests.refusing import refusals

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
Y = np.array([1.0, 2.0, 3.0])


def with_value(value):
    changed = X.copy()
    changed[1, 1] = value
    return changed


def test_names_and_task_default():
    table = Table(X, Y)
    assert table.feature_names == ("column 1", "column 2")
    assert table.task == "regression"
    assert Table(X, np.array([0, 1, 1]), classes=("a", "b")).task == "classification"


test_refused_values = refusals(
    {
        "y has shape (2,), expected (3,), one for each row of X": lambda: Table(X, Y[:2]),
        "X has 2 columns, but there are 1 feature names": lambda: Table(X, Y, feature_names=("a",)),
        "X has shape (2,), expected (N, d): one row for each example": lambda: Table(X[0], Y),
        "X has shape (0, 2): the data is empty": lambda: Table(X[:0], Y[:0]),
        "X has shape (3, 0), expected (N, d) with at least one feature d": lambda: Table(X[:, :0], Y),
        "the data has 1 example, expected at least two: to train and to test on": lambda: Table(X[:1], Y[:1]),
        "row 2, bmi: nan is not a finite number": lambda: Table(with_value(np.nan), Y, feature_names=("age", "bmi")),
        "row 2, column 2: -inf is not a finite number": lambda: Table(with_value(-np.inf), Y),
        "row 3, price: inf is not a finite number": lambda: Table(X, np.array([1.0, 2.0, np.inf]), target_name="price"),
        "age is constant (1 in all 2 rows) and tells nothing; leave it out": (
            lambda: Table(np.array([[1.0, 2.0], [1.0, 3.0]]), Y[:2], feature_names=("age", "bmi"))
        ),
        "y is constant (1 in all 3 rows): there is nothing to learn": lambda: Table(X, np.ones(3)),
        "y has one class, 'a': there is nothing to tell apart": lambda: Table(X, np.array([0, 0, 0]), classes=("a",)),
        "row 2, y: label 2 is out of range, expected 0 ... 1 for 2 classes": (
            lambda: Table(X, np.array([0, 2, 1]), classes=("a", "b"))
        ),
        "row 3, y: label -1 is out of range, expected 0 ... 1 for 2 classes": (
            lambda: Table(X, np.array([0, 1, -1]), classes=("a", "b"))
        ),
    }
)


test_refused_dtypes = refusals(
    {
        "TypeError: X has dtype int64, expected a floating-point dtype; cast it: X.astype('float32')": (
            lambda: Table(X.astype(int), Y)
        ),
        "TypeError: y has dtype int64, expected a floating-point dtype for regression (or the names of the classes)": (
            lambda: Table(X, Y.astype(int))
        ),
        "TypeError: y has dtype float64, expected integer class labels": lambda: Table(X, Y, classes=("a", "b")),
    }
)
