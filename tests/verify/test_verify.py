"""The checker checked: it rejects what is wrong, names where, and measures what it says it measures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import bpref
from bpref.rules.activation import tanh as tanh_rule
from bpref.rules.linear import linear as linear_rule
from bpref.verify import oracle
from bpref.verify.checked import check_leaves
from bpref.verify.examining.held import ROUND_OFF
from bpref.verify.numbers.measure import relative_error, summarise, ulp_errors
from bpref.verify.steps.names import cotangents_of_names
from tests.conftest import SEED


def with_backward(rule: bpref.Rule, change) -> bpref.Rule:
    """The rule, its layer's backward replaced by `change(layer) -> backward`."""

    def make(**hyper):
        layer = rule.make(**hyper)
        return layer._replace(backward=change(layer))

    return rule._replace(make=make)


WRONG_BACKWARDS = {
    "the cotangent's dtype": (
        lambda layer: lambda p, c, dy: (p, (dy * (1 - c.y**2)).astype(jnp.float16)),
        "x: dtype: its cotangent is float16, expected float64",
    ),
    "no cotangent": (lambda layer: lambda p, c, dy: (p, None), "x: structure: the backward returned None for it"),
    "a clipped cotangent": (
        lambda layer: lambda p, c, dy: (p, jnp.clip(dy, -1, 1) * (1 - c.y**2)),
        "x: nonlinear: not linear in dy: b(2u - 3v) is ",
    ),
    "an offset": (
        lambda layer: lambda p, c, dy: (p, dy * (1 - c.y**2) + 1e-9),
        "x: nonlinear: not linear in dy: b(0) is not 0",
    ),
    "NaN in one element": (
        lambda layer: lambda p, c, dy: (p, (dy * (1 - c.y**2)).at[3, 4].set(jnp.nan)),
        "x: nonfinite: ",
    ),
    "one element of 1536 zeroed": (
        lambda layer: lambda p, c, dy: (p, (dy * (1 - c.y**2)).at[3, 4].set(0)),
        "x: sparse: wrong only at row 3 of axis 0 and column 4 of axis 1, zero there",
    ),
    "float32 inside": (
        lambda layer: lambda p, c, dy: (p, (dy * (1 - c.y**2)).astype(jnp.float32).astype(dy.dtype)),
        "x: unexplained: no simple pattern",
    ),
}


@pytest.mark.parametrize("name", WRONG_BACKWARDS)
def test_a_wrong_backward_is_named(name):
    change, message = WRONG_BACKWARDS[name]
    report = bpref.verify_rule(with_backward(tanh_rule.RULE, change), SEED)
    assert not report.ok
    assert any(finding.startswith(message) for finding in report.findings), report.findings


def test_an_imprecise_backward_is_rejected_though_its_derivation_is_right():
    """1 - y^2 from a y that went through bfloat16 only in the low precisions."""

    def coarse(layer):
        def backward(p, c, dy):
            y = c.y if c.y.dtype == jnp.float64 else c.y.astype(jnp.bfloat16).astype(c.y.dtype)
            return p, dy * (1 - y**2)

        return backward

    report = bpref.verify_rule(with_backward(tanh_rule.RULE, coarse), SEED)
    assert [f.split(":")[:2] for f in report.findings] == [["x", " imprecise"]]
    assert report.float64 <= ROUND_OFF


def test_a_wrong_forward_and_a_large_cache_are_named():
    def make():
        layer = tanh_rule.tanh()

        def forward(params, x):
            y, cache = layer.forward(params, x)
            return y * 1.001, (cache, x, x + 1)

        return layer._replace(forward=forward, backward=lambda p, c, dy: layer.backward(p, c[0], dy * 1.001))

    report = bpref.verify_rule(tanh_rule.RULE._replace(make=make), SEED)
    assert report.findings[0].startswith("y: unexplained: no simple pattern: 1535 of 1536 values are wrong")
    assert report.findings[-1] == f"cache: 18432 bytes are kept, jax.vjp keeps {report.autodiff_bytes}"


def test_a_right_rule_is_not_accused():
    report = bpref.verify_rule(linear_rule.RULE, SEED)
    assert report.findings == ()
    assert report.ok
    assert report.cases == 4
    assert report.float64 <= 1e-12
    assert report.cache_bytes == report.autodiff_bytes


def divided_by_batch(leaf: bpref.Layer) -> bpref.Layer:
    def backward(params, cache, dZ):
        (dW, db), dA = leaf.backward(params, cache, dZ)
        return type(params)(dW / len(dZ), db), dA

    return leaf._replace(backward=backward)


@pytest.mark.parametrize("wrong", ["0 linear", "1.0 linear 'inner'", "3 linear"])
def test_checked_names_the_leaf_that_is_wrong_and_no_other(wrong):
    block = bpref.residual(bpref.serial(bpref.linear(4, name="inner"), bpref.tanh()))
    net = bpref.serial(bpref.linear(4), bpref.scan(bpref.remat(block), 3), bpref.tanh(), bpref.linear(2))
    paths = iter(bpref.leaf_paths(net))
    net = bpref.map_leaves(lambda leaf: divided_by_batch(leaf) if next(paths) == wrong else leaf, net)
    x = jnp.asarray(np.random.default_rng(SEED).normal(size=(8, 3)), jnp.float32)
    reports = check_leaves(net, net.init(jax.random.key(SEED), x), x)
    assert [r.path for r in reports] == bpref.leaf_paths(net)
    assert [r.path for r in reports if r.error > ROUND_OFF] == [wrong]
    (accused,) = (r for r in reports if r.path == wrong)
    assert accused.error == pytest.approx(7 / 8)
    assert accused.where.startswith("params.W")


def test_a_missing_gradient_is_an_infinite_error_and_an_unused_parameter_is_none():
    def without_dW(leaf):
        return leaf._replace(
            backward=lambda p, c, dZ: (type(p)(None, leaf.backward(p, c, dZ)[0].b), leaf.backward(p, c, dZ)[1])
        )

    unused = bpref.Layer(lambda key, x: jnp.ones(2), lambda p, x: (x, ()), lambda p, c, dy: (None, dy), "unused")
    net = bpref.serial(unused, bpref.tanh(), without_dW(bpref.linear(2)))
    x = jnp.ones((4, 3)) / 2
    reports = check_leaves(net, net.init(jax.random.key(SEED), x), x)
    assert [r.path for r in reports if r.error > ROUND_OFF] == ["2 linear"]
    assert reports[2].error == np.inf
    assert reports[2].where == "params.W"


def test_one_none_may_stand_for_a_whole_subtree():
    layer = bpref.Layer(
        lambda key, x: {"state": {"mean": jnp.ones(2), "count": jnp.int32(3)}, "scale": jnp.float32(2)},
        lambda p, x: (p["scale"] * x, x),
        lambda p, x, dy: ({"state": None, "scale": jnp.vdot(x, dy)}, p["scale"] * dy),
        "scale",
    )
    x = jnp.ones((2, 3))
    (right,) = check_leaves(layer, layer.init(None, x), x)
    assert right.error <= ROUND_OFF
    wrong = layer._replace(backward=lambda p, x, dy: (None, p["scale"] * dy))
    (accused,) = check_leaves(wrong, layer.init(None, x), x)
    assert (accused.error, accused.where) == (np.inf, "params.scale")


MALFORMED = {
    "no dx": (lambda p, c, dy: (p, None), "its backward returned no dx, so the layers below have no cotangent"),
    "three of them": (
        lambda p, c, dy: (p, dy, dy),
        "its backward returned PyTreeDef(((), *, *)), expected (dparams, dx)",
    ),
    "another tree": (lambda p, c, dy: (dy, dy), "its backward returned PyTreeDef((*, *)), expected (dparams, dx)"),
}


@pytest.mark.parametrize(("backward", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_backward_is_named(backward, message):
    net = bpref.serial(bpref.tanh(), bpref.relu()._replace(backward=backward, name="mine"))
    with pytest.raises(ValueError, match=r"^mine: ") as refused:
        check_leaves(net, ((), ()), jnp.ones((4, 3)))
    assert message in str(refused.value)


def test_a_cotangent_of_another_shape_is_an_infinite_error_though_it_would_broadcast():
    net = bpref.linear(3)._replace(
        backward=lambda p, c, dZ: (type(p)(dZ.T @ c.A, dZ.sum(0, keepdims=True)), dZ @ p.W),
    )
    (report,) = check_leaves(net, net.init(jax.random.key(SEED), jnp.ones((4, 2))), jnp.ones((4, 2)))
    assert (report.error, report.where) == (np.inf, "params.b")


def test_a_right_network_is_not_accused_at_one_hot_targets_or_in_mixed_precision():
    net = bpref.serial(bpref.linear(3), bpref.tanh(), bpref.linear(3))
    mixed = bpref.objective(bpref.map_leaves(bpref.cast_params(jnp.bfloat16), net), bpref.softmax_cross_entropy())
    x = (
        jnp.asarray(np.random.default_rng(SEED).normal(size=(5, 2)), jnp.bfloat16),
        jax.nn.one_hot(jnp.arange(5) % 3, 3),
    )
    x = (x[0], x[1].astype(jnp.bfloat16))
    reports = check_leaves(mixed, mixed.init(jax.random.key(SEED), x), x)
    assert max(r.error for r in reports) <= ROUND_OFF


def test_check_leaves_with_integer_targets_and_under_no_x64():
    net = bpref.objective(bpref.serial(bpref.linear(3), bpref.relu()), bpref.softmax_cross_entropy())
    x = (jnp.ones((4, 2)), jnp.array([0, 1, 2, 0]))
    reports = check_leaves(net, net.init(jax.random.key(SEED), x), x)
    assert [r.path for r in reports] == ["0.0 linear", "0.1 relu", "1 softmax_cross_entropy"]
    assert max(r.error for r in reports) <= ROUND_OFF
    assert jnp.ones(1).dtype == jnp.float32


def test_the_oracle_differentiates_at_a_named_value():
    """J = (2 z)^2 at z = x + 1 named: dJ/dz = 8 z, whatever came before z."""

    def f(x):
        z = checkpoint_name(x + 1, "z")
        return ((2 * z) ** 2).sum()

    J, named = cotangents_of_names(f, jnp.array([1.0, 2.0]))
    assert float(J) == 52
    np.testing.assert_array_equal(named["z"], [16, 24])


def test_the_bytes_kept_by_autodiff_are_counted_once_and_without_parameters():
    x, W = jnp.ones((5, 3)), jnp.ones((4, 3))
    assert oracle.bytes_kept_by_autodiff(lambda W, x: x @ W.T, W, x) == x.size * 4
    assert oracle.bytes_kept(lambda W, x: (x, W, x, jnp.ones(7)), W, x) == x.size * 4


def test_relative_error_has_one_scale_for_small_elements_and_forgives_no_nan():
    truth = np.array([1.0, 1e-6, 0.0])
    assert relative_error(truth, truth) == 0
    assert relative_error(truth + np.array([1e-3, 0, 0]), truth) == pytest.approx(1e-3)
    assert relative_error(truth + np.array([0, 1e-6, 0]), truth) == pytest.approx(1e-3)
    assert relative_error(np.array([np.nan, 1e-6, 0]), truth) == np.inf
    assert relative_error(np.array([np.nan]), np.array([np.nan])) == np.inf
    assert relative_error(np.array([np.inf]), np.array([np.inf])) == 0
    assert relative_error(np.array([np.inf]), np.array([-np.inf])) == np.inf
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0
    assert float(jax.jit(relative_error)(jnp.array([1.0, 3.0]), jnp.array([1.0, 2.0]))) == 0.5


def test_an_ulp_is_the_gap_between_neighbours():
    one = np.array([1.0])
    assert ulp_errors(np.nextafter(np.float32(1), np.float32(2)), one, jnp.float32)[0] == 1
    assert ulp_errors(np.float64(1 + 2**-8), one, jnp.bfloat16)[0] == 0.5
    assert ulp_errors(np.array([np.nan]), one, jnp.float32)[0] == np.inf
    assert summarise(np.arange(101.0)) == (50, 99, 100)
    assert summarise(np.array([])) == (0, 0, 0)
