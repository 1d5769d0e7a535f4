"""fused_linear_cross_entropy and distillation: what they refuse, what they never hold, and degenerate batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.sequence_loss.fused_linear_cross_entropy import FusedLinearCrossEntropyParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, shapes_within

pytestmark = pytest.mark.quick

N, D, V = 6, 4, 50
H = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(V, D)), jnp.float32)
PARAMS = FusedLinearCrossEntropyParams(W, None)
LABELS = jnp.arange(N)
T = jax.nn.softmax(jnp.asarray(np.random.default_rng(2).normal(size=(N, V)), jnp.float32))
fused = bpref.fused_linear_cross_entropy

BAD_CALLS = {
    "fused_linear_cross_entropy: block is 0, expected a positive integer": lambda: fused(V, block=0),
    "fused_linear_cross_entropy: rows is 0, expected a positive integer": lambda: fused(V, rows=0),
    "fused_linear_cross_entropy: smoothing is 2.0, expected a number from 0 to 1": lambda: fused(V, smoothing=2.0),
    "fused_linear_cross_entropy: z_loss is -1.0, expected a number of at least 0": lambda: fused(V, z_loss=-1.0),
    "fused_linear_cross_entropy: soft_cap is 0.0, expected a positive number or None": lambda: fused(V, soft_cap=0.0),
    "fused_linear_cross_entropy: the batch is empty, its mean is not defined": (
        lambda: fused(V).forward(PARAMS, (H[:0], LABELS[:0]))
    ),
    "fused_linear_cross_entropy: the head has 50 classes C, class_weights has 2": (
        lambda: fused(V, class_weights=[1.0, 2.0])
    ),
    'fused_linear_cross_entropy: class_weights are smoothed, for which implementation "pallas" has none, "xla" has': (
        lambda: fused(V, smoothing=0.1, class_weights=[1.0] * V, implementation="pallas")
    ),
    "fused_linear_cross_entropy: target has 4 classes, expected the vocabulary's 50": (
        lambda: fused(V).forward(PARAMS, (H, H))
    ),
    "TypeError: fused_linear_cross_entropy: ignored is -1, which needs integer labels; target is float32": (
        lambda: fused(V, ignored=-1).forward(PARAMS, (H, T))
    ),
    "fused_linear_cross_entropy: rows is 2, which needs integer labels; target is float32": (
        lambda: fused(V, rows=2).forward(PARAMS, (H, T))
    ),
    "fused_linear_cross_entropy: implementation is 'pallas', which needs integer labels; target is float32": (
        lambda: fused(V, implementation="pallas").forward(PARAMS, (H, T))
    ),
    "fused_linear_cross_entropy: axes is (0,), expected a tuple of positive integers": lambda: fused(V, axes=(0,)),
    'fused_linear_cross_entropy: axes is (3,); implementation "pallas" has none, "xla" has': (
        lambda: fused(V, axes=(3,), implementation="pallas")
    ),
    "fused_linear_cross_entropy: target has shape (6,), expected (*n, 3) = (6, 3) by h (6, 4)": (
        lambda: fused(V, axes=(3,)).forward(PARAMS, (H, LABELS))
    ),
    "fused_linear_cross_entropy: W has shape (50, 4), expected (50, 3, 4), as init gives for this x": (
        lambda: fused(V, axes=(3,)).forward(PARAMS, (H, jnp.zeros((N, 3), int)))
    ),
    "distillation: temperature is 0.0, expected a positive number": lambda: bpref.distillation(0.0),
    "distillation: soft_weight is 2.0, expected a number from 0 to 1": lambda: bpref.distillation(soft_weight=2.0),
    "distillation: mixture is 1.0, expected a number between 0 and 1 or None": lambda: bpref.distillation(mixture=1.0),
    "distillation: mixture is 0.5, which has no reverse": lambda: bpref.distillation(reverse=True, mixture=0.5),
}


test_what_does_not_fit_is_refused_by_name = refusals(BAD_CALLS)


def test_no_array_of_all_logits_is_ever_made():
    def largest(layer):
        jaxpr = jax.make_jaxpr(lambda p, x: bpref.backpropagate(layer, p, x))(PARAMS, (H, LABELS))
        return max(int(np.prod(shape)) for shape in shapes_within(jaxpr.jaxpr))

    everything = {"soft_cap": 5.0, "smoothing": 0.1, "z_loss": 0.1, "ignored": -1}
    assert largest(fused(V, block=8, **everything)) == W.size < N * V
    assert largest(fused(V, block=V, **everything)) == N * V
    assert largest(fused(V, block=8, rows=2, **everything)) == W.size
    assert largest(fused(V, block=8, rows=5, **everything)) == 5 * V < N * V


def test_with_more_axes_no_array_of_all_logits_is_ever_made():
    rows = 40
    h, params = jnp.ones((rows, D)), FusedLinearCrossEntropyParams(jnp.ones((V, 3, D)), None)
    layer = fused(V, block=8, axes=(3,), smoothing=0.1, class_weights=[1.0] * V)
    labels = jnp.zeros((rows, 3), int)
    jaxpr = jax.make_jaxpr(lambda p, x: bpref.backpropagate(layer, p, x))(params, (h, labels))
    assert max(int(np.prod(shape)) for shape in shapes_within(jaxpr.jaxpr)) == 8 * 3 * rows < V * 3 * rows


def test_of_distributions_the_target_and_its_cotangent_alone_are_as_large_as_all_logits():
    layer = fused(V, block=8, smoothing=0.1, z_loss=0.1)
    jaxpr = jax.make_jaxpr(lambda p, x: bpref.backpropagate(layer, p, x))(PARAMS, (H, T)).jaxpr
    assert {shape for shape in shapes_within(jaxpr) if np.prod(shape) >= N * V} == {(N, V)}
    made = [e for e in jaxpr.eqns if any(v.aval.shape == (N, V) for v in e.outvars)]
    assert {e.primitive.name for e in made} <= {"broadcast_in_dim", "reshape", "while", "scan", "dynamic_update_slice"}


def test_one_hot_distributions_are_labels():
    own = jax.nn.one_hot(LABELS, V)
    for hyper in ({}, {"smoothing": 0.1, "z_loss": 0.1, "soft_cap": 5.0}):
        layer = fused(V, block=8, **hyper)
        J, dparams, (dh, _) = backpropagate(layer, PARAMS, (H, LABELS))
        soft, dsoft, (dh_soft, _) = backpropagate(layer, PARAMS, (H, own))
        np.testing.assert_allclose(soft, J, rtol=1e-6)
        np.testing.assert_allclose(dsoft.W, dparams.W, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(dh_soft, dh, rtol=1e-4, atol=1e-7)


def test_the_cache_does_not_grow_with_the_vocabulary():
    _, cache = fused(V).forward(PARAMS, (H, LABELS))
    assert sum(v.size for v in jax.tree.leaves(cache)) == N * (D + 4) + 1, "h, y, m, R, z_y of each row, and M"


@pytest.mark.parametrize("rows", [None, 4])
def test_each_place_of_more_axes_is_a_head_of_its_own(rows):
    hyper = {"soft_cap": 5.0, "smoothing": 0.1, "z_loss": 0.1, "ignored": -1, "reduction": "sum", "block": 8}
    params = PARAMS._replace(W=jnp.stack([W, -W, 2 * W[::-1]], 1), b=jnp.stack([W[:, 0], W[:, 1], W[:, 2]], 1))
    labels = jnp.stack([LABELS, LABELS[::-1], LABELS.at[1].set(-1)], 1)
    J, d, (dh, _) = backpropagate(fused(V, True, axes=(3,), rows=rows, **hyper), params, (H, labels))
    one = fused(V, True, **hyper)
    alone = [
        backpropagate(one, FusedLinearCrossEntropyParams(params.W[:, k], params.b[:, k]), (H, labels[:, k]))
        for k in range(3)
    ]
    np.testing.assert_allclose(J, sum(J for J, _, _ in alone), rtol=1e-6)
    np.testing.assert_allclose(dh, sum(dh for _, _, (dh, _) in alone), rtol=1e-4, atol=1e-5)
    for field in ("W", "b"):
        expected = jnp.stack([getattr(of_one, field) for _, of_one, _ in alone], 1)
        np.testing.assert_allclose(getattr(d, field), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("block", "rows"), [(1, None), (64, None), (7, 4), (25, 6), (50, 1), (64, 9)])
def test_blocks_change_nothing(block, rows):
    x = H, LABELS.at[1].set(-1)
    params = PARAMS._replace(b=W[:, 0])
    hyper = {"soft_cap": 5.0, "smoothing": 0.1, "z_loss": 0.1, "bias": True, "ignored": -1}
    for came, expected in zip(
        jax.tree.leaves(backpropagate(fused(V, block=block, rows=rows, **hyper), params, x)),
        jax.tree.leaves(backpropagate(fused(V, **hyper), params, x)),
        strict=True,
    ):
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-6)


def test_weights_of_zero_have_the_loss_log_v():
    J, dparams, _ = backpropagate(fused(V, block=8), PARAMS._replace(W=0 * W), (jnp.ones((1, D)), jnp.array([3])))
    assert pytest.approx(np.log(V), rel=1e-6) == float(J)
    np.testing.assert_allclose(dparams.W[:, 0], np.full(V, 1 / V) - np.eye(V)[3], rtol=1e-5)


def test_a_batch_of_ignored_labels_has_no_loss_and_no_gradient():
    for reduction in ("mean", "sum"):
        layer = fused(V, ignored=-100, reduction=reduction, z_loss=0.1, smoothing=0.1, block=8)
        for v in jax.tree.leaves(backpropagate(layer, PARAMS, (H, jnp.full(N, -100)))):
            np.testing.assert_array_equal(v, 0)


@pytest.mark.parametrize("rows", [None, 4])
def test_a_sum_of_no_rows_is_no_loss_and_no_gradient(rows):
    layer = fused(V, reduction="sum", smoothing=0.1, block=8, rows=rows)
    J, dparams, (dh, _) = backpropagate(layer, PARAMS, (H[:0], LABELS[:0]))
    assert dh.shape == (0, D)
    assert dparams.W.shape == PARAMS.W.shape
    for v in jax.tree.leaves((J, dparams)):
        np.testing.assert_array_equal(v, 0)


def test_ignored_rows_do_not_count_in_the_mean():
    layer = fused(V, ignored=-100, block=8)
    J, dparams, (dh, _) = backpropagate(layer, PARAMS, (H, LABELS.at[3:].set(-100)))
    few, dfew, (dh_few, _) = backpropagate(layer, PARAMS, (H[:3], LABELS[:3]))
    assert pytest.approx(float(few), rel=1e-6) == float(J)
    np.testing.assert_allclose(dparams.W, dfew.W, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(dh[:3], dh_few, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(dh[3:], 0)


def test_a_label_that_is_no_class_is_not_silent():
    J, dparams, (dh, _) = backpropagate(fused(V, block=8), PARAMS, (H, LABELS.at[2].set(V)))
    assert np.isnan(J)
    assert np.isnan(dh[2]).all()
    assert np.isfinite(np.delete(dh, 2, 0)).all()
    assert np.isnan(dparams.W).all()


def test_a_forward_alone_is_compiled_without_the_gradients_products():
    def products(f):
        text = jax.jit(f).lower(PARAMS, (H, LABELS)).compile().as_text()
        return text.count(" dot(") + text.count("__onednn$matmul") + text.count("__cpu$gemm")

    for rows, fewer in ((None, 3), (2, 2)):
        layer = fused(V, block=25, rows=rows)
        forward = products(lambda p, x, layer=layer: layer.forward(p, x)[0])
        assert products(lambda p, x, layer=layer: bpref.backpropagate(layer, p, x)) - forward == fewer


def test_a_gradient_made_in_the_forward_is_rounded_once():
    """In bfloat16 sums over all rows stay in float32 until dJ is known."""
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (PARAMS, H))
    layer = fused(V, rows=2)
    _, cache = layer.forward(half[0], (half[1], LABELS))
    assert {v.dtype for v in jax.tree.leaves(cache)} == {jnp.dtype(jnp.float32)}
    dparams, (dh, _) = layer.backward(half[0], cache, jnp.bfloat16(3))
    np.testing.assert_array_equal(dparams.W, (3 * cache.W).astype(jnp.bfloat16))
    np.testing.assert_array_equal(dh, (3 * cache.h).astype(jnp.bfloat16))


def test_a_student_that_is_its_teacher_learns_from_the_labels_alone():
    labels = jnp.zeros(N, jnp.int32)
    for hyper in ({}, {"reverse": True}, {"mixture": 0.3}):
        J, _, (da, db, _) = backpropagate(bpref.distillation(**hyper), (), (H, H, labels))
        hard, _, (dhard, _) = backpropagate(bpref.softmax_cross_entropy(), (), (H, labels))
        assert pytest.approx(0.5 * float(hard), rel=1e-5) == float(J)
        np.testing.assert_allclose(da, 0.5 * dhard, atol=1e-6)
        np.testing.assert_allclose(db, 0, atol=1e-6)


def test_distillation_by_an_even_mixture_is_the_divergence_of_jensen_and_shannon():
    x = (H, H[::-1], jnp.zeros(N, jnp.int32))
    J, _, (da, db, _) = backpropagate(bpref.distillation(1.0, 1.0, mixture=0.5), (), x)
    even, _, (dq, dp) = backpropagate(bpref.jensen_shannon(), (), x[:2])
    np.testing.assert_allclose(J, even, rtol=1e-6)
    np.testing.assert_allclose(da, dq, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(db, dp, rtol=1e-4, atol=1e-8)


def test_a_class_that_one_side_alone_gives_no_probability_costs_a_mixture_a_finite_number():
    """q = (1, 0) and p = (0, 1): D = -B log B - (1 - B) log(1 - B), and no gradient where p and q are 0."""
    x = jnp.array([[0.0, -jnp.inf]]), jnp.array([[-jnp.inf, 0.0]]), jnp.zeros(1, jnp.int32)
    J, _, (da, db, _) = backpropagate(bpref.distillation(1.0, 1.0, mixture=0.25), (), x)
    np.testing.assert_allclose(J, -0.25 * np.log(0.25) - 0.75 * np.log(0.75), rtol=1e-6)
    np.testing.assert_array_equal((da, db), 0)


@pytest.mark.parametrize("mixture", [None, 0.5])
def test_a_class_that_is_masked_on_both_sides_has_no_part_in_a_distillation(mixture):
    a, b = (v.at[:, 3].set(-jnp.inf) for v in (H, H[::-1]))
    labels = jnp.zeros(N, jnp.int32)
    layer = bpref.distillation(mixture=mixture)
    J, _, (da, _, _) = backpropagate(layer, (), (a, b, labels))
    few, _, (dfew, _, _) = backpropagate(layer, (), (a[:, :3], b[:, :3], labels))
    assert pytest.approx(float(few), rel=1e-5) == float(J)
    np.testing.assert_allclose(da, np.pad(dfew, ((0, 0), (0, 1))), atol=1e-6)


@pytest.mark.parametrize("hyper", [{}, {"rows": 4}, {"implementation": "pallas"}], ids=str)
def test_a_block_of_classes_that_are_all_shut_off_has_no_part(hyper):
    """As a vocabulary that is padded is, by a bias of -inf; here the first block, after which nothing is known yet."""
    b = jnp.where(jnp.arange(V) < 8, -jnp.inf, 0.0)
    J, d, (dh, _) = backpropagate(fused(V, True, block=8, **hyper), PARAMS._replace(b=b), (H, LABELS + 8))
    few = fused(V - 8, block=8)
    expected, dfew, (dh_few, _) = backpropagate(few, PARAMS._replace(W=W[8:]), (H, LABELS))
    assert pytest.approx(float(expected), rel=1e-6) == float(J)
    np.testing.assert_allclose(dh, dh_few, atol=1e-6)
    np.testing.assert_allclose(d.W, np.pad(dfew.W, ((8, 0), (0, 0))), atol=1e-6)


def test_each_row_has_a_term_and_a_cotangent_of_its_own_and_no_rows_at_once():
    layer, given = fused(V, ignored=-100, reduction="none", block=8), (H, LABELS.at[3].set(-100))
    J, cache = layer.forward(PARAMS, given)
    weights = jnp.linspace(-1, 1, len(H))
    dparams, (dh, _) = layer.backward(PARAMS, cache, weights)
    assert J.shape == LABELS.shape
    assert J[3] == 0
    np.testing.assert_array_equal(dh[3], 0)
    total = fused(V, ignored=-100, reduction="sum", block=8)
    alone = [backpropagate(total, PARAMS, (H[n : n + 1], given[1][n : n + 1])) for n in range(len(H))]
    np.testing.assert_allclose(J, [J for J, _, _ in alone], rtol=1e-5, atol=1e-7)
    expected = sum(w * d.W for w, (_, d, _) in zip(weights, alone, strict=True))
    np.testing.assert_allclose(dparams.W, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError) as refused:
        fused(V, reduction="none", rows=2)
    assert str(refused.value) == (
        'fused_linear_cross_entropy: rows is 2; reduction "none" has none, since each row has a dJ of its own'
    )
