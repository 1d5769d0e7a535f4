"""`bpref rules`, as a user calls it; and rules that are asked for by another name."""

import inspect
import json
import re

import pytest

import bpref.rules
from bpref.cli import rules as command
from bpref.cli.app import run
from bpref.cli.explain import WIDTH, call
from bpref.nearest import folded

FIGURES = {
    "machine": {"jax": "0.10.2", "device": "cpu", "host": "x86_64"},
    "rules": {
        "square": {
            "errors": {"float64": 2e-16, "float32": [0.5, 1.25], "bfloat16": [0.5, 0.5], "is_right": True},
            "own": {"cache": [100, 400], "time": {"median": 0.875}},
            "plain": {"cache": [100, 0], "time": {"median": 0.5}},
        }
    },
}


def rows(out):
    return {line.split()[0]: line for line in out.splitlines() if line.split()}


def test_every_rule_is_listed_with_its_kind_and_source(capsys):
    assert run(["rules"]) == 0
    out = capsys.readouterr().out
    found = rows(out)
    for kind, names in bpref.rules.KINDS.items():
        for name in names:
            assert found[name].split()[1] == kind
    assert f"{len(bpref.rules.RULES)} rules" in out
    assert "Hendrycks" in out or "1606.08415" in found["gelu"]


def test_one_kind_with_the_figures_that_were_measured(capsys, monkeypatch):
    monkeypatch.setattr(command, "read_figures", lambda: FIGURES)
    assert run(["rules", "--kind", "loss"]) == 0
    out = capsys.readouterr().out
    found = rows(out)
    assert "linear" not in found
    assert found["square"].split()[2:10] == ["2e-16", "0.5", "/", "1.2", "0.25", "0.88", "inf", "0.50"]
    assert "jax 0.10.2 on cpu" in out


def test_an_unknown_kind_is_one_line(capsys):
    assert run(["rules", "--kind", "los"]) == 2
    assert capsys.readouterr().err == "bpref: unknown kind 'los'; the nearest are loss, block\n"


def test_figures_that_ship_name_rules_that_there_are():
    figures = command.read_figures().get("rules", {})
    assert set(figures) <= set(bpref.rules.RULES)
    assert json.dumps(figures)


def test_another_name_finds_the_rule(capsys, monkeypatch):
    monkeypatch.setitem(bpref.rules.other_names(), "mean squared error", "square")
    assert run(["explain", "mean squared error"]) == 0
    assert capsys.readouterr().out.startswith("square: ")


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("LSTM", "lstm"),
        ("Knowledge Distillation", "distillation"),
        ("max-pool", "max_pool"),
        ("MaxPool2d", "max_pool"),
        ("Softmax-Cross-Entropy", "softmax_cross_entropy"),
        ("crammer-singer", "multiclass_hinge"),
    ],
)
def test_a_rule_is_found_however_its_name_is_written(name, rule, capsys):
    assert run(["explain", name]) == 0
    assert capsys.readouterr().out.startswith(f"{rule}: ")


def test_a_kind_is_found_however_its_name_is_written(capsys):
    assert run(["rules", "--kind", "Sequence Loss"]) == 0
    assert f"{len(bpref.rules.KINDS['sequence_loss'])} rules" in capsys.readouterr().out


def test_other_names_are_among_the_nearest(capsys):
    assert run(["explain", "crammer-singr"]) == 2
    assert capsys.readouterr().err == "bpref: unknown rule 'crammer-singr'; the nearest are crammer_singer, chamfer\n"


def test_a_name_means_one_rule_however_it_is_written():
    meanings = {}
    for name, rule in [*bpref.rules.other_names().items(), *((name, name) for name in bpref.rules.RULES)]:
        assert meanings.setdefault(folded(name), rule) == rule


@pytest.mark.parametrize("rule", bpref.rules.RULES.values(), ids=bpref.rules.RULES)
def test_a_call_is_shown_on_lines_that_can_be_read(rule):
    shown = call(rule.make)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert not re.search(r"bpref\.\w+\.|typing|collections", shown)
    joined = re.sub(r",\s*\)", ")", re.sub(r"\(\n\s*", "(", shown)).replace("\n   ", "")
    names = re.findall(r"[(,] (\w+):", joined.replace("(", "( "))
    assert names == list(inspect.signature(rule.make).parameters)
