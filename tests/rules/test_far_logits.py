"""Logits that are far out, far apart or all but certain: what is subtracted first, and which small numbers are left."""

import jax
import numpy as np
import pytest

import bpref
from tests.rules.sweeping import backpropagate, forward

FAR = np.array([[1.1e15, -1e12, 3e10, 1.1e15]], np.float32)
"""Beyond 2^31, where a quotient that is rounded in two ways is off by more than exp can take."""
HALVES = np.array([[0.5, 0, 0, 0.5]], np.float32)
LABEL = np.array([0])
HYPER = {"forward": {}, "reverse": {"reverse": True}, "mixture": {"mixture": 0.3}}
DIVERGENCES = pytest.mark.parametrize("hyper", HYPER.values(), ids=HYPER)


def test_a_temperature_divides_what_is_left_of_far_logits():
    logp, _, (dz, _) = backpropagate(bpref.token_log_probability(1.7), (), (FAR, LABEL))
    np.testing.assert_allclose(logp, [-np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(dz, np.array([[0.5, 0, 0, -0.5]]) / 1.7, rtol=1e-6)
    layer = bpref.gumbel_softmax(0.7)
    np.testing.assert_array_equal(forward(layer, layer.init(jax.random.key(0), FAR), FAR), HALVES)


@DIVERGENCES
def test_distillation_of_far_logits(hyper):
    turned = FAR[:, ::-1]
    J, _, (da, db, _) = backpropagate(bpref.distillation(1.7, 1.0, **hyper), (), (FAR, turned, LABEL))
    assert (float(J), np.abs(da).max(), np.abs(db).max()) == (0, 0, 0)


def test_info_nce_of_far_rows_that_are_no_cosines():
    a = np.array([[3e7, 1e4], [1e5, -3e7]], np.float32)
    J, _, (da, db) = backpropagate(bpref.info_nce(0.7, normalize=False, symmetric=False), (), (a, a))
    assert (float(J), np.abs(da).max(), np.abs(db).max()) == (0, 0, 0)
    J, _, (da, _) = backpropagate(bpref.info_nce(0.7, normalize=False, symmetric=False), (), (a, a[::-1].copy()))
    S = a.astype(np.float64) @ a[::-1].astype(np.float64).T / 0.7
    np.testing.assert_allclose(J, np.mean(S.max(1) - S.diagonal()), rtol=1e-6)
    np.testing.assert_allclose(da[0], (a[0] - a[1]) / 2 / 0.7, rtol=1e-6)


def test_what_a_log_sum_exp_owes_is_not_lost_beside_large_values():
    """One key is seen to the last digit: dx is dL there, which is below the last digit of dy . v, 3e7, and of D."""
    q, k = np.array([[[[1e3]]]], np.float32), np.array([[[[1.0]], [[-1.0]]]], np.float32)
    v = np.array([[[[3e7]], [[1.0]]]], np.float32)
    layer = bpref.attention_with_log_sum_exp(scale=1.0)
    y, cache = layer.forward((), bpref.Heads(q, k, v))
    ones = jax.tree.map(np.ones_like, y)
    _, dx = layer.backward((), cache, ones._replace(log_sum_exp=np.full_like(y.log_sum_exp, 0.3)))
    np.testing.assert_array_equal(dx.q, np.full_like(q, 0.3))
    np.testing.assert_array_equal(dx.k.ravel(), np.array([300, 0], np.float32))


@pytest.mark.parametrize(
    ("hyper", "da", "db"), [({}, [-1, 1], [0, 0]), ({"reverse": True}, [0, 0], [1, -1])], ids=["", "reverse"]
)
def test_distillation_of_logits_3000_apart_is_3000(hyper, da, db):
    x = np.array([[0.0, 3000.0]], np.float32), np.array([[3000.0, 0.0]], np.float32), LABEL
    J, _, cotangents = backpropagate(bpref.distillation(1.0, 1.0, **hyper), (), x)
    assert float(J) == 3000
    np.testing.assert_array_equal(cotangents[0], [da])
    np.testing.assert_array_equal(cotangents[1], [db])


@DIVERGENCES
def test_distillation_of_close_logits_has_the_digits_of_its_second_order(hyper):
    """Below 0 in one of two draws, and off by ten times itself, where p (log p - log q) is summed."""
    layer, rng = bpref.distillation(1.5, 1.0, **hyper), np.random.default_rng(0)
    for apart, tolerance in ((1e-3, 1e-3), (1e-5, 0.1), (0.0, 0.0)):
        a = 5 * rng.normal(size=(64, 1, 50))
        b = (a + apart * rng.normal(size=a.shape)).astype(np.float32)
        x = a.astype(np.float32), b, np.zeros((64, 1), np.int32)
        J = forward(bpref.Layer(layer.init, jax.vmap(layer.forward, (None, 0)), layer.backward, "each"), (), x)
        with jax.enable_x64(True):
            wide = *(v.astype(np.float64) for v in x[:2]), x[2]
            truth = np.array([layer.forward((), tuple(v[i] for v in wide))[0] for i in range(64)])
        assert (J >= 0).all()
        np.testing.assert_allclose(J, truth, rtol=tolerance)


@DIVERGENCES
def test_distillation_of_a_class_that_is_excluded(hyper):
    """On both sides it adds nothing; by one alone it is infinitely unlikely, unless a mixture has it."""
    layer = bpref.distillation(1.0, 1.0, **hyper)
    a, b = np.array([[1.0, -np.inf, 2.0]], np.float32), np.array([[1.5, -np.inf, 2.0]], np.float32)
    J, _, cotangents = backpropagate(layer, (), (a, b, LABEL))
    without, _, of_rest = backpropagate(layer, (), (a[:, ::2], b[:, ::2], LABEL))
    np.testing.assert_allclose(J, without, rtol=1e-6)
    for d, rest in zip(cotangents[:2], of_rest[:2], strict=True):
        np.testing.assert_allclose(d, [[rest[0, 0], 0, rest[0, 1]]], rtol=1e-6)
    excluded = (np.zeros_like(b), b) if hyper.get("reverse") else (a, np.zeros_like(a))
    J = forward(layer, (), (*excluded, LABEL))
    assert np.isfinite(J) if "mixture" in hyper else np.inf == J


def test_a_label_that_is_all_but_certain_has_a_gradient():
    with jax.enable_x64(True):
        z = np.array([[38.0, 0.0, 0.0]])
        logp, _, (dz, _) = backpropagate(bpref.token_log_probability(), (), (z, LABEL))
        _, _, (da, _, _) = backpropagate(bpref.distillation(1.0, 0.0), (), (z, z, LABEL))
    R = np.exp(-38.0)
    np.testing.assert_allclose(logp, [-2 * R], rtol=1e-14)
    np.testing.assert_allclose(dz, [[2 * R, -R, -R]], rtol=1e-14)
    np.testing.assert_allclose(da, -dz, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_sure_label_keeps_what_lies_beside_1(dtype):
    """Others with a probability of 2^-54 and exp(-40): p_y is 1 in both widths, and 1 - p_y is 5.976e-17."""
    z = np.array([[0.0, -54 * np.log(2), -40.0]], dtype)
    others = np.exp(z[0, 1:].astype(np.float64))
    expected = [others.sum(), *-others]
    one_hot = np.eye(3, dtype=dtype)[:1]
    with jax.enable_x64(True):
        logp, _, (dz, _) = backpropagate(bpref.token_log_probability(), (), (z, LABEL))
        J, _, (dlogits, _) = backpropagate(bpref.softmax_cross_entropy(), (), (z, LABEL))
        _, _, dx = backpropagate(bpref.log_softmax(), (), z, one_hot)
    for came, wanted in ((-logp[0], expected[0]), (J, expected[0]), (dz[0], expected), (-dlogits[0], expected)):
        np.testing.assert_allclose(came, wanted, rtol=1e-6)
    np.testing.assert_allclose(dx[0, 1:], expected[1:], rtol=1e-6)


def test_a_log_probability_does_not_hand_its_rounding_to_the_slope():
    """p as exp(y) has y's error, |y| / 2 units: dx of 2,048 classes was off by 2.4e-7, and autodiff's by 9e-8."""
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(256, 2048)).astype(np.float32) for _ in range(2))
    dx = backpropagate(bpref.log_softmax(), (), x, abs(dy))[2]
    z, v = x.astype(np.float64), abs(dy).astype(np.float64)
    expected = v - np.exp(z) / np.exp(z).sum(1, keepdims=True) * v.sum(1, keepdims=True)
    assert np.linalg.norm(dx - expected) < 1.2e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["crf", "ctc", "distillation"])
def test_the_slope_of_a_class_that_both_sides_are_sure_of(name):
    """1 - 1 was 0 for -2.8e-11 and -6.2e-9."""
    z = np.array([[[0, 20, 0, 0], [30, 0, 0, 0], [0, 0, 25, 0]]])
    path, three = np.array([[1, 0, 2]]), np.array([3])
    layer, rest = {
        "crf": (bpref.crf(), (path, three)),
        "ctc": (bpref.ctc(), (path[:, ::2], three, np.array([2]))),
        "distillation": (bpref.distillation(1.0, 1.0), (1.1 * z, path)),
    }[name]

    def slope(dtype):
        x = jax.tree.map(lambda v: v.astype(dtype) if v.dtype == np.float64 else v, (z.astype(np.float64), *rest))
        return backpropagate(layer, layer.init(jax.random.key(0), x), x)[2][0]

    with jax.enable_x64(True):
        slopes = [np.asarray(slope(dtype)) for dtype in (np.float32, np.float64)]
    of_path = [np.take_along_axis(v, path[:, :, None], 2) for v in slopes]
    assert (of_path[1] < 0).all()
    np.testing.assert_allclose(*of_path, rtol=1e-5)


def test_the_slope_of_a_sure_step_of_a_transducer():
    """Of one frame, which emits 1, then 2, and ends: g p - B, 1 - 1, was 0 for all three in float32."""
    z = np.array([[[[0, 20, 0, 0], [0, 0, 25, 0], [30, 0, 0, 0]]]], np.float32)
    x = z, np.array([[1, 2]]), np.array([1]), np.array([2])
    dz = backpropagate(bpref.transducer(), (), x)[2][0]
    np.testing.assert_allclose(dz[0, 0, [0, 1, 2], [1, 2, 0]], -3 * np.exp([-20.0, -25.0, -30.0]), rtol=1e-6)
