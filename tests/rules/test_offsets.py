"""Sequence losses of logits that share an offset, and of what is all but certain: no digits lost, and never below 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.rules import RULES
from bpref.rules.sequence_loss.crf import CRFParams
from tests.rules.sweeping import in_one_program

B, T, C, U = 8, 12, 5, 3
LENGTHS = np.full(B, T, np.int32), np.full(B, U, np.int32)
LABELS = np.random.default_rng(1).integers(1, C, (B, U)).astype(np.int32)


def shared_offset(*shape: int, size: float) -> np.ndarray:
    """Logits about `size` that float32 holds as they are: multiples of 1/64 beside 1e4."""
    return (np.round(64 * np.random.default_rng(0).normal(size=shape)) / 64 + size).astype(np.float32)


def terms(name: str, params, *x) -> tuple[np.ndarray, np.ndarray]:
    """J of each example in float32, and the reference's in float64."""
    layer = getattr(bpref, name)()
    J = in_one_program(lambda *of: layer.forward(*of)[0])(params, x)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: v.astype(np.float64) if v.dtype == np.float32 else v, (params, x))
        return np.asarray(J), np.asarray(in_one_program(RULES[name].reference)(*wide))


def test_ctc_at_an_offset_is_as_precise_as_optax():
    logits = shared_offset(B, T, C, size=1e4)
    J, truth = terms("ctc", (), logits, LABELS, *LENGTHS)
    theirs = optax.ctc_loss(logits, np.zeros((B, T), np.float32), LABELS, np.zeros((B, U), np.float32))
    errors = [np.abs(v - truth).max() / truth.max() for v in (J, np.asarray(theirs))]
    assert errors[0] < 3e-7
    assert errors[0] <= 2 * errors[1]


def test_transducer_at_an_offset():
    logits = shared_offset(B, T, U + 1, C, size=1e4)
    J, truth = terms("transducer", (), logits, LABELS, *LENGTHS)
    np.testing.assert_allclose(J, truth, rtol=3e-7)


def test_crf_at_an_offset():
    x = shared_offset(B, T, C, size=1e4)
    A, s, h = (jnp.asarray(shared_offset(*shape, size=1e3)) for shape in ((C, C), (C,), (C,)))
    tags = np.random.default_rng(2).integers(0, C, (B, T)).astype(np.int32)
    J, truth = terms("crf", CRFParams(A, s, h), x, tags, LENGTHS[0])
    np.testing.assert_allclose(J, truth, rtol=1e-6)


@pytest.mark.parametrize("size", [5.0, 10.0, 20.0, 40.0])
def test_what_is_all_but_certain_has_no_negative_nats(size):
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(B, T, C)).astype(np.float32)
    tags = rng.integers(0, C, (B, T)).astype(np.int32)
    params = CRFParams(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((C, C), (C,), (C,))))
    right = np.eye(C, dtype=np.float32)[tags]
    J, truth = terms("crf", params, noise + size * right, tags, LENGTHS[0])
    assert (J >= 0).all()
    np.testing.assert_allclose(J, truth, rtol=1e-5, atol=1e-6)

    path = np.zeros((B, T), np.int32)
    path[:, 1 : 2 * U : 2] = LABELS
    J, truth = terms("ctc", (), noise + size * np.eye(C, dtype=np.float32)[path], LABELS, *LENGTHS)
    assert (J >= 0).all()
    np.testing.assert_allclose(J, truth, rtol=1e-5, atol=1e-6)

    logits = np.repeat(noise[:, :, None], U + 1, 2)
    logits[..., 0] += size
    logits[:, 0] -= 2 * size * np.eye(C, dtype=np.float32)[0]
    logits[:, 0, np.arange(U)] += 2 * size * np.eye(C, dtype=np.float32)[LABELS]
    logits[:, 0, U, 0] += 3 * size
    J, truth = terms("transducer", (), logits, LABELS, *LENGTHS)
    assert (J >= 0).all()
    np.testing.assert_allclose(J, truth, rtol=1e-5, atol=1e-6)
