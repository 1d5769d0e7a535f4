"""`bpref verify` and `bpref explain`, as a user calls them."""

import json
import re

import jax.numpy as jnp
import pytest

import bpref.rules
from bpref.cli.app import run
from bpref.rules.activation import tanh as tanh_rule


def test_verify_prints_a_row_for_each_named_rule_and_writes_its_figures(capsys, tmp_path):
    file = tmp_path / "figures.json"
    page = tmp_path / "figures.html"
    assert run(["verify", "tanh", "relu", "--seed", "3", "--json", str(file), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "seed 3" in out
    assert [line.split()[0] for line in out.splitlines() if line.rstrip().endswith("ok")] == ["tanh", "relu"]
    assert "2 rules, 2 cases, 0 equations: all right" in out
    figures = json.loads(file.read_text())
    assert figures["seed"] == 3
    assert [r["name"] for r in figures["rules"]] == ["tanh", "relu"]
    assert figures["rules"][0]["float64"] <= 1e-12
    assert figures["rules"][0]["bfloat16"]["hand"]["median"] <= 1
    assert figures["rules"][0]["ok"] is True
    assert "<h1>2 rules, 2 cases, 0 equations: all right</h1>" in page.read_text()
    kept = [f"{r['cache_bytes']:,}, {r['autodiff_bytes']:,}" for r in figures["rules"]]
    assert re.findall(r"<td>(\d[\d,]*, \d[\d,]*)</td><td><span class=.verdict ok.>", page.read_text()) == kept


def test_verify_seed_shows_each_equation(capsys):
    assert run(["verify", "seed"]) == 0
    out = capsys.readouterr().out
    assert "dZ[l] = dA[l] g[l]'(Z[l])" in out
    assert "0 rules, 0 cases, 89 equations: all right" in out


def test_verify_rejects_a_rule_broken_on_purpose(capsys, monkeypatch):
    def broken():
        layer = tanh_rule.tanh()
        return layer._replace(backward=lambda p, c, dy: (p, dy * (1 - jnp.abs(c.y))))

    monkeypatch.setattr(tanh_rule, "RULE", tanh_rule.RULE._replace(make=broken))
    assert run(["verify", "tanh"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "tanh: x: " in out
    assert "1 wrong: tanh" in out


def test_explain_prints_the_derivation(capsys):
    assert run(["explain", "linear"]) == 0
    out = capsys.readouterr().out
    assert "dW = dZ^T A" in out
    assert "bpref.linear(features: int, bias: bool = True, name: str = '')" in out
    assert "x: real (..., d) with d > 0\n    W: real (m, d)\n    b: real (m,)\n" in out
    assert "Source: DataLearner" in out


@pytest.mark.parametrize("name", bpref.rules.RULES)
def test_every_rule_explains_itself(name, capsys):
    assert run(["explain", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(capsys, tmp_path):
    wrong = {
        ("verify", "tahn"): "bpref: unknown rule 'tahn'; the nearest is tanh",
        ("explain", "gleu"): "bpref: unknown rule 'gleu'; the nearest are",
        ("verify", "tanh", "--json", str(tmp_path)): f"bpref: --json {tmp_path}: it is a directory",
        (
            "verify",
            "tanh",
            "--json",
            "/nowhere/at/all.json",
        ): "bpref: --json /nowhere/at/all.json: No such file or directory",
        ("verify", "--seed", "-1"): "bpref: Invalid value for '--seed'",
        ("explain",): "bpref: Missing argument 'NAME'",
        ("verfy",): "bpref: No such command 'verfy'",
        ("verify", "--fast"): "bpref: No such option: --fast",
    }
    for arguments, message in wrong.items():
        assert run(list(arguments)) == 2
        streams = capsys.readouterr()
        assert streams.err.startswith(message)
        assert streams.err.count("\n") == 1
        assert streams.out == ""


def test_ctrl_c_is_said_in_one_line(capsys, monkeypatch):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("bpref.cli.verify._with_progress", interrupted)
    assert run(["verify", "tanh"]) == 130
    assert capsys.readouterr().err == "bpref: interrupted\n"


def test_without_a_command_there_is_help(capsys):
    assert run([]) == 0
    assert capsys.readouterr().out.startswith("Usage: ")


@pytest.mark.parametrize("command", ["", "verify", "explain", "train"])
def test_help_shows_an_example(command, capsys):
    assert run([command, "--help"] if command else ["--help"]) == 0
    assert re.search("Examples?: bpref ", " ".join(capsys.readouterr().out.split()))
