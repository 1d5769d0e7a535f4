"""`bpref exercise`: a file that stands by itself, and that `bpref check` judges."""

import pytest

from bpref.cli.app import run
from bpref.rules import RULES
from bpref.tasks.exercise import exercise
from bpref.tasks.source import NotAlone

MISSING = """    raise NotImplementedError("the cotangents of args, derived by hand")
"""
DERIVED = """    r = 1 / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
    g = scale[None] * dy
    dx = r * (g - x * r**2 * jnp.mean(g * x, -1, keepdims=True))
    dscale = (dy * x * r).{over}(0)
"""
CALL = ("check", "ex.py:forward", "--backward", "backward", "--args", "ex.py:make_args", "--key", "1")


@pytest.mark.parametrize(
    ("over", "code", "says"), [("sum", 0, "  scale   ok "), ("mean", 1, "a mean in place of the sum over axis 0 of dy")]
)
def test_an_exercise_is_written_solved_and_judged(over, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "ex", raising=False)
    assert run(["exercise", "RMS norm", "--out", "ex.py"]) == 0
    assert capsys.readouterr().out == f"ex.py: write its backward, then\n  bpref {' '.join(CALL[:-2])}\n"
    text = (tmp_path / "ex.py").read_text()
    assert "r_n = 1 / sqrt(mean_k x_nk^2 + eps)" in text
    assert "dx_nk" not in text
    assert text.count(MISSING) == 1
    (tmp_path / "ex.py").write_text(text.replace(MISSING, DERIVED.format(over=over)))
    assert run(list(CALL)) == code
    assert says in capsys.readouterr().out


def test_what_is_there_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linear_exercise.py").write_text("mine")
    assert run(["exercise", "linear"]) == 2
    assert capsys.readouterr().err == "bpref: linear_exercise.py is there already; it stays as it is\n"
    assert run(["exercise", "tied_embedding"]) == 2
    assert capsys.readouterr().err.startswith("bpref: there is no exercise for tied_embedding: ")
    assert run(["exercise", "linear", "--out", "linear"]) == 2
    assert capsys.readouterr().err == "bpref: --out linear: expected the name of a Python file\n"


@pytest.mark.parametrize("name", ["linear", "layer_norm", "ctc", "dot_product_attention", "huber"])
def test_an_exercise_says_nothing_of_its_backward(name):
    text = exercise(RULES[name])
    compile(text, name, "exec")
    assert "Differential" not in text
    assert "Layer[" not in text


def test_a_reference_in_an_exercise_has_the_layers_defaults_in_its_header():
    text = exercise(RULES["rms_norm"])
    assert "called_" not in text
    header = "params: RmsNormParams, x: Array, eps=1e-06, scale=True, zero_centred=False, per_head=False"
    assert f"def reference({header}) -> Array:" in text


def test_a_rule_made_of_layers_is_no_exercise():
    with pytest.raises(NotAlone):
        exercise(RULES["bidirectional"])
