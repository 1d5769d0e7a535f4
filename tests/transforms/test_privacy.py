"""What is spent is what is known: in closed form, by published figures, and by definition of the arguments."""

import math
import sys

import pytest

import bpref
from tests.refusing import refusals


def exact_delta(epsilon, multiplier, steps):
    """Of Gaussian noise on all examples (Balle and Wang, arXiv:1805.06083, theorem 8), `steps` of them as one."""
    mu = math.sqrt(steps) / multiplier
    below, above = (0.5 * math.erfc((epsilon / mu + s * mu / 2) / math.sqrt(2)) for s in (-1, 1))
    return below - math.exp(epsilon) * above


@pytest.mark.parametrize(("multiplier", "steps"), [(10.0, 100), (1.0, 1), (20.0, 1000)])
def test_without_sampling_it_is_the_closed_form(multiplier, steps):
    epsilon = bpref.privacy_spent(multiplier, steps, 1e-5, rate=1.0)
    assert exact_delta(epsilon, multiplier, steps) == pytest.approx(1e-5, rel=1e-4)


def test_by_renyi_divergences_it_is_what_is_published_and_the_convolved_loss_is_less():
    """TensorFlow Privacy, compute_dp_sgd_privacy_lib_test: 1.616 of noise 2.0, halved there for micro-batches."""
    given = {"multiplier": 1.0, "steps": 782, "delta": 1e-6}
    by_rdp = bpref.privacy_spent(**given, batch_size=64, examples=10_000, accountant="rdp")
    assert by_rdp == pytest.approx(1.616, abs=5e-4)
    tight = bpref.privacy_spent(**given, rate=0.0064)
    assert 0.7 * by_rdp < tight < by_rdp


def test_it_is_within_what_the_tutorial_of_dp_sgd_says():
    """Its README: noise 1.12, 60 epochs in batches of 256 of 60,000, epsilon 2.92 at 1e-5, by an older conversion."""
    spent = bpref.privacy_spent(1.12, steps=60 * 60_000 // 256, delta=1e-5, batch_size=256, examples=60_000)
    assert 2.2 < spent < 2.92


BAD_CALLS = {
    "privacy_spent: multiplier is 0.0, expected a positive number": {"multiplier": 0.0},
    "privacy_spent: steps is 0, expected a positive integer": {"steps": 0},
    "privacy_spent: delta is 0, expected a number between 0 and 1": {"delta": 0},
    "privacy_spent: delta is nan, expected a number between 0 and 1": {"delta": math.nan},
    "privacy_spent: rate is 0.0, expected a positive number up to 1": {"rate": 0.0},
    "privacy_spent: nothing is given, expected either rate, or both batch_size and examples": {"rate": None},
    "privacy_spent: batch_size is given, expected either rate, or both batch_size and examples": (
        {"rate": None, "batch_size": 3}
    ),
    "privacy_spent: rate, batch_size, examples is given, expected either rate, or both batch_size and examples": (
        {"batch_size": 3, "examples": 4}
    ),
    "privacy_spent: batch_size is 5, expected 1 ... 4, the number of examples": (
        {"rate": None, "batch_size": 5, "examples": 4}
    ),
    "privacy_spent: accountant is 'gdp', expected one of pld, rdp": {"accountant": "gdp"},
}


test_bad_calls_are_refused = refusals(
    BAD_CALLS, lambda wrong: bpref.privacy_spent(**{"multiplier": 1.0, "steps": 10, "delta": 1e-5, "rate": 0.1} | wrong)
)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError) as refused:
        bpref.privacy_spent(1.0, 10, 1e-5, rate=0.1)
    assert str(refused.value) == 'privacy_spent needs the package dp-accounting: pip install "bpref[private]"'
