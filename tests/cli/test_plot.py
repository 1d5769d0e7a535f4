"""`bpref plot`: runs in one picture, those that go on too, and what is refused."""

import base64
import json
import re
from pathlib import Path

import matplotlib.image
import pytest

from bpref.cli.app import run


@pytest.fixture
def runs(tmp_path):
    """Two runs without a trained network, as they are while they go on; a line of the second is half there."""
    for name, epochs in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        rows = [
            {
                "epoch": e,
                "train_loss": 1 / e,
                "test_loss": 2 / e,
                "test_score": 0.5,
                "gradient_norm": {"0": 3.0, "2": 4.0},
            }
            for e in range(1, epochs + 1)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (tmp_path / name / "run.json").write_text(json.dumps({"score": "R^2"}))
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_l')
    return [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize("count", [1, 2])
def test_runs_in_one_picture(count, runs, tmp_path, capsys):
    picture = tmp_path / "both.png"
    assert run(["plot", *runs[:count], "--output", str(picture)]) == 0
    epochs = ", ".join(f"{name} {n}" for name, n in zip(runs[:count], (3, 2), strict=False))
    assert capsys.readouterr().out == f"written: {picture}, of so many epochs: {epochs}\n"
    pixels = matplotlib.image.imread(picture)
    assert pixels.shape[:2] == (504, 1800)
    assert (pixels[..., :3].min(-1) < 0.9).mean() > 0.005


def test_runs_as_a_page_that_stands_by_itself(runs, tmp_path, capsys):
    file, picture = tmp_path / "runs.html", tmp_path / "both.png"
    assert run(["plot", *runs, "--output", str(picture), "--html", str(file)]) == 0
    page = file.read_text()
    assert base64.b64encode(picture.read_bytes()).decode() in page
    assert "<h2>a</h2>" in page
    assert "<td>3</td><td>0.3333</td><td>0.6667</td><td>0.5</td><td></td>" in page
    assert "<td><code>2</code></td><td>4</td>" in page
    assert "<td><code>score</code></td><td><code>R^2</code></td>" in page
    assert not re.search(r'src="(?!data:)|href=|url\(', page)


def test_a_long_name_hides_no_curve(runs, tmp_path):
    long = tmp_path / ("n" * 200)
    Path(runs[1]).rename(long)
    picture = tmp_path / "both.png"
    assert run(["plot", runs[0], str(long), "--output", str(picture)]) == 0
    assert matplotlib.image.imread(picture).shape[:2] == (504, 1800)


def test_refused(runs, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text('{"epoch": 1}\n')
    picture = tmp_path / "p.png"
    for names, message in (
        ([runs[0], runs[0]], f"{runs[0]} is named twice"),
        ([tmp_path / "none"], f"{tmp_path}/none/metrics.jsonl: No such file or directory"),
        ([tmp_path / "empty"], f"{tmp_path}/empty/metrics.jsonl is empty: no epoch is done yet"),
        ([tmp_path / "other"], f"{tmp_path}/other/metrics.jsonl, line 1: it is no epoch of a run"),
    ):
        assert run(["plot", *map(str, names), "--output", str(picture)]) == 2
        assert capsys.readouterr().err == f"bpref: {message}\n"
    directory, table = tmp_path / "d.png", tmp_path / "t.csv"
    directory.mkdir()
    table.write_text("a,b")
    for output, message in ((directory, "it is a directory"), (table, "expected a file that ends in .png")):
        assert run(["plot", runs[0], "--output", str(output)]) == 2
        assert capsys.readouterr().err == f"bpref: --output {output}: {message}\n"
    assert table.read_text() == "a,b"
    assert not picture.exists()
