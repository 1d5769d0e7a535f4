"""A user's own file, good and bad; every message names the line and the column."""

import numpy as np
import pytest

from bpref.train.data import mapped, rows
from bpref.train.data.read_csv import read_csv
from bpref.train.data.read_npz import read_npy_table, read_npz
from bpref.train.data.split import split


@pytest.fixture
def npz_file(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "t.npz", **arrays)
        return tmp_path / "t.npz"

    return write


def test_csv_of_numbers(as_csv):
    table = read_csv(as_csv("a, b,y\n1,2,0.5\n\n3,4e0,1.5\n5,-6,2.5\n"), "y")
    np.testing.assert_array_equal(table.X, [[1, 2], [3, 4], [5, -6]])
    np.testing.assert_array_equal(table.y, [0.5, 1.5, 2.5])
    assert (table.feature_names, table.target_name, table.task) == (("a", "b"), "y", "regression")
    assert table.X.dtype == np.float64


def test_a_name_of_several_lines_is_one(as_csv, monkeypatch):
    path = as_csv('"a\nb",y\n1,0.5\n2,1.5\n')
    for in_memory in (mapped.IN_MEMORY, 0):
        monkeypatch.setattr(mapped, "IN_MEMORY", in_memory)
        assert read_csv(path, "y").feature_names == ("a b",)
        with pytest.raises(ValueError, match=r"^unknown column 'z'; there is a b, y$"):
            read_csv(path, "z")


def test_csv_of_text_classes(as_csv):
    table = read_csv(as_csv("kind,a\ncat,1\ndog,2\ncat,3\n"), "kind")
    assert table.classes == ("cat", "dog")
    np.testing.assert_array_equal(table.y, [0, 1, 0])


def test_few_whole_numbers_are_classes_unless_told_otherwise(as_csv):
    path = as_csv("a,y\n1,10\n2,9\n3,10\n4,9.0\n")
    assert read_csv(path, "y").classes == ("9", "10")
    np.testing.assert_array_equal(read_csv(path, "y").y, [1, 0, 1, 0])
    assert read_csv(path, "y", "regression").classes == ()


def test_many_whole_numbers_are_a_quantity_unless_told_otherwise(as_csv):
    path = as_csv("a,y\n1,10\n2,9\n3,8\n4,7\n")
    assert read_csv(path, "y").task == "regression"
    assert read_csv(path, "y", "classification").classes == ("7", "8", "9", "10")


def test_a_quantity_or_a_name_for_each_row_is_refused_as_classes(as_csv, npz_file):
    prices = "".join(f"{i},{1000 + 7 * (i % 1155)}\n" for i in range(3000))
    with pytest.raises(ValueError) as refused:
        read_csv(as_csv(f"a,price\n{prices}"), "price", "classification")
    assert str(refused.value).split(": ", 1)[1] == (
        "1,155 different numbers in 3,000 rows are a quantity, and no classes; the task for that is regression. If "
        "they are classes, number them 0 ... 1154 or give them names"
    )
    names = "".join(f"{i},n{i}\n" for i in range(30))
    with pytest.raises(ValueError) as refused:
        read_csv(as_csv(f"a,name\n{names}"), "name")
    assert str(refused.value).split(": ", 1)[1] == (
        "30 different classes in 30 rows are fewer than 2 examples of each; is it the right column?"
    )
    with pytest.raises(ValueError, match=r"^y: 21 different classes in 30 rows are fewer than 2 examples of each"):
        read_npz(npz_file(X=np.arange(30.0)[:, None], y=np.arange(30) % 21))


def test_many_classes_with_enough_examples_are_classes(as_csv):
    for name, examples in ((lambda c: 7 * c, 10), (lambda c: c, 2), (lambda c: c + 1, 2), (lambda c: f"n{c}", 2)):
        rows = "".join(f"{i},{name(i % 30)}\n" for i in range(30 * examples))
        assert len(read_csv(as_csv(f"a,y\n{rows}"), "y", "classification").classes) == 30


TARGET_MISSING = "the value is missing; no target is imputed, --missing drop leaves the row out"


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("", None, "PATH: the file is empty"),
        ("a,y\n", None, "PATH: there is a header and no data"),
        ("a,y\n1,2\n", None, "the data has 1 example, expected at least two: to train and to test on"),
        ("1,2\n3,4\n", None, "PATH, line 1: expected the names of the columns, got the numbers 1, 2"),
        ("a,,y\n1,2,3\n", None, "PATH, line 1: column 2 has no name"),
        ("a,a,y\n1,2,3\n", None, "PATH, line 1: the name 'a' stands 2 times"),
        ("a,b\n1,2\n", None, "unknown column 'y'; there is a, b"),
        ("y\n1\n2\n", None, "PATH: there is no column but the target 'y'"),
        ("a,y\n1,2\n3\n", None, "PATH, line 3: 1 values, expected 2 as in the header"),
        ("a,y\n1,2\n\n,4\n", None, "PATH, line 4, column 'a': the value is missing (see bpref train --missing)"),
        ("a,y\n1,2\n3,\n", None, f"PATH, line 3, column 'y': {TARGET_MISSING}"),
        ("a,y\n1,2\nred,4\n", None, "PATH, line 3, column 'a': 'red' is not a number"),
        ("a,y\n1,2.5\n2,NA\n", None, f"PATH, line 3, column 'y': {TARGET_MISSING}"),
        ("a,y\n1,cat\n2,dog\n", "regression", "PATH, line 2, column 'y': 'cat' is not a number"),
        ("a,y\n1,2\nnan,4\n", None, "PATH, line 3, column 'a': the value is missing (see bpref train --missing)"),
        ("a,y\n1,2.5\n2,inf\n", None, "PATH, line 3, column 'y': 'inf' is not a finite number"),
        ("a,b,y\n1,7,2.5\n2,7,3.5\n", None, "b is constant (7 in all 2 rows) and tells nothing; leave it out"),
        ("a,y\n1,2.5\n2,2.5\n", None, "y is constant (2.5 in all 2 rows): there is nothing to learn"),
        ("a,y\n1,cat\n2,cat\n", None, "y has one class, 'cat': there is nothing to tell apart"),
        (
            "a,y\n1,0\n2,1.5\n",
            "classification",
            "PATH, line 3, column 'y': the class label 1.5 is neither an integer nor text",
        ),
        (
            b"a,y\n1,\xff\n",
            None,
            "PATH: not a CSV file in UTF-8 ('utf-8' codec can't decode byte 0xff in position 6: invalid start byte)",
        ),
    ],
)
def test_bad_csv(as_csv, text, task, message):
    path = as_csv(text)
    with pytest.raises(ValueError) as error:
        read_csv(path, "y", task)
    assert str(error.value) == message.replace("PATH", str(path))


X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])


def test_npz(npz_file):
    table = read_npz(npz_file(X=X, y=np.array([[1.0], [2.0], [3.0]]), feature_names=["a", "b"]))
    assert (table.y.shape, table.feature_names, table.task) == ((3,), ("a", "b"), "regression")
    assert read_npz(npz_file(X=X, t=np.array(["u", "v", "u"])), "t").classes == ("u", "v")
    assert read_npz(npz_file(X=X, y=np.array([0, 1, 1]))).classes == ("0", "1")
    assert read_npz(npz_file(X=X, y=np.array([0, 1, 1])), task="regression").y.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "task", "kind", "message"),
    [
        ({"X": X}, None, ValueError, "unknown array 'y'; there is X"),
        ({"y": X[:, 0]}, None, ValueError, "unknown array 'X'; there is y"),
        (
            {"X": X.astype(int), "y": X[:, 0]},
            None,
            TypeError,
            "X has dtype int64, expected a floating-point dtype; cast it: X.astype('float32')",
        ),
        ({"X": X, "y": X}, None, ValueError, "y has shape (3, 2), expected (3,), one for each row of X"),
        (
            {"X": X, "y": np.array([1, 2, 3])},
            None,
            ValueError,
            "row 3, y: label 3 is out of range, expected 0 ... 2 for 3 distinct labels",
        ),
        (
            {"X": X, "y": np.array([0, 1, -1])},
            None,
            ValueError,
            "row 3, y: label -1 is out of range, expected 0 ... 2 for 3 distinct labels",
        ),
        (
            {"X": X, "y": np.array([0.0, 1.0, 0.5])},
            "classification",
            ValueError,
            "row 3, y: label 0.5 is not an integer",
        ),
        (
            {"X": X, "y": np.array([1j, 2, 3])},
            None,
            TypeError,
            "y has dtype complex128, expected integer or text class labels",
        ),
    ],
)
def test_bad_npz(npz_file, arrays, task, kind, message):
    with pytest.raises(kind) as error:
        read_npz(npz_file(**arrays), task=task)
    assert str(error.value) == message


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "t.npz"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"not a \.npz archive of plain arrays, as numpy.savez writes it"):
        read_npz(path)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_table_larger_than_memory_is_split_as_one_in_memory(task, npz_file, tmp_path, monkeypatch):
    """Of an .npz, and of two .npy; looked at two rows at a time."""
    draw = np.random.default_rng(0)
    X = draw.normal(3, 2, size=(40, 3)).astype(np.float32)
    y = X.sum(1) if task == "regression" else (X.sum(1) > 9).astype(int)
    path = npz_file(X=X, y=y)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", y)
    expected = split(read_npz(path), seed=0)
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    monkeypatch.setattr(rows, "LOOKED_AT", 32)
    for table in (read_npz(path), read_npy_table(tmp_path / "X.npy", tmp_path / "y.npy")):
        came = split(table, seed=0)
        assert (type(came.X), came.X.shape, table.task) == (rows.Rows, (32, 3), task)
        for ours, theirs in zip(came, expected, strict=True):
            v = ours[:] if isinstance(ours, rows.Rows) else ours
            np.testing.assert_allclose(v, theirs, rtol=1e-12, atol=1e-12)


def test_a_bad_table_larger_than_memory_names_the_row_and_the_column(npz_file, monkeypatch):
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    monkeypatch.setattr(rows, "LOOKED_AT", 32)
    X = np.arange(20.0).reshape(10, 2)
    X[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"^row 8, column 2: nan is not a finite number$"):
        read_npz(npz_file(X=X, y=np.arange(10.0)))
    X[:, 1] = 5
    with pytest.raises(ValueError, match=r"^column 2 is constant \(5 in all 10 rows\) and tells"):
        read_npz(npz_file(X=X, y=np.arange(10.0)))
