"""fused_linear_distillation: beside the losses that it is of, what it never holds, and rows that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import FusedLinearDistillationParams
from tests.refusing import refusals
from tests.rules.sweeping import as_users_compile, backpropagate, shapes_within

pytestmark = pytest.mark.quick

N, D, E, V = 7, 4, 3, 50
RNG = np.random.default_rng(0)
H, TEACHER_H, W, TEACHER_W = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((N, D), (N, E), (V, D), (V, E)))
PARAMS = FusedLinearDistillationParams(W, None)
X = H, TEACHER_H, TEACHER_W, W[:, 0], jnp.arange(N)
fused = bpref.fused_linear_distillation
LOSSES = {
    "distillation": {"temperature": 1.5, "soft_weight": 0.7},
    "jensen_shannon": {},
    "total_variation": {"temperature": 2.0},
}


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
@pytest.mark.parametrize(("loss", "hyper"), LOSSES.items(), ids=LOSSES)
def test_it_is_the_loss_of_both_heads_logits(loss, hyper, rows):
    J, dparams, (dh, *others) = backpropagate(fused(V, loss, hyper, rows=rows), PARAMS, X)
    given = H @ W.T, TEACHER_H @ TEACHER_W.T + W[:, 0][None], X[-1]
    expected, _, (dz, *_) = backpropagate(
        getattr(bpref, loss)(**hyper), (), given if loss == "distillation" else given[:2]
    )
    assert others == [None] * 4
    for came, wanted in ((J, expected), (dparams.W, dz.T @ H), (dh, dz @ W)):
        np.testing.assert_allclose(came, wanted, rtol=1e-4, atol=1e-6)


def test_no_array_of_all_logits_is_ever_made():
    def largest(rows):
        layer = fused(V, rows=rows)
        jaxpr = jax.make_jaxpr(lambda p, x: bpref.backpropagate(layer, p, x))(PARAMS, X)
        return max(int(np.prod(shape)) for shape in shapes_within(jaxpr.jaxpr))

    assert largest(2) == W.size < N * V
    assert largest(N) == N * V


def test_the_program_needs_less_memory_than_one_array_of_logits():
    rows, classes = 512, 8192
    x = jnp.ones((rows, 8)), jnp.ones((rows, 8)), jnp.ones((classes, 8)), None, jnp.zeros(rows, int)
    layer = fused(classes, rows=16)
    params = layer.init(jax.random.key(0), x)
    program = as_users_compile(lambda p, x: bpref.backpropagate(layer, p, x)).lower(params, x).compile()
    assert program.memory_analysis().temp_size_in_bytes < rows * classes * 4 / 4


def test_a_forward_alone_has_the_products_of_both_heads():
    def products(f):
        text = jax.jit(f).lower(PARAMS, X).compile().as_text()
        return text.count(" dot(") + text.count("__onednn$matmul") + text.count("__cpu$gemm")

    layer = fused(V, rows=7)
    forward = products(lambda p, x: layer.forward(p, x)[0])
    assert products(lambda p, x: bpref.backpropagate(layer, p, x)) - forward == 2


def test_what_is_ignored_is_not_read_and_does_not_count():
    layer, bad = fused(V, ignored=-100, rows=2), X[-1].at[4:].set(-100)
    h, teacher_h = (v.at[4:].set(jnp.nan) for v in X[:2])
    J, dparams, (dh, *_) = backpropagate(layer, PARAMS, (h, teacher_h, *X[2:4], bad))
    few, dfew, (dh_few, *_) = backpropagate(layer, PARAMS, (H[:4], TEACHER_H[:4], *X[2:4], X[-1][:4]))
    np.testing.assert_allclose(J, few, rtol=1e-6)
    np.testing.assert_allclose(dparams.W, dfew.W, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(dh, np.pad(dh_few, ((0, 3), (0, 0))), rtol=1e-4, atol=1e-7)
    for v in jax.tree.leaves(backpropagate(layer, PARAMS, (h, teacher_h, *X[2:4], jnp.full(N, -100)))):
        np.testing.assert_array_equal(v, 0)


BAD_CALLS = {
    "fused_linear_distillation: loss is 'square', expected ...": lambda: fused(V, "square"),
    "fused_linear_distillation: hyper is {'beta': 1}, expected None or a dict of some of temperature": (
        lambda: fused(V, "total_variation", {"beta": 1})
    ),
    "fused_linear_distillation: hyper is {'reduction': 'sum'}, expected None or a dict of some of temperature": (
        lambda: fused(V, "total_variation", {"reduction": "sum"})
    ),
    "fused_linear_distillation: teacher_W has 9 classes, expected the vocabulary's 50": (
        lambda: fused(V).forward(PARAMS, (*X[:2], TEACHER_W[:9], None, X[-1]))
    ),
    "fused_linear_distillation: the batch is empty, its mean is not defined": (
        lambda: fused(V).forward(PARAMS, (H[:0], TEACHER_H[:0], *X[2:4], X[-1][:0]))
    ),
}


test_what_does_not_fit_is_refused_by_name = refusals(BAD_CALLS)
