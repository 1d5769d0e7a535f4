"""What a table refuses, and the exact words."""

import numpy as np
import pytest

from bpref.train import Table

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


@pytest.mark.parametrize(
    ("X", "y", "more", "message"),
    [
        (X, Y[:2], {}, "y has shape (2,), expected (3,), one for each row of X"),
        (X, Y, {"feature_names": ("a",)}, "X has 2 columns, but there are 1 feature names"),
        (X[0], Y, {}, "X has shape (2,), expected (N, d): one row for each example"),
        (X[:0], Y[:0], {}, "X has shape (0, 2): the data is empty"),
        (X[:, :0], Y, {}, "X has shape (3, 0), expected (N, d) with at least one feature d"),
        (X[:1], Y[:1], {}, "the data has 1 example, expected at least two: to train and to test on"),
        (with_value(np.nan), Y, {"feature_names": ("age", "bmi")}, "row 2, bmi: nan is not a finite number"),
        (with_value(-np.inf), Y, {}, "row 2, column 2: -inf is not a finite number"),
        (X, np.array([1.0, 2.0, np.inf]), {"target_name": "price"}, "row 3, price: inf is not a finite number"),
        (
            np.array([[1.0, 2.0], [1.0, 3.0]]),
            Y[:2],
            {"feature_names": ("age", "bmi")},
            "age is constant (1 in all 2 rows) and tells nothing; leave it out",
        ),
        (X, np.ones(3), {}, "y is constant (1 in all 3 rows): there is nothing to learn"),
        (X, np.array([0, 0, 0]), {"classes": ("a",)}, "y has one class, 'a': there is nothing to tell apart"),
        (
            X,
            np.array([0, 2, 1]),
            {"classes": ("a", "b")},
            "row 2, y: label 2 is out of range, expected 0 ... 1 for 2 classes",
        ),
        (
            X,
            np.array([0, 1, -1]),
            {"classes": ("a", "b")},
            "row 3, y: label -1 is out of range, expected 0 ... 1 for 2 classes",
        ),
    ],
)
def test_refused_values(X, y, more, message):
    with pytest.raises(ValueError) as error:
        Table(X, y, **more)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("X", "y", "classes", "message"),
    [
        (X.astype(int), Y, (), "X has dtype int64, expected a floating-point dtype; cast it: X.astype('float32')"),
        (
            X,
            Y.astype(int),
            (),
            "y has dtype int64, expected a floating-point dtype for regression (or the names of the classes)",
        ),
        (X, Y, ("a", "b"), "y has dtype float64, expected integer class labels"),
    ],
)
def test_refused_dtypes(X, y, classes, message):
    with pytest.raises(TypeError) as error:
        Table(X, y, classes=classes)
    assert str(error.value) == message
