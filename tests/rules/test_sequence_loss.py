"""The losses of sequences: beside sums over every path, beside printed figures, and where there is nothing to sum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules import RULES
from bpref.rules.sequence_loss.crf import CRFParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

SPEECH = jnp.zeros((2, 5, 4)), jnp.ones((2, 3), jnp.int32), jnp.array([5, 4]), jnp.array([3, 2])
JOINT = jnp.zeros((2, 5, 4, 6)), *SPEECH[1:]


def replaced(x, at, v):
    return (*x[:at], v, *x[at + 1 :])


BAD_CALLS = {
    "ctc: blank is -1, expected an integer of at least 0": lambda: bpref.ctc(blank=-1),
    "ctc: blank is 4, logits has 4 classes in its last axis": lambda: bpref.ctc(blank=4).forward((), SPEECH),
    "ctc: the batch is empty, its mean is not defined": (
        lambda: bpref.ctc(reduction="mean").forward((), tuple(v[:0] for v in SPEECH))
    ),
    "sequence_cross_entropy: smoothing is 2.0, expected a number from 0 to 1": (
        lambda: bpref.sequence_cross_entropy(smoothing=2.0)
    ),
    "transducer: blank is 6, logits has 6 classes in its last axis": (
        lambda: bpref.transducer(blank=6).forward((), JOINT)
    ),
}


test_bad_input_is_refused_in_words = refusals(BAD_CALLS)


def sweep(layer, x, params=(), dy=None):
    """J and the cotangent of x's first array, in float64."""
    with jax.enable_x64(True):
        y, dparams, dx = backpropagate(layer, params, x, dy)
    return np.asarray(y), np.asarray(dx[0]), dparams


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def collapsed(path, blank):
    return tuple(k for k, _ in itertools.groupby(path) if k != blank)


def by_every_path(z, labels, blank):
    """-log P and its gradient: softmax minus how often the paths, each as likely as it is, have a class."""
    T, C = z.shape
    log_p = log_softmax(z)
    found = [path for path in itertools.product(range(C), repeat=T) if collapsed(path, blank) == tuple(labels)]
    weights = np.array([np.exp(sum(log_p[t, k] for t, k in enumerate(path))) for path in found])
    counts = sum((w * np.eye(C)[list(path)] for w, path in zip(weights, found, strict=True)), np.zeros((T, C)))
    if not weights.sum():
        return np.inf, np.zeros((T, C))
    return -np.log(weights.sum()), np.exp(log_p) - counts / weights.sum()


SHORT = [(4, (1, 2)), (4, (1, 1)), (4, ()), (3, (2, 2)), (2, (2, 2)), (4, (1, 2, 1)), (1, (1,)), (4, (1, 0)), (2, (3,))]
"""Frames and labels of three classes, with blank 0; the fifth does not fit, two have what is no label."""


def test_ctc_is_the_sum_over_every_path():
    z = np.random.default_rng(0).normal(size=(len(SHORT), 4, 3)) * 3
    labels = np.full((len(SHORT), 3), 7)
    for i, (_, of) in enumerate(SHORT):
        labels[i, : len(of)] = of
    frames = np.array([T for T, _ in SHORT])
    J, dz, _ = sweep(bpref.ctc(), (z, labels, frames, np.array([len(of) for _, of in SHORT])))
    for i, (T, of) in enumerate(SHORT):
        expected, gradient = by_every_path(z[i, :T], of, 0)
        assert J[i] == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(dz[i, :T], gradient, atol=1e-12)
        np.testing.assert_array_equal(dz[i, T:], 0)
    assert np.isinf(J).tolist() == [False] * 4 + [True] + [False] * 2 + [True] * 2


# Graves's own example, as TensorFlow's `ctc_loss_op_test.py` prints it: two sequences of 5 frames, blank 5.
GRAVES = np.array(
    [
        [
            [0.633766, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
            [0.111121, 0.588392, 0.278779, 0.0055756, 0.00569609, 0.010436],
            [0.0357786, 0.633813, 0.321418, 0.00249248, 0.00272882, 0.0037688],
            [0.0663296, 0.643849, 0.280111, 0.00283995, 0.0035545, 0.00331533],
            [0.458235, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
        ],
        [
            [0.30176, 0.28562, 0.0831517, 0.0862751, 0.0816851, 0.161508],
            [0.24082, 0.397533, 0.0557226, 0.0546814, 0.0557528, 0.19549],
            [0.230246, 0.450868, 0.0389607, 0.038309, 0.0391602, 0.202456],
            [0.280884, 0.429522, 0.0326593, 0.0339046, 0.0326856, 0.190345],
            [0.423286, 0.315517, 0.0338439, 0.0393744, 0.0339315, 0.154046],
        ],
    ]
)
GRAVES_GRADIENT = np.array(
    [
        [
            [-0.366234, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
            [0.111121, -0.411608, 0.278779, 0.0055756, 0.00569609, 0.010436],
            [0.0357786, 0.633813, -0.678582, 0.00249248, 0.00272882, 0.0037688],
            [0.0663296, -0.356151, 0.280111, 0.00283995, 0.0035545, 0.00331533],
            [-0.541765, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
        ],
        [
            [-0.69824, 0.28562, 0.0831517, 0.0862751, 0.0816851, 0.161508],
            [0.24082, -0.602467, 0.0557226, 0.0546814, 0.0557528, 0.19549],
            [0.230246, 0.450868, 0.0389607, 0.038309, 0.0391602, -0.797544],
            [0.280884, -0.570478, 0.0326593, 0.0339046, 0.0326856, 0.190345],
            [-0.576714, 0.315517, 0.0338439, 0.0393744, 0.0339315, 0.154046],
        ],
    ]
)


def test_ctc_of_gravess_example_with_nan_beyond_the_lengths():
    logits = np.concatenate([np.log(GRAVES), np.full((2, 2, 6), np.nan)], 1)
    labels = np.array([[0, 1, 2, 1, 0], [0, 1, 1, 0, -1]])
    J, dlogits, _ = sweep(bpref.ctc(blank=5), (logits, labels, np.array([5, 5]), np.array([5, 4])))
    np.testing.assert_allclose(J, [3.34211, 5.42262], atol=5e-6)
    np.testing.assert_allclose(dlogits[:, :5], GRAVES_GRADIENT, atol=2e-6)
    np.testing.assert_array_equal(dlogits[:, 5:], 0)


def test_ctc_without_frames_or_labels():
    """No frames and no labels are certain; no frames and a label impossible; frames without labels are all blank."""
    z = np.zeros((3, 2, 4))
    J, dz, _ = sweep(bpref.ctc(), (z, np.ones((3, 1), int), np.array([0, -1, 2]), np.array([0, 1, 0])))
    np.testing.assert_allclose(J, [0, np.inf, 2 * np.log(4)], rtol=1e-14)
    np.testing.assert_array_equal(dz[:2], 0)
    np.testing.assert_allclose(dz[2], [[-0.75, 0.25, 0.25, 0.25]] * 2, rtol=1e-14)


def test_ctc_of_confident_logits_stays_finite():
    """One path, of probability 1 or exp(-2000): in float32, where exp(-104) is 0."""
    z = jnp.full((2, 3, 3), -1000.0).at[:, 0, 1].set(0).at[:, 1, 0].set(0).at[:, 2, 1].set(0)
    layer = bpref.ctc()
    J, cache = layer.forward((), (z, jnp.array([[1, 1], [2, 2]]), jnp.array([3, 3]), jnp.array([2, 2])))
    dz = layer.backward((), cache, jnp.ones(2))[1][0]
    np.testing.assert_array_equal(J, [0, 2000])
    np.testing.assert_array_equal(dz[0], 0)
    np.testing.assert_array_equal(dz[1], [[0, 1, -1], [0, 0, 0], [0, 1, -1]])


def test_an_impossible_example_spoils_no_other():
    z = np.random.default_rng(1).normal(size=(2, 3, 4))
    J, dz, _ = sweep(bpref.ctc(reduction="mean"), (z, np.array([[1, 2], [1, 1]]), np.array([3, 2]), np.array([2, 2])))
    alone = sweep(bpref.ctc(reduction="mean"), (z[:1], np.array([[1, 2]]), np.array([3]), np.array([2])))
    assert np.inf == J
    np.testing.assert_allclose(dz[0], alone[1][0] / 2, rtol=1e-13)
    np.testing.assert_array_equal(dz[1], 0)


@pytest.mark.parametrize(
    ("layer", "shape", "labels", "params"),
    [
        (bpref.ctc(), (3, 4, 5), np.ones((3, 2), int), ()),
        (bpref.transducer(), (3, 4, 3, 5), np.ones((3, 2), int), ()),
        (bpref.crf(), (3, 4, 5), np.ones((3, 4), int), CRFParams(np.zeros((5, 5)), np.zeros(5), np.zeros(5))),
    ],
    ids=["ctc", "transducer", "crf"],
)
def test_a_nan_is_no_missing_path(layer, shape, labels, params):
    """Of three examples the first has it in a class that its labels name, the second beyond its length of 3."""
    z = np.random.default_rng(4).normal(size=shape)
    z[0, 1, ..., 1] = z[1, 3] = np.nan
    x = (z, labels, np.array([4, 3, 4]), np.array([2, 1, 2]))[: 3 if params else 4]
    J, dz, _ = sweep(layer, x, params)
    np.testing.assert_array_equal(np.isnan(J), [True, False, False])
    assert np.isnan(dz[0]).any()
    assert np.isfinite(dz[1:]).all()
    np.testing.assert_array_equal(dz[1, 3], 0)
    with jax.enable_x64(True):
        expected = RULES[layer.name].reference(*jax.tree.map(jnp.asarray, (params, x)))
    np.testing.assert_allclose(J, expected, rtol=1e-12)


def by_every_tagging(params, x):
    """log Z, P(y_t = k), and the expected number of each pair of neighbours."""
    T, K = x.shape
    A, s, h = params
    every = list(itertools.product(range(K), repeat=T))
    of_chain = [s[y[0]] + h[y[-1]] + sum(A[pair] for pair in itertools.pairwise(y)) for y in every]
    scores = np.array([c + sum(x[t, k] for t, k in enumerate(y)) for c, y in zip(of_chain, every, strict=True)])
    P = np.exp(scores)
    tags = sum(p * np.eye(K)[list(y)] for p, y in zip(P, every, strict=True)) / P.sum()
    pairs = np.zeros((K, K))
    for p, y in zip(P, every, strict=True):
        for pair in itertools.pairwise(y):
            pairs[pair] += p / P.sum()
    return np.log(P.sum()), tags, pairs, scores


def test_crf_is_the_sum_over_every_tagging_and_its_gradient_expected_minus_observed():
    rng = np.random.default_rng(2)
    lengths, T, K = (4, 1, 3), 4, 3
    params = CRFParams(rng.normal(size=(K, K)), rng.normal(size=K), rng.normal(size=K))
    x, tags = rng.normal(size=(3, T, K)), rng.integers(0, K, (3, T))
    J, dx, dparams = sweep(bpref.crf(), (x, tags, np.array(lengths)), params)
    with jax.enable_x64(True):
        marginals = bpref.crf_marginals(params, jnp.asarray(x), jnp.array(lengths))
    all_pairs, dA, ds, dh = np.zeros((K, K)), np.zeros((K, K)), np.zeros(K), np.zeros(K)
    for b, L in enumerate(lengths):
        log_Z, g, pairs, scores = by_every_tagging(params, x[b, :L])
        y = tags[b, :L]
        observed = np.eye(K)[y]
        assert J[b] == pytest.approx(log_Z - scores[int("".join(map(str, y)), K)], rel=1e-12)
        np.testing.assert_allclose(dx[b, :L], g - observed, atol=1e-13)
        np.testing.assert_array_equal(dx[b, L:], 0)
        np.testing.assert_allclose(marginals.tags[b, :L], g, rtol=1e-12)
        np.testing.assert_array_equal(marginals.tags[b, L:], 0)
        all_pairs += pairs
        dA += pairs - observed[:-1].T @ observed[1:]
        ds += (g - observed)[0]
        dh += (g - observed)[-1]
    np.testing.assert_allclose(marginals.pairs, all_pairs, rtol=1e-12)
    for came, expected in zip(dparams, (dA, ds, dh), strict=True):
        np.testing.assert_allclose(came, expected, atol=1e-13)


def test_crf_of_no_frames_and_of_a_tag_that_is_none():
    x = np.random.default_rng(3).normal(size=(4, 2, 3))
    params = CRFParams(np.ones((3, 3)), np.ones(3), np.ones(3))
    tags = np.array([[0, 1], [0, 3], [0, -1], [-1, 9]])
    J, dx, dparams = sweep(bpref.crf(), (x, tags, np.array([2, 2, 99, 0])), params)
    np.testing.assert_array_equal(np.isinf(J), [False, True, True, False])
    assert J[3] == 0
    np.testing.assert_array_equal(dx[1:], 0)
    alone = sweep(bpref.crf(), (x[:1], tags[:1], np.array([2])), params)
    for came, expected in zip(dparams, alone[2], strict=True):
        np.testing.assert_allclose(came, expected, rtol=1e-13)


def test_crf_of_one_tag_is_certain():
    x, tags, lengths = np.ones((2, 3, 1)), np.zeros((2, 3), int), np.array([3, 2])
    J, dx, dparams = sweep(bpref.crf(), (x, tags, lengths), CRFParams(np.ones((1, 1)), np.ones(1), np.ones(1)))
    for v in (J, dx, *dparams):
        np.testing.assert_array_equal(v, 0)


def test_crf_with_a_forbidden_transition():
    """0 to 1 may not be: of two frames and two tags three taggings are left, all alike."""
    A = np.array([[0, -np.inf], [0, 0]])
    x = np.zeros((1, 2, 2))
    J, dx, dparams = sweep(bpref.crf(), (x, np.array([[1, 0]]), np.array([2])), CRFParams(A, np.zeros(2), np.zeros(2)))
    np.testing.assert_allclose(J, [np.log(3)], rtol=1e-14)
    np.testing.assert_allclose(dx[0], [[1 / 3, -1 / 3], [-1 / 3, 1 / 3]], rtol=1e-13)
    np.testing.assert_allclose(dparams.A, [[1 / 3, 0], [-2 / 3, 1 / 3]], rtol=1e-13)


def test_sequence_cross_entropy_counts_real_tokens_alone():
    """Of uniform logits over 4 every token costs log 4, whatever NaN stands in the padding."""
    z = np.zeros((3, 2, 4))
    z[0, 1] = z[2] = np.nan
    labels, lengths = np.array([[1, 99], [2, 3], [99, -1]]), np.array([1, 9, -2])
    J, dz, _ = sweep(bpref.sequence_cross_entropy(), (z, labels, lengths))
    assert pytest.approx(np.log(4), rel=1e-14) == J
    slope = 0.25 - np.eye(4)
    np.testing.assert_allclose(dz[[0, 1, 1], [0, 0, 1]], slope[[1, 2, 3]] / 3, rtol=1e-14)
    np.testing.assert_array_equal(dz[[0, 2, 2], [1, 0, 1]], 0)
    J, dz, _ = sweep(bpref.sequence_cross_entropy(per_example=True), (z, labels, lengths))
    np.testing.assert_allclose(J, [np.log(4), np.log(4), 0], rtol=1e-14)
    np.testing.assert_allclose(dz[[0, 1, 1], [0, 0, 1]], slope[[1, 2, 3]] / [[1], [2], [2]], rtol=1e-14)
    np.testing.assert_array_equal(dz[[0, 2, 2], [1, 0, 1]], 0)


@pytest.mark.parametrize("per_example", [False, True])
def test_sequence_cross_entropy_of_nothing_but_padding_is_0(per_example):
    z, labels = np.ones((2, 3, 4)), np.zeros((2, 3), int)
    layer = bpref.sequence_cross_entropy(0.1, per_example)
    J, dz, _ = sweep(layer, (z, labels, np.zeros((2, 3), bool)))
    np.testing.assert_array_equal(J, np.zeros(2) if per_example else 0)
    np.testing.assert_array_equal(dz, 0)


def test_a_real_token_without_a_class_is_nan_there_alone():
    z, labels = np.ones((1, 2, 4)), np.array([[4, 1]])
    J, dz, _ = sweep(bpref.sequence_cross_entropy(), (z, labels, np.array([2])))
    assert np.isnan(J)
    assert np.isnan(dz[0, 0]).all()
    assert np.isfinite(dz[0, 1]).all()


def by_every_alignment(z, labels, blank):
    """-log P and its gradient, over every order of T blanks and the labels that ends with a blank."""
    T, U1, V = z.shape
    U = U1 - 1
    log_p = log_softmax(z)
    P, counts = 0.0, np.zeros_like(z)
    for at in itertools.combinations(range(T - 1 + U), U):
        t = u = 0
        weight, steps = 0.0, np.zeros_like(z)
        for i in range(T + U):
            k = labels[u] if i in at else blank
            weight += log_p[t, u, k]
            steps[t, u] += np.exp(log_p[t, u]) - np.eye(V)[k]
            t, u = (t, u + 1) if i in at else (t + 1, u)
        P += np.exp(weight)
        counts += np.exp(weight) * steps
    return -np.log(P), counts / P


def test_transducer_is_the_sum_over_every_alignment():
    rng = np.random.default_rng(4)
    sizes = [(3, 2), (1, 3), (4, 0), (4, 3), (2, 1)]
    z = rng.normal(size=(len(sizes), 4, 4, 5)) * 2
    labels = rng.integers(0, 4, (len(sizes), 3))
    frames, lengths = np.array(sizes).T
    J, dz, _ = sweep(bpref.transducer(blank=4), (z, labels, np.where(frames == 4, 99, frames), lengths))
    for i, (T, U) in enumerate(sizes):
        expected, gradient = by_every_alignment(z[i, :T, : U + 1], labels[i], 4)
        assert J[i] == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(dz[i, :T, : U + 1], gradient, atol=1e-13)
        np.testing.assert_array_equal(dz[i, T:], 0)
        np.testing.assert_array_equal(dz[i, :, U + 1 :], 0)


def test_transducer_of_what_has_no_path():
    """No frames, a label that is the blank, one that is no class; NaN beyond the lengths reaches nobody."""
    z = np.zeros((4, 2, 2, 3))
    z[0] = z[3, 1:] = z[3, :, 1:] = np.nan
    x = z, np.array([[1], [0], [3], [7]]), np.array([0, 2, 2, 1]), np.array([0, 1, 1, 0])
    J, dz, _ = sweep(bpref.transducer(), x)
    np.testing.assert_allclose(J, [np.inf, np.inf, np.inf, np.log(3)], rtol=1e-14)
    np.testing.assert_allclose(dz[3, 0, 0], [-2 / 3, 1 / 3, 1 / 3], rtol=1e-14)
    np.testing.assert_array_equal(np.delete(dz.reshape(-1, 3), 12, 0), 0)
