"""`bpref grade`, and `bpref.grade`: what a criterion lets through."""

import json

import numpy as np
import pytest

import bpref
from bpref.cli import grade as command
from bpref.cli.app import run
from bpref.corpus.criteria import criterion_named

FEW = ("rms_norm", "huber", "layer_norm")


def test_what_a_loose_criterion_lets_through_grows_as_the_cotangents_shrink():
    loose = bpref.grade("allclose(rtol=1e-2, atol=1e-2)", seeds=2, names=FEW)
    through = [row.let_through / row.wrong for row in loose.rows]
    assert [row.size for row in loose.rows] == [1.0, 0.01, 0.001]
    assert through[0] < 0.2 < through[1] < 0.5 < through[2]
    assert "layer_norm: eps outside of the root in the backward" in loose.rows[0].passing
    assert "rms_norm: the projection with the wrong sign" not in loose.rows[0].passing
    assert [row.rejected for row in loose.rows] == [0, 0, 0]


def test_criteria_that_take_all_or_nothing_let_through_all_that_has_the_shape_or_nothing():
    everything = bpref.grade(lambda got, expected: True, seeds=1, names=("rms_norm", "gather")).rows[0]
    assert (everything.let_through, everything.rejected, everything.right) == (everything.wrong - 1, 0, 2)
    assert "rms_norm: dgamma overwritten row by row in place of accumulated" in everything.passing
    assert "gather: dy is returned as it is" not in everything.passing
    nothing = bpref.grade(lambda got, expected: False, seeds=1, names=("rms_norm",)).rows[0]
    assert (nothing.let_through, nothing.rejected, nothing.right) == (0, 1, 1)


def test_the_criterion_is_given_float32_arrays_of_one_shape():
    seen = set()

    def is_close(got, expected):
        seen.add((got.dtype, expected.dtype, got.shape == expected.shape))
        return np.allclose(got, expected)

    bpref.grade(is_close, seeds=1, names=("rms_norm",))
    assert seen == {(np.dtype(np.float32), np.dtype(np.float32), True)}


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("allclose", [True, False, False]),
        ("allclose(rtol=1e-2)", [True, True, False]),
        ("fraction(0.5, rtol=1e-3, atol=0)", [True, False, True]),
        ("cosine(0.99)", [True, True, False]),
        ("max_abs(0.01)", [True, True, False]),
    ],
)
def test_the_known_criteria(text, accepted):
    truth = np.array([1.0, 1.0])
    found = [criterion_named(text)(np.array(got), truth) for got in ([1.0, 1.0], [1.005, 1.005], [1.0, 3.0])]
    assert found == accepted


def test_from_the_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "grade_criterion", lambda c, seeds: bpref.grade(c, seeds, names=("rms_norm",)))
    (tmp_path / "own_criterion.py").write_text("def ok(got, expected):\n    return True\n")
    assert run(["grade", "--criterion", f"{tmp_path}/own_criterion.py:ok", "--seeds", "1", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["seeds"], report["rows"][0]["let_through"], report["rows"][0]["wrong"]) == (1, 6, 6)
    assert run(["grade", "--criterion", "max_abs(1e-2)", "--seeds", "1"]) == 0
    heading, columns, first, *_ = capsys.readouterr().out.splitlines()
    assert heading == "max_abs(1e-2)   6 wrong derivations, 1 seeds, 5 draws each"
    assert columns.split() == ["cotangents", "of", "size", "lets", "through", "rejects", "of", "the", "right"]
    assert first.split()[0] == "1"


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ("alclose(1)", "unknown criterion 'alclose'; the nearest are allclose, cosine"),
        ("cosine()", "'cosine()': expected numbers, cosine(least): missing a required argument: 'least'"),
        ("max_abs('x')", "\"max_abs('x')\": expected a number for most, got 'x'"),
        ("max_abs(x)", "'max_abs(x)': expected numbers, max_abs(most): x is none"),
        ("allclose(rtol=-1)", "'allclose(rtol=-1)': rtol is -1, expected 0 or more"),
        ("fraction(99)", "'fraction(99)': least is 99, expected 0 to 1"),
        ("cosine(2)", "'cosine(2)': least is 2, expected -1 to 1"),
        ("1 +", "'1 +' is no criterion; expected allclose(rtol=1e-05, atol=1e-08), fraction(least, "),
        ("nowhere:f", "--criterion: there is no module 'nowhere'"),
        ("tests.cli.derivations:halved", "tests.cli.derivations:halved raised TypeError"),
        ("operator:sub", "grade: the criterion must return True or False, got array("),
    ],
)
def test_wrong_use_is_one_line(monkeypatch, capsys, criterion, message):
    monkeypatch.setattr(command, "grade_criterion", lambda c, seeds: bpref.grade(c, seeds, names=("rms_norm",)))
    assert run(["grade", "--criterion", criterion, "--seeds", "1"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
