"""CTC beside PyTorch's and optax's, and the cross entropy of padded sequences beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.verify.numbers.measure import relative_error
from bpref.verify.oracle import as_cotangent, with_cotangents
from tests.rules.beside_torch import assert_same
from tests.rules.sweeping import backpropagate, in_one_program

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def speech(rng, blank: int):
    """A batch in which every example has a path: 2 U + 1 frames at least."""
    B, U, C = (int(n) for n in rng.integers(2, 6, 3))
    T = 2 * U + 1 + int(rng.integers(0, 4))
    labels = rng.integers(0, C, (B, U))
    labels += labels >= blank
    label_lengths = rng.integers(0, U + 1, B)
    frames = np.minimum(T, 2 * label_lengths + 1 + rng.integers(0, 4, B))
    return rng.normal(size=(B, T, C + 1)), labels, frames, label_lengths


@pytest.mark.parametrize("blank", [0, 2])
def test_ctc(rng, blank):
    def twin(_, x):
        logits, labels, frames, label_lengths = x
        log_p = torch.log_softmax(logits, -1).transpose(0, 1)
        return torch.nn.functional.ctc_loss(log_p, labels, frames, label_lengths, blank, reduction="none")

    assert_same(bpref.ctc(blank), twin, (), speech(rng, blank))


def test_ctc_beside_optax(rng):
    """Which has single precision among double, so that promotion cannot be strict."""
    logits, labels, frames, label_lengths = x = speech(rng, 0)
    T, U = logits.shape[1], labels.shape[1]
    beyond = [(np.arange(n)[None] >= v[:, None]).astype(float) for n, v in ((T, frames), (U, label_lengths))]

    @in_one_program
    def of_optax(logits):
        theirs, cotangents = with_cotangents(lambda _, z: optax.ctc_loss(z, beyond[0], labels, beyond[1]), (), logits)
        return theirs, cotangents(as_cotangent(jnp.ones_like(theirs), theirs))[1]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        J, _, (dlogits, *_) = backpropagate(bpref.ctc(), (), x)
        theirs, dlogits_of_optax = of_optax(logits)
    assert relative_error(np.asarray(J), np.asarray(theirs)) < 1e-10
    assert relative_error(np.asarray(dlogits), np.asarray(dlogits_of_optax)) < 1e-10


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sequence_cross_entropy(rng, smoothing):
    B, T, C = (int(n) for n in rng.integers(2, 9, 3))
    real = rng.random((B, T)) < 0.7
    real[0, 0] = True

    def twin(_, x):
        logits, labels, real = x
        labels = torch.where(real, labels, -100).reshape(-1)
        return torch.nn.functional.cross_entropy(logits.reshape(-1, C), labels, label_smoothing=smoothing)

    x = rng.normal(size=(B, T, C)), rng.integers(0, C, (B, T)), real
    assert_same(bpref.sequence_cross_entropy(smoothing), twin, (), x)
