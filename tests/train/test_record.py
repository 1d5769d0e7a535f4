import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from bpref.rules.linear.linear import LinearParams
from bpref.train import Epoch
from bpref.train.keeping.curves import draw
from bpref.train.keeping.record import Record, require_new, rows_of


def epoch(number, test=True):
    norms = {"0": np.array([1.0, 3.0]), "2": np.array([0.5, 0.5])}
    figures = (0.25, 0.5) if test else (None, None)
    return Epoch(number, np.array([2.0, 1.0]) / number, norms, *figures, 0.1234567891)


def test_what_is_written_is_what_is_read(tmp_path):
    record = Record(tmp_path / "deep" / "run")
    record.add(epoch(1))
    lines = record.metrics.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "epoch": 1,
            "steps": 2,
            "train_loss": 1.5,
            "test_loss": 0.25,
            "test_score": 0.5,
            "gradient_norm": {"0": 2.0, "2": 0.5},
            "seconds": 0.123457,
        }
    ]
    record.add(epoch(2)._replace(skipped=1))
    assert json.loads(record.metrics.read_text().splitlines()[1])["skipped"] == 1
    assert len(record.metrics.read_text().splitlines()) == 2
    W, b = np.arange(6, dtype=np.float32).reshape(2, 3).T, np.zeros(3, np.float32)
    record.finish((LinearParams(W, b), ()), [epoch(1), epoch(2)], "test R^2", {"seed": 3})
    path = record.directory / "params.safetensors"
    arrays = load_file(path)
    assert set(arrays) == {"0.W", "0.b"}
    np.testing.assert_array_equal(arrays["0.W"], W)
    with safe_open(path, "np") as file:
        assert json.loads(file.metadata()["settings"]) == {"seed": 3}
    assert (record.directory / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_finite_is_null_and_a_gap_in_the_picture(tmp_path):
    """JSON has no infinity: other readers than Python's refuse the line."""
    record = Record(tmp_path / "run")
    norms = {"0": np.array([np.nan, 1.0])}
    record.add(epoch(1)._replace(test_loss=float("inf"), gradient_norms=norms))
    record.add(epoch(2)._replace(gradient_norms={"0": np.array([1.0, 1.0])}))

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads(record.metrics.read_text().splitlines()[0], parse_constant=refuse)
    assert row["test_loss"] is None
    assert row["gradient_norm"] == {"0": None}
    for runs in ({"": rows_of(record.directory)}, dict.fromkeys("ab", rows_of(record.directory))):
        draw(runs, "test R^2", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_run_without_test_data_has_a_plot_too(tmp_path):
    record = Record(tmp_path / "run")
    record.finish((), [epoch(1, test=False)], "test R^2", {})
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000


def test_a_directory_that_exists_is_refused(tmp_path):
    with pytest.raises(FileExistsError) as error:
        require_new(tmp_path)
    assert str(error.value) == f"the output directory {tmp_path} exists already; name one that does not"


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError) as error:
        require_new(tmp_path / "file" / "run")
    assert str(error.value) == (
        f"the output directory {tmp_path}/file/run cannot be made: {tmp_path}/file is not a writable directory"
    )
