"""`bpref compile`, as a user calls it."""

import json

from bpref.cli.app import run
from bpref.cli.compile import summary
from bpref.devices.compiling import Compiled
from bpref.devices.works import Beside
from tests.conftest import needs_libtpu

HAND, AUTODIFF = (
    Compiled(temp, 10, 10, accessed, 100, cycles, {}, 0) for temp, accessed, cycles in [(4, 90, 1), (16, 90, 4)]
)


@needs_libtpu
def test_a_row_for_each_rule_and_its_figures(capsys, tmp_path):
    file = tmp_path / "figures.json"
    assert run(["compile", "relu", "tanh", "--for", "tpu-v5e", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tpu-v5e, jax ")
    assert [line.split()[0] for line in out.splitlines() if " MB / " in line] == ["relu", "tanh"]
    assert "\n2 compiled; geometric means, by hand / by autodiff: " in out
    written = json.loads(file.read_text())
    assert written["machine"]["target"] == "tpu-v5e"
    assert written["settings"]["dtype"] == "float32"
    assert list(written["rows"]) == ["relu", "tanh"]
    row = written["rows"]["relu"]
    assert row["kind"] == "activation"
    assert row["hand"]["accessed"] <= row["autodiff"]["accessed"]


def test_what_goes_between_chips_and_what_does_not_fit_is_said(capsys, monkeypatch):
    rows = {
        "relu": Beside(
            "activation", "", HAND._replace(collectives={"all-reduce": 3, "all-gather": 1}, sent=2_500_000), AUTODIFF
        ),
        "gpt": Beside("model", "4 x 256", HAND, "compile_for: tpu-v5e: 9 G exceed 8 G"),
    }
    monkeypatch.setattr("bpref.cli.compile.target", lambda name: type("T", (), {"platform": "tpu"}))
    monkeypatch.setattr("bpref.cli.compile.version", lambda package: "1")
    monkeypatch.setattr("bpref.cli.compile.beside", lambda name, target, settings: rows[name])
    assert run(["compile", "relu", "gpt", "--for", "tpu-v5e"]) == 0
    out = capsys.readouterr().out
    assert "\n  by hand: 1 all-gather, 3 all-reduce; 2.50 MB sent by each device\n" in out
    assert "\n  by autodiff: compile_for: tpu-v5e: 9 G exceed 8 G\n" in out
    assert summary(rows) == (
        "2 compiled; geometric means, by hand / by autodiff: temp memory 0.25 (of 1 where both need any), "
        "bytes accessed 1.00 (of 1 where both need any), cycles 0.25 (of 1 where both need any)"
    )


def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(capsys, tmp_path, monkeypatch):
    def missing(name):
        raise ImportError("its compiler is not installed")

    wrong = {
        ("relu",): "bpref: Missing option '--for'",
        ("rleu", "--for", "h100"): "bpref: unknown rule or model 'rleu'; the nearest are relu",
        ("gpt-2", "--for", "h1"): "bpref: unknown target 'h1'; the nearest is h100",
        ("relu", "--for", "tpu-v5e", "--batch", "3"): "bpref: --batch goes with a model, such as gpt, mixture",
        ("gpt", "--for", "tpu-v5e", "--dtype", "int8"): "bpref: compile: dtype",
        ("gpt", "--for", "tpu-v5e", "--batch", "0"): "bpref: Invalid value for '--batch'",
        ("gpt", "--for", "h100:8", "--layout", "tensor"): "bpref: --layout goes with --mesh, how the devices lie",
        ("relu", "--for", "h100:8", "--mesh", "data=8"): "bpref: --mesh goes with a model, such as gpt",
        ("vit", "--for", "tpu-v5e", "--implementation", "pallas"): "bpref: --implementation pallas is of gpt and its",
        ("gpt", "--for", "h100", "--implementation", "pallas"): "bpref: --implementation pallas is of gpt and its",
        ("gpt", "--for", "tpu-v5e", "--implementation", "cudnn"): "bpref: unknown implementation 'cudnn'; there is xla",
        ("relu", "--for", "h100:0x0x0"): "bpref: target h100:0x0x0: the topology is '0x0x0'",
    }
    for arguments, message in wrong.items():
        assert run(["compile", *arguments]) == 2
        streams = capsys.readouterr()
        assert streams.err.startswith(message)
        assert streams.err.count("\n") == 1
        assert streams.out == ""
    monkeypatch.setattr("bpref.cli.compile.target", missing)
    assert run(["compile", "relu", "--for", "h100"]) == 2
    assert capsys.readouterr().err == "bpref: its compiler is not installed\n"


def test_a_length_beyond_the_positions_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("bpref.cli.compile.target", lambda name: type("T", (), {"platform": "tpu"}))
    monkeypatch.setattr("bpref.cli.compile.version", lambda package: "1")
    monkeypatch.setattr("bpref.devices.works.devices_of", lambda name: (0,))
    assert run(["compile", "gpt2", "--for", "tpu-v5e", "--length", "2000"]) == 2
    assert capsys.readouterr().err == "bpref: compile: length is 2000, expected at most 1024, the model's context\n"
