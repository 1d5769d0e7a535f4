"""`bpref predict`: what a trained network says of other rows, in the units and names of the user's own file."""

import csv
import io

import jax
import numpy as np
import pytest

from bpref.cli.app import run

pytestmark = pytest.mark.usefixtures("standard_promotion")

COLORS = ("red", "green", "blue")


def rows():
    rng = np.random.default_rng(0)
    for i in range(60):
        color, size = COLORS[i % 3], round(float(rng.uniform(1, 9)), 2)
        price = 3 * size + 5 * COLORS.index(color)
        yield i, color, size if i % 10 else "", f"{price:.2f}", "dear" if price > 20 else "cheap"


def written(path, header, table):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([header, *table])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of each kind, on a file as pandas writes it."""
    folder = tmp_path_factory.mktemp("predict")
    prices = written(folder / "prices.csv", ["", "color", "size", "price"], [row[:4] for row in rows()])
    kinds = written(folder / "kinds.tsv", ["color", "size", "kind"], [(*row[1:3], row[4]) for row in rows()])
    with jax.numpy_dtype_promotion("standard"):
        quick = ["--epochs", "60", "--learning-rate", "0.02", "--layers", "16"]
        arguments = ["train", *quick, "--data"]
        assert (
            run([*arguments, str(prices), "--target", "price", "--missing", "impute", "--out", str(folder / "price")])
            == 0
        )
        assert (
            run([*arguments, str(kinds), "--target", "kind", "--missing", "drop", "--out", str(folder / "kind")]) == 0
        )
    return folder


def predicted(capsys, *arguments):
    capsys.readouterr()
    assert run(["predict", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    return list(csv.reader(io.StringIO(printed.out))), printed.err


def test_quantities_come_in_their_own_units(folder, capsys):
    """Columns in another order, and one that was never seen."""
    new = written(folder / "new.csv", ["size", "extra", "color"], [(5, 1, "red"), (2, 1, "blue"), ("NA", 1, "green")])
    (header, *values), err = predicted(capsys, folder / "price", "--data", new)
    assert header == ["price"]
    np.testing.assert_allclose(np.array(values, float)[:2, 0], [15, 16], atol=2)
    assert 10 < float(values[2][0]) < 35, "the mean of size is in the place of what is missing"
    assert err == f"bpref: {new}: left out, since it was not trained on: 'extra'\n"


def test_classes_come_by_name_with_their_probabilities(folder, capsys):
    new = written(folder / "new.csv", ["color", "size"], [("red", 8.5), ("green", 1.5)])
    (header, *values), err = predicted(capsys, folder / "kind", "--data", new)
    assert header == ["kind", "probability of cheap", "probability of dear"]
    assert [row[0] for row in values] == ["dear", "cheap"]
    p = np.array([row[1:] for row in values], float)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert (p.argmax(1) == [1, 0]).all()
    assert err == ""


def test_to_a_file_and_of_the_file_that_was_trained_on(folder, capsys):
    out = folder / "out.csv"
    capsys.readouterr()
    assert run(["predict", str(folder / "price"), "--data", str(folder / "prices.csv"), "--output", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"written: {out}, 60 rows\n"
    assert "the first column has no name and numbers the rows; it is left out" in printed.err
    came = np.loadtxt(out, skiprows=1)
    truth = np.array([float(row[3]) for row in rows()])
    known = np.array([row[2] != "" for row in rows()])
    assert 1 - ((came - truth)[known] ** 2).sum() / ((truth - truth.mean())[known] ** 2).sum() > 0.9


def test_an_archive(tmp_path, out, capsys):
    X = np.random.default_rng(0).normal(size=(40, 2))
    np.savez(tmp_path / "t.npz", X=X, y=(X[:, 0] > 0).astype(int))
    quick = ["--epochs", "20", "--layers", "8", "--loss", "square"]
    assert run(["train", "--data", str(tmp_path / "t.npz"), "--out", str(out), *quick]) == 0
    (header, *values), _ = predicted(capsys, out, "--data", tmp_path / "t.npz")
    assert header == ["y", "score of 0", "score of 1"]
    assert len(values) == 40
    np.savez(tmp_path / "u.npz", X=X[:, :1])
    assert run(["predict", str(out), "--data", str(tmp_path / "u.npz")]) == 2
    assert "X has 1 columns, expected the 2 that were trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of", "header", "row", "message"),
    [
        ("price", ["size"], [1], "FILE: there is no column 'color', which was trained on"),
        (
            "price",
            ["color", "size"],
            ["rad", 1],
            "FILE, line 2, column 'color': unknown class 'rad'; the nearest is red",
        ),
        ("price", ["color", "size"], ["red", "big"], "FILE, line 2, column 'size': 'big' is not a number"),
        (
            "kind",
            ["color", "size"],
            ["red", ""],
            "FILE, line 2, column 'size': the value is missing (see bpref train --missing)",
        ),
    ],
)
def test_rows_that_are_refused(folder, capsys, of, header, row, message):
    file = written(folder / "bad.csv", header, [row])
    assert run(["predict", str(folder / of), "--data", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"bpref: {message.replace('FILE', str(file))}\n"
    assert printed.out == ""


def test_wrong_uses(folder, capsys):
    run_of_table, stopped, kinds = str(folder / "kind"), folder / "stopped", str(folder / "kinds.tsv")
    stopped.mkdir()
    (stopped / "metrics.jsonl").touch()
    for arguments, message in (
        ([run_of_table, "--data", "none.csv"], "none.csv: No such file or directory"),
        ([run_of_table, "--data", "t.parquet"], "t.parquet: expected a file that ends in .csv, .tsv, .npz or .npy"),
        ([run_of_table], "Missing option '--data'."),
        (
            ["nowhere", "--data", "a.csv"],
            "nowhere: there is no params.safetensors, as `bpref train --out nowhere` leaves it",
        ),
        (
            [str(stopped), "--data", "a.csv"],
            f"{stopped}: the run has not come to its end; the same command with --resume goes on with it",
        ),
        (
            [run_of_table, "--data", "a.csv", "--output", "/nowhere/a.csv"],
            "--output /nowhere/a.csv: No such file or directory",
        ),
        (
            [run_of_table, "--data", kinds, "--output", kinds],
            f"--output {kinds}: it is --data, which would be lost",
        ),
    ):
        assert run(["predict", *arguments]) == 2
        assert capsys.readouterr().err == f"bpref: {message}\n"
    assert run(["train", "digits", "--missing", "drop"]) == 2
    assert "--missing goes with --data, a table of your own" in capsys.readouterr().err
