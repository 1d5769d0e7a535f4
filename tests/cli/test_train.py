"""`bpref train`, in process: what it prints, writes and refuses, and with which exit code."""

import base64
import json
import re

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from bpref.cli.app import run
from bpref.layer import Layer
from bpref.rules import RULES
from bpref.train import network
from bpref.train.data import mapped

QUICK = ["--layers", "3", "--epochs", "2", "--schedule", "constant"]


pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_a_run_reports_and_writes(csv_file, out, capsys):
    arguments = ["train", "--data", str(csv_file), "--target", "y", *QUICK, "--out", str(out)]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == (f"{csv_file}: 20 examples, 2 features -> y (regression); 16 to train on, 4 held out by seed 0")
    assert lines[1] == (
        "network 2 -> 3 -> 1, relu, square; adamw, learning rate 0.001 constant, weight decay 0.1, "
        f"2 epochs in batches of 16, float32 on {jax.default_backend()}"
    )
    assert lines[2].startswith(
        "gradient of the first batch, 4 layers with the loss, in float64: largest error against the oracle "
    )
    assert "(least squares on the same split: 1.0000)" in lines[3]
    assert lines[5] == f"written: {out}/params.safetensors, {out}/metrics.jsonl, {out}/loss.png"
    assert printed.err == ""
    assert {name: p.shape for name, p in load_file(out / "params.safetensors").items()} == {
        "0.W": (3, 2),
        "0.b": (3,),
        "2.W": (1, 3),
        "2.b": (1,),
    }
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert lines[3].startswith(f"test R^2 {epochs[1]['test_score']:.4f} ")
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_a_run_stands_by_itself(csv_file, tmp_path, monkeypatch, capsys):
    out, shown = tmp_path / "run", []
    monkeypatch.setattr("webbrowser.open", shown.append)
    arguments = ["train", "--data", str(csv_file), "--target", "y", *QUICK, "--out", str(out)]
    assert run([*arguments, "--report", str(out / "page.html"), "--open"]) == 0
    assert shown == [(out / "page.html").as_uri()]
    page = (out / "page.html").read_text()
    assert base64.b64encode((out / "loss.png").read_bytes()).decode() in page
    assert "<h1>run</h1>" in page
    assert page.count("<tr><td>1</td>") == page.count("<tr><td>2</td>") == 1
    assert "<code>learning_rate</code></td><td><code>0.001</code>" in page
    assert "<code>2</code>" in page[page.index("Gradient norms in the last epoch") :]


def test_what_is_written_predicts_in_the_users_own_units(csv_file, out, capsys):
    """params.safetensors alone, NumPy alone: the test R^2 that the run printed."""
    options = ["--layers", "8", "--epochs", "20", "--learning-rate", "0.05", "--out", str(out)]
    assert run(["train", "--data", str(csv_file), "--target", "y", *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    p = load_file(out / "params.safetensors")
    with safe_open(out / "params.safetensors", "np") as file:
        units = json.loads(file.metadata()["settings"])["units"]
    table = np.loadtxt(csv_file, delimiter=",", skiprows=1)
    held_out = np.random.RandomState(0).permutation(20)[:4]
    X, y = table[held_out, :2], table[held_out, 2]
    A = np.maximum((X - units["mean"]) / units["scale"] @ p["0.W"].T + p["0.b"], 0)
    y_hat = (A @ p["2.W"].T + p["2.b"])[:, 0] * units["target_scale"] + units["target_mean"]
    r2 = 1 - np.sum((y - y_hat) ** 2) / np.sum((y - y.mean()) ** 2)
    assert (units["features"], units["target"], units["classes"]) == (["a", "b"], "y", [])
    assert float(printed[3].split()[2]) == pytest.approx(r2, abs=1e-4)


def test_without_arguments_it_is_the_seeds_setting_and_beats_the_linear_baseline(capsys):
    assert run(["train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "diabetes: 442 examples, 10 features -> progression (regression); 353 to train on, 89 held out by seed 0"
    )
    assert " -> 1, relu, square; sgd, " in lines[1]
    r2, baseline = float(lines[3].split()[2]), float(lines[3].split("split: ")[1].split(")")[0])
    assert baseline == 0.3322
    assert r2 > baseline


def test_digits_reach_97_percent(capsys):
    assert run(["train", "digits", "--epochs", "12"]) == 0
    assert float(capsys.readouterr().out.splitlines()[3].split()[2].rstrip(",")) >= 0.97


def test_classes_of_an_npz_in_the_backward(tmp_path, capsys):
    draw = np.random.default_rng(0)
    X = draw.normal(size=(60, 2))
    np.savez(tmp_path / "t.npz", X=X, label=np.where(X[:, 0] > 0, "up", "down"))
    arguments = ["train", "--data", str(tmp_path / "t.npz"), "--target", "label", "--layers", "16", "--epochs", "30"]
    more = ["--loss", "sigmoid_cross_entropy", "--learning-rate", "0.05", "--update-in-backward", "--dtype", "bfloat16"]
    assert run([*arguments, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("2 features -> label (2 classes); 48 to train on, 12 held out by seed 0")
    assert f"bfloat16 on {jax.default_backend()}" in lines[1]
    assert float(lines[3].split()[2].rstrip(",")) >= 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diabets"], "unknown data set or model 'diabets'; the nearest are diabetes, digits"),
        (["my.csv"], "'my.csv' is no data set or model; a table of your own is --data my.csv"),
        (["digits", "--data", "t.csv"], "both 'digits' and --data are given; train on one of them"),
        (["--layout", "tensor"], "--layout goes with --mesh, the devices among which parameters are divided"),
        (["--mesh", "data=64"], "mesh 'data=64' is of 64 devices, and there is 1"),
        (["--mesh", "data=1", "--layout", "tensr"], "unknown layout 'tensr'; the nearest is tensor"),
        (["--target", "y"], "--target goes with --data, a table of your own"),
        (["--task", "regression"], "--task goes with --data, a table of your own"),
        (["--data", "CSV"], "--data with a .csv needs --target, the name of the column to predict"),
        (["--data", "CSV", "--target", "z"], "unknown column 'z'; there is a, b, y"),
        (
            ["--data", "CSV", "--target", "y", "--task", "regresion"],
            "unknown task 'regresion'; the nearest is regression",
        ),
        (["--data", "none.csv", "--target", "y"], "none.csv: No such file or directory"),
        (["--data", "t.parquet"], "t.parquet: expected a file that ends in .csv, .tsv, .npz or .npy"),
        (["--layers", "64,0"], "layers is '64,0', expected the width of each hidden layer, at least 1, such as 64,64"),
        (["--layers", ""], "layers is '', expected the width of each hidden layer, at least 1, such as 64,64"),
        (["--layers", "a"], "layers is 'a', expected the width of each hidden layer, at least 1, such as 64,64"),
        (["--activation", "rellu"], "unknown activation 'rellu'; the nearest are relu, relu6, prelu"),
        (["--loss", "sqare"], "unknown loss 'sqare'; the nearest is square"),
        (
            ["--loss", "softmax_cross_entropy"],
            "loss softmax_cross_entropy is for classes, and this target is a quantity; there is absolute, huber, "
            "log_cosh, quantile, square",
        ),
        (["--optimizer", "adamm"], "unknown optimizer 'adamm'; the nearest are adam, radam, nadam"),
        (["--schedule", "cos"], "unknown schedule 'cos'; the nearest are cosine, constant"),
        (["--dtype", "float17"], "unknown dtype 'float17'; the nearest are float16, bfloat16, float64"),
        (["--device", "gpuu"], "unknown device 'gpuu'; there is gpu, tpu, cpu"),
        (["--learning-rate", "0"], "learning rate is 0, expected a positive number"),
        (["--learning-rate", "-0.1"], "learning rate is -0.1, expected a positive number"),
        (["--learning-rate", "nan"], "learning rate is nan, expected a positive number"),
        (["--weight-decay", "-1"], "weight decay is -1, expected 0 or a positive number"),
        (["--clip", "norm:1"], "unknown kind of clipping 'norm'; there is global, leaf, value"),
        (["--accumulate", "0"], "accumulate is 0, expected at least 1 batch"),
        (["--accumulate", "4401"], "accumulate is 4401 batches, and the run has 4400 steps: no update"),
        (["--average", "2"], "average is 2, expected a decay from 0 to below 1, such as 0.999"),
        (
            ["--update-in-backward", "--clip", "1"],
            "--clip needs the gradient of the whole network, not --update-in-backward",
        ),
        (
            ["--update-in-backward", "--dtype", "float16"],
            "--dtype float16 needs the gradient of the whole network, not --update-in-backward",
        ),
        (["--epochs", "0"], "epochs is 0, expected at least 1"),
        (["--epochs", "-3"], "epochs is -3, expected at least 1"),
        (["--batch-size", "0"], "batch size is 0, expected 1 ... 353: there are 353 examples to train on"),
        (["--batch-size", "354"], "batch size is 354, expected 1 ... 353: there are 353 examples to train on"),
        (["--seed", "-1"], "seed is -1, expected an integer in 0 ... 4294967295"),
        (["--out", "TMP"], "the output directory TMP exists already; name one that does not"),
        (["--out", "CSV/run"], "the output directory CSV/run cannot be made: CSV is not a writable directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, csv_file, tmp_path, capsys):
    def placed(text):
        return text.replace("CSV", str(csv_file)).replace("TMP", str(tmp_path))

    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(["train", *map(placed, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"bpref: {placed(message)}\n"
    assert printed.out == ""
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_network_that_does_not_fit_into_memory(capsys):
    assert run(["train", "--layers", "1000000000000"]) == 2
    message = "a network with layers 1000000000000 in batches of 32 does not fit into memory"
    assert capsys.readouterr().err == f"bpref: {message}\n"


def test_data_that_cannot_be_trained_on_is_exit_code_2(csv_file, capsys):
    csv_file.write_text("a,y\n1,2.5\n,3.5\n")
    assert run(["train", "--data", str(csv_file), "--target", "y"]) == 2
    assert (
        capsys.readouterr().err
        == f"bpref: {csv_file}, line 3, column 'a': the value is missing (see bpref train --missing)\n"
    )


def test_a_parameter_that_there_is_not(capsys):
    assert run(["train", "--layers", "2", "--freeze", "0.*,1.W"]) == 2
    assert capsys.readouterr().err == "bpref: no parameter is called '1.W'; there is 0.W, 0.b, 2.W, 2.b\n"


def test_a_device_that_is_not_there(capsys):

    if any(device.platform == "tpu" for device in jax.devices()):
        pytest.skip("there is a TPU here")
    assert run(["train", "--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("bpref: device tpu: there is none here that JAX can use; there is cpu")


def test_a_directory_that_cannot_be_made_is_named(capsys, csv_file, monkeypatch, out):
    def refused(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    assert run(["train", "--data", str(csv_file), "--target", "y", *QUICK, "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"bpref: {out}: Permission denied\n"


def wrong_tanh():
    right = RULES["tanh"].make()

    def backward(params, cache, dy):
        return (), 1.001 * right.backward(params, cache, dy)[1]

    return Layer(right.init, right.forward, backward, "tanh")


def test_a_wrong_gradient_is_not_trained(monkeypatch, csv_file, tmp_path, capsys):
    monkeypatch.setitem(network.ACTIVATIONS, "tanh", wrong_tanh)
    arguments = ["train", "--data", str(csv_file), "--target", "y", "--activation", "tanh", *QUICK]
    assert run([*arguments, "--out", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr()
    assert printed.err == ("bpref: not trained, since the hand-derived gradient is wrong in 0.1 tanh (1.0e-03)\n")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(csv_file, capsys):
    arguments = ["train", "--data", str(csv_file), "--target", "y", "--layers", "3", "--schedule", "constant"]
    assert run([*arguments, "--optimizer", "sgd", "--learning-rate", "1e30"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bpref: training stopped at step 2 (epoch 2): the ")
    assert error.endswith(" is not finite any more; lower the learning rate (it is 1e+30)\n")


def test_steps_that_are_skipped_are_counted(csv_file, capsys):
    arguments = ["train", "--data", str(csv_file), "--target", "y", "--layers", "3", "--schedule", "constant"]
    much = ["--optimizer", "sgd", "--learning-rate", "1e30", "--epochs", "4", "--most-skipped", "3"]
    assert run([*arguments, *much]) == 0
    assert "3 steps skipped, since a loss or a gradient was not finite\n" in capsys.readouterr().out


def test_every_option_has_a_help_text_and_there_are_examples(capsys):
    assert run(["train", "--help"]) == 0
    text = capsys.readouterr().out
    options = ("--data", "--target", "--task", "--layers", "--activation", "--loss", "--optimizer", "--learning-rate")
    more = ("--schedule", "--weight-decay", "--epochs", "--batch-size", "--seed", "--dtype", "--update-in-backward")
    lines = [line.split() for line in text.splitlines()]
    for option in (*options, *more, "--device", "--out"):
        assert any(line[:1] == [option] and len(line) > 3 for line in lines), option
    assert "bpref train digits --epochs 20 --out run" in " ".join(text.split())


def test_a_table_in_npy_files_larger_than_memory_is_trained_on_and_predicted(tmp_path, out, monkeypatch, capsys):
    monkeypatch.setattr(mapped, "IN_MEMORY", 0)
    X = np.random.default_rng(0).normal(size=(60, 2))
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", 10 * X[:, 0] + 100)
    data = ["--data", str(tmp_path / "X.npy")]
    target = ["--target", str(tmp_path / "y.npy")]
    small = ["--layers", "8", "--epochs", "60", "--learning-rate", "0.02", "--out", str(out)]
    assert run(["train", *data, *target, *small]) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"^test R\^2 (\S+), test loss", printed, re.M)[1]) > 0.9
    assert run(["predict", str(out), *data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "y.npy")
    np.testing.assert_allclose([float(line) for line in lines[1:]], 10 * X[:, 0] + 100, atol=10)
    assert run(["train", *data]) == 2
    message = "--data with a .npy needs --target, another .npy with what is to be predicted"
    assert capsys.readouterr().err == f"bpref: {message}\n"
    assert run(["train", *data, "--target", "/nowhere.npy"]) == 2
    assert capsys.readouterr().err == "bpref: /nowhere.npy: No such file or directory\n"
