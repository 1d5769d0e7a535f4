"""The corpus in the form of PyTorch: wrong derivations are caught there, right ones pass; all of it is a benchmark."""

import inspect

import jax
import numpy as np
import pytest

import bpref

pytest.importorskip("torch")

from benchmarks.bench_torch import Way, in_torch, is_accused, is_caught, reported, tensor, trials
from benchmarks.checker_trials import arguments
from bpref.corpus import DERIVATIONS
from tests.conftest import SEED

NAMES = ("dense", "gather", "softmax", "huber", "embedding", "cumulative_sum", "log_sum_exp", "gru_cell")
FLOAT32, ALONE = Way("float32", True), Way("float32", False)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_derivation_is_caught_and_the_right_one_is_not(name):
    for t in trials(DERIVATIONS[name], FLOAT32, 1, is_wrong=True):
        assert is_caught(t), str(t)
    for t in trials(DERIVATIONS[name], FLOAT32, 1, is_wrong=False):
        assert not is_accused(t), str(t)


@pytest.mark.parametrize(
    ("name", "way"), [("gru_cell", ALONE), ("l2_normalize", Way("bfloat16", True))], ids=["gru_cell", "l2_normalize"]
)
def test_terms_that_cancel_are_no_fault_of_a_right_derivation(name, way):
    d = DERIVATIONS[name]
    report = reported(d, in_torch(d.forward, d.backward), in_torch(d.forward), way, 0)
    assert report.ok, str(report)


def test_the_arguments_that_are_wrong_are_named():
    derivation = DERIVATIONS["layer_norm"]
    reference = in_torch(derivation.forward)
    for wrong in derivation.wrong:
        if wrong.kind == "missing_sum":
            continue  # PyTorch sums what a backward returns to its argument's shape
        report = reported(derivation, in_torch(derivation.forward, wrong.backward), reference, FLOAT32, SEED)
        accused = {("x", "gamma", "beta")[int(v.where[5:-1])] for v in report.verdicts if v.verdict != "ok"}
        assert accused == set(wrong.where), f"{wrong.name}\n{report}"


@pytest.mark.parametrize("name", ["rms_norm", "softmax", "l2_normalize"])
def test_without_a_reference_the_arguments_that_are_wrong_are_named_and_the_right_derivation_is_ok(name):
    derivation = DERIVATIONS[name]
    args = [tensor(v) for v in derivation.make_args(np.random.default_rng(SEED), np.float64)]
    right = bpref.check(in_torch(derivation.forward, derivation.backward), *args, key=SEED)
    assert right.verdict == "ok", str(right)
    called = list(inspect.signature(derivation.forward).parameters)
    for wrong in derivation.wrong:
        if wrong.kind in ("dtype", "missing_sum"):
            continue  # PyTorch casts and sums what a backward returns to its argument's dtype and shape
        report = bpref.check(in_torch(derivation.forward, wrong.backward), *args, key=SEED)
        accused = {called[int(v.where[5:-1])] for v in report.verdicts if v.verdict != "ok"}
        assert accused == set(wrong.where), f"{wrong.name}\n{report}"


def test_the_reference_is_autodiff_of_the_forward():
    import torch

    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64, requires_grad=True)
    in_torch(lambda x: jax.numpy.sin(x))(x).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, torch.cos(x.detach()), rtol=1e-15)


TIED = np.zeros((2, 7, 5, 3)), np.eye(3)[np.arange(70).reshape(2, 7, 5) % 3]


@pytest.mark.parametrize("x", TIED, ids=["zeros", "one-hot"])
def test_another_choice_among_tied_windows_is_right_however_small_its_cotangent(x):
    """Overlapping windows, all tied: what autodiff chooses, few neighbours do, and a cotangent may be small."""
    right = DERIVATIONS["max_pool"]
    function, reference = in_torch(right.forward, right.backward), in_torch(right.forward)
    for key in range(2):
        report = bpref.check(function, tensor(x.astype(np.float32)), reference=reference, key=key)
        assert report.ok, str(report)


def test_a_row_of_ones_and_zeros_that_is_cut_to_its_zeros_is_no_number_divided_by_zero():
    right = DERIVATIONS["mlp"]
    _, *others = arguments(right, "float32", 0)
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 1, 1]]
    function, reference = in_torch(right.forward, right.backward), in_torch(right.forward)
    report = bpref.check(function, *map(tensor, (x, *others)), reference=reference, key=0)
    assert report.ok, str(report)
    assert "[5, 1]" in "".join(report.notes)
