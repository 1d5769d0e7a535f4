"""`bpref train --watch`: a row for each layer, in print and in the record, and a dead network named."""

import json

import numpy as np
import pytest

from bpref.cli.app import run

pytestmark = pytest.mark.usefixtures("standard_promotion")

HEADER = "layer y mean spread zeros largest not finite dy mean spread zeros largest not finite"
TEXT = ["--context", "8", "--width", "8", "--depth", "1", "--heads", "2", "--epochs", "1"]


def test_a_table_after_epochs_that_double_and_after_the_last(csv_file, out, capsys):
    arguments = ["train", "--data", str(csv_file), "--target", "y", "--layers", "3", "--epochs", "3", "--watch"]
    assert run([*arguments, "--activation", "tanh", "--out", str(out)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(line[2]) for line in lines if line[:2] == ["after", "epoch"]] == [1, 2, 3]
    start = lines.index(["after", "epoch", "3"])
    assert " ".join(lines[start + 1]) == HEADER
    rows = lines[start + 2 : start + 6]
    assert [" ".join(row[:2]) for row in rows] == ["0.0 linear", "0.1 tanh", "0.2 linear", "1 square"]
    assert rows[3][2:] == [rows[3][2], "0.0e+00", "0%", rows[3][2], "0", "1.0e+00", "0.0e+00", "0%", "1.0e+00", "0"]
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(epochs) == 3
    output = epochs[2]["watched"]["0.1 tanh"]["output"]
    assert [f"{output['mean']:.1e}", f"{output['spread']:.1e}"] == rows[1][2:4]
    assert set(output) == {"mean", "spread", "zeros", "not_finite", "largest", "numbers"}


def test_without_it_the_record_is_as_it_was(csv_file, out):
    assert run(["train", "--data", str(csv_file), "--target", "y", "--epochs", "1", "--out", str(out)]) == 0
    assert "watched" not in json.loads((out / "metrics.jsonl").read_text())


def test_a_dead_network_is_named_and_the_run_ends(out, capsys):
    options = ["--layers", "8,8", "--learning-rate", "3", "--epochs", "3", "--out", str(out)]
    assert run(["train", "--watch", *options]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("after epoch") == 1
    assert printed.err == (
        "bpref: training stopped after epoch 1: the output of 0.3 relu is all zeros, and nothing is learnt through it "
        f"any more; the metrics so far are in {out / 'metrics.jsonl'}\n"
    )
    (line,) = (out / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["watched"]["0.3 relu"]["output"]["zeros"] == 1.0


@pytest.mark.parametrize("model", ["mixture", "vit"])
def test_models_are_watched_turn_by_turn(model, tmp_path, capsys):
    file, out = tmp_path / "t.txt", tmp_path / "run"
    file.write_text("the cat sat on the mat, and the dog sat on the log. " * 20)
    options = [*TEXT, "--text", str(file)] if model != "vit" else ["--width", "8", "--depth", "1", "--epochs", "1"]
    assert run(["train", model, *options, "--watch", "--update-in-backward", "--out", str(out)]) == 0
    assert "after epoch 1" in capsys.readouterr().out
    watched = json.loads((out / "metrics.jsonl").read_text())["watched"]
    of_turns = [seen for seen in watched.values() if seen["output"] and np.ndim(seen["output"]["mean"])]
    assert of_turns
    assert all(len(seen["output"][name]) == 1 for seen in of_turns for name in seen["output"])
