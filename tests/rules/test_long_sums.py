"""Sums of 16,384 terms in float32: by hand as precise as autodiff of the reference, whose sums are trees."""

import jax
import numpy as np
import pytest

import bpref
from bpref.rules import RULES
from bpref.verify import oracle
from bpref.verify.numbers.measure import rounded
from bpref.verify.rules.draw import all_of_size, draw, sized
from tests.rules.sweeping import backpropagate

T = 16384


def wide(tree):
    return jax.tree.map(lambda v: np.asarray(v, np.int64 if np.issubdtype(v.dtype, np.integer) else np.float64), tree)


def off(came, expected):
    """The relative error in the norm, of each array."""
    pairs = zip(jax.tree.leaves(wide(came)), jax.tree.leaves(wide(expected)), strict=True)
    return np.array([np.linalg.norm(v - e) / np.linalg.norm(e) for v, e in pairs])


@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize(
    ("name", "hyper", "shapes"),
    [
        ("cumulative_logsumexp", {}, [(3, T)]),
        ("cumulative_logsumexp", {"axis": 0, "reverse": True}, [(T - 5, 3)]),
        ("bilinear", {"features": T}, [(3, 3), (3, 3)]),
        ("bilinear", {"features": 3}, [(3, 3), (3, T)]),
    ],
)
def test_a_long_sum_is_as_precise_as_autodiffs(name, hyper, shapes, is_alike):
    """In sequence the cotangents of both were two to twenty times less precise; `is_alike`: every dy is positive."""
    layer, rng = getattr(bpref, name)(**hyper), np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    x = tuple(arrays) if len(arrays) > 1 else arrays[0]
    params = layer.init(jax.random.key(0), x)
    dy = rng.normal(size=jax.eval_shape(layer.forward, params, x)[0].shape).astype(np.float32)
    dy = abs(dy) if is_alike else dy

    @jax.jit
    def by_autodiff(params, x, dy):
        y, cotangents_of = oracle.with_cotangents(lambda *of: RULES[name].reference(*of, **hyper), params, x)
        return y, *cotangents_of(dy)

    own, autodiff = jax.tree.leaves(backpropagate(layer, params, x, dy)), jax.tree.leaves(by_autodiff(params, x, dy))
    with jax.enable_x64(True):
        truth = jax.tree.leaves(wide(by_autodiff(*wide((params, x, dy)))))
    assert (off(own, truth) <= 2 * off(autodiff, truth) + 2**-24).all()


def of_case(name, **sizes):
    """Forward and backward of a rule's timed case in float32 and by autodiff, and autodiff's in float64."""
    rule = RULES[name]
    case = next(case for case in rule.cases if case.timed)
    example = draw(rule, case, sized(case, all_of_size(case, 4) | sizes), 0)
    params, x, dys = rounded((example.params, example.x, example.dys), np.float32)
    dy = jax.tree.map(lambda v: abs(v[0]), dys)

    @jax.jit
    def by_autodiff(params, x, dy):
        y, cotangents_of = oracle.with_cotangents(example.reference, params, x)
        return y, *cotangents_of(dy)

    own, autodiff = backpropagate(example.layer, params, x, dy), by_autodiff(params, x, dy)
    with jax.enable_x64(True):
        return own, autodiff, by_autodiff(*wide((params, x, dy)))


@pytest.mark.parametrize(
    ("name", "axis"), [("retention", "D"), ("retention", "E"), ("gated_linear_attention", "E"), ("delta_rule", "E")]
)
def test_a_gates_cotangent_of_long_heads_is_as_precise_as_autodiffs(name, axis):
    """Products of 16,384 features in sequence made it two to ten times less precise."""
    own, autodiff, truth = (v[2].log_gate for v in of_case(name, **{axis: T}))
    assert (off(own, truth) <= 2 * off(autodiff, truth) + 2**-24).all()


def test_the_marginals_of_a_long_chain_do_not_drift():
    """Not divided by their sum at every frame: dx 5.5e-6, ds 4.1e-6 and dA 9.8e-6."""
    (_, dparams, (dx, _, _)), _, (_, true_dparams, (true_dx, _, _)) = of_case("crf", T=T)
    assert off(dx, true_dx) < 2e-7
    assert off(dparams.s, true_dparams.s) < 4e-7
    assert off(dparams.A, true_dparams.A) < 5e-6


def test_where_a_long_path_stands_does_not_drift():
    """By endings too, summed in a second recursion: 7e-6."""
    own, _, truth = (v[2][0] for v in of_case("ctc", T=T))
    assert off(own, truth) < 3e-6


def test_a_long_window_is_summed_as_a_whole():
    """An addition for each of its 2,341 elements took minutes to compile."""
    own, autodiff, truth = (jax.tree.leaves(v) for v in of_case("adaptive_pool", H=T))
    assert (off(own, truth) <= 2 * off(autodiff, truth) + 2**-24).all()


def test_a_group_of_many_places_is_summed_in_blocks():
    """65,536 places in sequence: 7.8e-7, 1.8e-5 and 3.2e-6, and autodiff, whose groups lie in one piece, 7.8e-6. With
    the sums of their blocks in sequence dx was off by 3.5e-7."""
    (y, dparams, dx), _, truth = of_case("group_norm", H=T)
    assert off(y, truth[0]) < 2e-7
    assert off(dparams.scale, truth[1].scale) < 1e-5
    assert off(dx, truth[2]) < 2e-7


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_the_weights_of_a_recurrence_of_many_examples_are_as_precise_as_autodiffs(name):
    """One product of 65,536 rows was two to five times less precise."""
    own, autodiff, truth = (jax.tree.leaves(v[1]) for v in of_case(name, B=T))
    assert (off(own, truth) <= 2 * off(autodiff, truth) + 2**-24).all()


def test_alpha_of_many_examples_is_summed_in_blocks():
    """In sequence its error was 2.1e-7, and autodiff's, by the luck of one sum, 3e-8."""
    (_, dparams, _), _, truth = of_case("dynamic_tanh", N=T)
    assert off(dparams.alpha, truth[1].alpha) < 1e-7


@pytest.mark.parametrize("n", [900, 1000])
def test_the_first_largest_of_a_long_window_gets_all(n):
    """Windows of 300 and, sharing elements, of 334: of equal values the first, and a NaN before any number."""
    x = np.zeros((1, n, 1), np.float32)
    x[0, [5, 7], 0], x[0, n // 2, 0], x[0, n - 1, 0] = 2, np.nan, -1
    y, _, dx = backpropagate(bpref.adaptive_pool((3,), "max"), (), x, np.asarray([[[1], [2], [4]]], np.float32))
    np.testing.assert_array_equal(y.ravel(), [2, np.nan, 0])
    expected = np.zeros(n)
    expected[[5, n // 2, 2 * n // 3]] = 1, 2, 4
    np.testing.assert_array_equal(dx.ravel(), expected)
