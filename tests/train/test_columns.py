"""Columns of text, missing values, separators, and an index: what becomes of a user's own file."""

import numpy as np
import pytest

from bpref.train.data.columns import Column, as_settings, from_settings
from bpref.train.data.read_csv import read_csv
from bpref.train.data.split import rows_of_split


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "t.csv"
        path.write_text(text)
        return path

    return write


def test_text_becomes_a_feature_for_each_class(file):
    table = read_csv(file("color,a,y\nred,1,0.5\nblue,2,1.5\nred,3,2.5\n"), "y")
    np.testing.assert_array_equal(table.X, [[0, 1, 1], [1, 0, 2], [0, 1, 3]])
    assert table.feature_names == ("color=blue", "color=red", "a")
    assert table.columns == (Column("color", ("blue", "red")), Column("a"))
    assert tuple(from_settings({"columns": as_settings(table.columns)})) == table.columns
    assert from_settings({"columns": [], "features": ["a", "b"]}) == [Column("a"), Column("b")]


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_the_separator_is_found(file, separator):
    text = '"a, or; more",b,y\n1,2,0.5\n3,-1,1.5\n'
    head, *rows = text.splitlines()
    path = file(
        "\n".join([head.replace('",b,y', f'"{separator}b{separator}y'), *(r.replace(",", separator) for r in rows)])
    )
    table = read_csv(path, "y")
    assert table.feature_names == ("a, or; more", "b")
    np.testing.assert_array_equal(table.X, [[1, 2], [3, -1]])


def test_an_index_without_a_name_is_left_out_and_another_column_is_not(file):
    path = file(",a,y\n7,1,0.5\n3,2,1.5\n")
    table = read_csv(path, "y")
    assert table.feature_names == ("a",)
    assert table.notes == (f"{path}: the first column has no name and numbers the rows; it is left out",)
    for rows in ("0,1,0.5\n0,2,1.5", "x,1,0.5\ny,2,1.5", "0.5,1,0.5\n1.5,2,1.5"):
        with pytest.raises(ValueError, match="line 1: column 1 has no name"):
            read_csv(file(f",a,y\n{rows}\n"), "y")


ROWS = [
    ("red", "1", "0.5"),
    ("", "2", "1.5"),
    ("blue", "NA", "2.5"),
    ("red", "4", ""),
    ("red", "7", "3.5"),
    ("blue", "9", "1"),
]


def text(rows):
    return "\n".join(["c,a,y", *map(",".join, rows)])


def test_missing_values_are_refused_unless_told_otherwise(file):
    with pytest.raises(ValueError, match=r"line 3, column 'c': the value is missing \(see bpref train --missing\)"):
        read_csv(file(text(ROWS)), "y")
    with pytest.raises(ValueError, match="unknown rule for what is missing 'dropp'; the nearest is drop"):
        read_csv(file(text(ROWS)), "y", missing="dropp")


def test_rows_with_missing_values_are_dropped(file):
    path = file(text(ROWS))
    table = read_csv(path, "y", missing="drop")
    np.testing.assert_array_equal(table.y, [0.5, 3.5, 1])
    np.testing.assert_array_equal(table.X, [[0, 1, 1], [0, 1, 7], [1, 0, 9]])
    assert table.notes == (f"{path}: 3 of 6 rows are left out, where a value is missing",)
    with pytest.raises(ValueError, match="something is missing in each of the 2 rows; none is left"):
        read_csv(file("a,y\n,1\n2,\n"), "y", missing="drop")


def test_the_mean_and_the_most_frequent_class_of_the_rows_to_train_on_are_imputed(file):
    rows = [row for row in ROWS if row[2]]
    for seed in range(4):
        path = file(text(rows))
        if not {0, 3} & set(rows_of_split(5, seed)[0].tolist()):
            continue
        train = [int(row) for row in rows_of_split(5, seed)[0]]
        mean = np.mean([float(rows[row][1]) for row in train if row != 2])
        table = read_csv(path, "y", missing="impute", seed=seed)
        assert table.X[2, 2] == mean
        seen = [rows[row][0] for row in train if row != 1]
        frequent = max(("red", "blue"), key=lambda c: (seen.count(c), -seen.index(c)))
        np.testing.assert_array_equal(table.X[1, :2], [frequent == "blue", frequent == "red"])
        assert table.columns == (Column("c", ("blue", "red"), frequent), Column("a", (), mean))
        assert table.notes[0] == f"{path}, column 'c': 1 missing, in their place its most frequent class, {frequent!r}"
    with pytest.raises(ValueError, match="line 5, column 'y': the value is missing; no target is imputed"):
        read_csv(file(text(ROWS)), "y", missing="impute")


@pytest.mark.parametrize(
    ("rows", "missing", "message"),
    [
        ("a,y\nred,0.5\nred,1.5\n", "refuse", "column 'a': it is 'red' in all rows and tells nothing; leave it out"),
        ("a,y\n1,0.5\nred,1.5\n", "refuse", "line 3, column 'a': 'red' is not a number"),
        ('a,y\n"1,5",0.5\n"2,5",1.5\n', "refuse", "line 2, column 'a': '1,5' is not a number; write it with a point"),
        ('a,y\n1,"0,5"\n2,"1,5"\n', "refuse", "line 2, column 'y': '0,5' is not a number; write it with a point"),
        ("a|y\n1|2\n", "refuse", ": there is one column, 'a|y'; expected commas, semicolons or tabs"),
        ("a,y\n,0.5\nNaN,1.5\n", "impute", "column 'a': no value to train on is there to impute the others from"),
    ],
)
def test_columns_that_mean_nothing(file, rows, missing, message):
    with pytest.raises(ValueError) as error:
        read_csv(file(rows), "y", missing=missing)
    assert str(error.value).endswith(message)


def test_a_name_for_each_row_is_no_class(file):
    names = "".join(f"n{i},{i}.5\n" for i in range(30))
    with pytest.raises(
        ValueError, match="column 'a': 30 different classes in 30 rows are fewer than 2 examples of each"
    ):
        read_csv(file(f"a,y\n{names}"), "y")
