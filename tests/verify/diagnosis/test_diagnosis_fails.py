"""A search for a cause that fails costs neither the verdict nor the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import bpref
from bpref.verify.diagnosis import diagnose as module
from bpref.verify.diagnosis.diagnose import diagnose, diagnose_shape
from tests.verify.diagnosis.wrong_cotangents import Dense

X = np.linspace(0.3, 2, 12, dtype=np.float32).reshape(3, 4)
NOTE = "the search for a cause failed: ZeroDivisionError: no cause"


def failing(*_):
    raise ZeroDivisionError("no cause\nfor this")


@pytest.fixture
def failing_search(monkeypatch):
    """Every hypothesis fails."""
    monkeypatch.setattr(module, "HYPOTHESES", (failing,) * 3)


def test_what_no_other_hypothesis_explains_says_which_failed():
    residual = Dense().residual("W", np.tanh)._replace(terms=failing)
    first, *more = diagnose(residual).detail.splitlines()
    assert first.startswith("no simple pattern: 120 of 120 values are wrong; hand / reference: median ")
    assert more[-1] == NOTE


def test_what_another_explains_is_not_spoilt():
    residual = Dense().residual("W", lambda o: o * np.array([1, 0, 1, 1])[:, None])._replace(terms=failing)
    assert diagnose(residual) == ("sparse", "wrong only at row 1 of axis 0, zero there")


def test_the_pattern_itself_may_fail(monkeypatch):
    monkeypatch.setattr(module, "unexplained", failing)
    found = diagnose(Dense().residual("W", np.tanh))
    assert found == ("unexplained", f"it is not the reference\n{NOTE}")


def test_a_wrong_shape(monkeypatch):
    monkeypatch.setattr(module, "of_another_shape", failing)
    found = diagnose_shape(Dense().residual("b", lambda o: o[:, :2]))
    assert found == ("structure", f"its shape is (2,), that of b (4,)\n{NOTE}")


def square(x):
    return x**2


def test_check(failing_search):
    report = bpref.check(square, X, backward=lambda args, dy: (3 * args[0] * dy,), key=1)
    assert (report.verdict, report.findings[0].kind) == ("wrong", "unexplained")
    assert "hand / reference: median 1.500, from 1.500 to 1.500" in report.findings[0].detail
    assert report.findings[0].detail.endswith(NOTE)


def test_a_host_function(failing_search):
    def backward(args, dy):
        return (3 * np.asarray(args[0]) * dy,)

    report = bpref.check(lambda x: np.asarray(x) ** 2, X, backward=backward, key=1)
    assert (report.verdict, report.findings[0].kind) == ("wrong", "unexplained")
    assert report.findings[0].detail.endswith(NOTE)


def test_a_host_function_of_a_random_key():
    """No array that could explain anything, and none that NumPy can stack."""

    def scaled(x, key):
        return np.asarray(x) * np.asarray(jax.random.uniform(key))

    def backward(args, dy):
        return np.asarray(dy) * np.asarray(jax.random.uniform(args[1])) * 2, None

    report = bpref.check(scaled, X, jax.random.key(3), backward=backward, key=1)
    assert report.verdicts[0].detail == "2.000 x the reference, every element: a constant factor 2"


def test_check_intermediates(failing_search):
    def forward(x):
        return (checkpoint_name(x**2, "z") ** 2).sum()

    report = bpref.check_intermediates(forward, (X,), lambda args, dy: {"z": 3 * args[0] ** 2 * dy}, key=1)
    assert (report.verdict, report.first_wrong, report.findings[0].kind) == ("wrong", "z", "unexplained")
    assert report.findings[0].detail.endswith(NOTE)


def test_search(failing_search):
    def backward(args, dy):
        return (3 * args[0] * dy,)

    found = bpref.search(square, "f32[2]", backward=backward, seconds=20, key=1, examples=3)
    assert found.report is not None
    assert found.report.findings[0].detail.endswith(NOTE)


def test_a_cotangent_of_nothing_but_round_off_is_wrong():
    """What cancels moves by all of itself when it is rounded, and by nothing in the units of what it should be."""

    def backward(args, dy):
        (x,) = args
        return (dy * (jnp.sin(x) ** 2 + jnp.cos(x) ** 2 - 1),)

    report = bpref.check(square, X, backward=backward, key=1)
    (finding,) = report.findings
    assert (report.verdict, finding.kind) == ("wrong", "zero")
    assert finding.detail.startswith("zero to round-off everywhere, where the reference is up to ")
