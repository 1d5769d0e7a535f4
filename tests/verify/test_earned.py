"""check: ok is earned. At kinks the oracle is looked at too, and what has no value is equal to nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.corpus import DERIVATIONS
from tests.conftest import SEED
from tests.verify.test_check_kinks import tied_maximum
from tests.verify.written import kinds, rule, verdicts

RNG = np.random.default_rng(SEED)
ROWS = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]], np.float32)


def length(x):
    return jnp.sqrt((x * x).sum(-1))


def test_nan_in_both_is_not_equal():
    report = bpref.check(
        rule(length, lambda args, dy: (dy[:, None] * args[0] / length(args[0])[:, None],)), ROWS, key=1
    )
    assert verdicts(report) == {"x": "cannot tell"}
    assert report.verdicts[0].detail.startswith(
        "at [1, 0] and 1 more the oracle is NaN or infinite, and has no limit there; so is it; all else is right"
    )


def test_a_subgradient_is_right_where_autodiff_has_none():
    def backward(args, dy):
        r = length(args[0])[:, None]
        return (jnp.where(r > 0, dy[:, None] * args[0] / jnp.where(r > 0, r, 1), 0),)

    assert bpref.check(rule(length, backward), ROWS, key=1).ok


def test_a_row_of_minus_infinity_has_no_gradient():
    def logsumexp(x):
        m = x.max(-1, keepdims=True)
        return (m + jnp.log(jnp.exp(x - m).sum(-1, keepdims=True)))[..., 0]

    f = rule(logsumexp, lambda args, dy: (dy[:, None] * jnp.exp(args[0] - logsumexp(args[0])[:, None]),))
    x = np.where(ROWS.sum(-1, keepdims=True) == 0, -np.inf, ROWS).astype(np.float32)
    assert verdicts(bpref.check(f, x, key=1)) == {"x": "cannot tell"}
    assert bpref.check(f, ROWS, key=1).ok


def test_a_function_that_overflows_at_the_users_own_values_is_not_ok():
    def surrogate(x):
        return jnp.exp(10 * x) / (1 + jnp.exp(10 * x))

    f = rule(surrogate, lambda args, dy: (dy * 10 * surrogate(args[0]) / (1 + jnp.exp(10 * args[0])),))
    assert bpref.check(f, np.array([-1, 0.5], np.float32), key=1).ok
    report = bpref.check(f, np.array([-1, 0.5, 9, 20], np.float32), key=1)
    assert verdicts(report) == {"x": "cannot tell"}
    assert (
        report.verdicts[0].detail == "in float32 the function itself is NaN or infinite here, and its gradient at [2]"
    )


def test_a_gradient_that_overflows_as_autodiffs_does_where_the_function_does_not():
    def saturating(x):  # 1 - exp(-exp(x)), whose textbook derivative is 0 times infinity
        return 1 - jnp.exp(-jnp.exp(x))

    f = rule(saturating, lambda args, dy: (dy * jnp.exp(args[0]) * jnp.exp(-jnp.exp(args[0])),))
    report = bpref.check(f, np.array([-1, 0.5, 100], np.float32), key=1)
    assert kinds(report) == {("x", "nonfinite")}
    assert report.verdicts[0].verdict == "imprecise"
    assert report.verdicts[0].detail.endswith("and so is autodiff, though it has a value there")


def logaddexp(a, b):
    """Smooth; its formula is not, and autodiff has no slope at a tie."""
    d = jnp.where(a == b, 0, a - b)
    larger = jnp.where(a == b, jax.lax.stop_gradient(a), jnp.maximum(a, b))
    return larger + jnp.where(a == b, float(np.log(2)), jnp.log1p(jnp.exp(-jnp.abs(d))))


def logaddexp_backward(slopes):
    def backward(args, dy):
        p, tie = jax.nn.sigmoid(args[0] - args[1]), args[0] == args[1]
        return tuple(dy * jnp.where(tie, s, v) for s, v in zip(slopes, (p, 1 - p), strict=True))

    return backward


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ((0.5, 0.5), {"a": "ok", "b": "ok"}),
        ((0.0, 0.0), {"a": "wrong", "b": "wrong"}),
        ((7.0, -6.0), {"a": "wrong", "b": "wrong"}),
        ((7.0, 0.5), {"a": "wrong", "b": "ok"}),
    ],
)
def test_the_oracle_is_itself_wrong_at_a_tie(slopes, expected):
    a, b = np.array([0, 1, 2], np.float32), np.array([0, 2, -1], np.float32)
    report = bpref.check(rule(logaddexp, logaddexp_backward(slopes)), a, b, key=1)
    assert verdicts(report) == expected
    if slopes == (0.0, 0.0):
        assert kinds(report) == {("a", "oracle"), ("b", "oracle")}
        assert "and so is autodiff of the formula, which has a kink there" in str(report)


def test_a_branch_whose_autodiff_is_not_the_functions():
    def xlogy(x, y):
        return jnp.where(x == 0, 0.0, x * jnp.log(y))

    x, y = np.array([0, 1, 2], np.float32), np.array([2, 3, 4], np.float32)
    as_autodiff = rule(xlogy, lambda a, dy: (dy * jnp.where(a[0] == 0, 0, jnp.log(a[1])), dy * a[0] / a[1]))
    assert kinds(bpref.check(as_autodiff, x, y, key=1)) == {("x", "oracle")}
    assert bpref.check(rule(xlogy, lambda a, dy: (dy * jnp.log(a[1]), dy * a[0] / a[1])), x, y, key=1).ok


def test_the_oracle_is_held_against_finite_differences():
    """Autodiff of `round` is 0, and the function is x all the same."""

    def cut_off(x):
        return jnp.round(x * 2.0**40) * 2.0**-40

    x = RNG.normal(size=4).astype(np.float32)
    f = rule(cut_off, lambda args, dy: (jnp.zeros_like(dy),))
    assert bpref.check(f, x, key=1).ok
    report = bpref.check(f, x, key=1, cross_check=True)
    assert verdicts(report) == {"x": "cannot tell"}
    assert kinds(report) == {("x", "oracle")}
    assert report.verdicts[0].detail.startswith("at [0] the oracle says 0, finite differences ")
    right = rule(jnp.sin, lambda args, dy: (dy * jnp.cos(args[0]),))
    assert bpref.check(right, x, key=1, cross_check=True).ok
    assert bpref.audit(lambda x: f(x), x, key=1).verdict == "cannot tell"
    assert bpref.audit(lambda x: f(x), x, key=1, cross_check=False).ok


def test_a_gradient_that_is_stopped_on_purpose_is_no_fault_of_the_oracle():
    f = rule(lambda x: x * jax.lax.stop_gradient(x), lambda args, dy: (dy * args[0],))
    assert bpref.check(f, RNG.normal(size=4).astype(np.float32), key=1, cross_check=True).ok


@pytest.mark.parametrize("n", [11, 200])
def test_an_argmax_among_many_tied_zeros_is_right(n):
    x = np.zeros(n, np.float32)
    first = tied_maximum(lambda ties: jnp.where(jnp.cumsum(ties, -1) == 1, ties, 0.0))
    shared = tied_maximum(lambda ties: ties / ties.sum(-1, keepdims=True))
    halves = tied_maximum(lambda ties: jnp.where(ties.sum(-1, keepdims=True) > 1, ties / 2, ties))
    assert [bpref.check(f, x, key=1).ok for f in (first, shared, halves)] == [True, True, False]


def test_jaxs_own_rule_beside_an_infinity_is_right():
    report = bpref.audit(jnp.logaddexp, np.array([0, 2.0], np.float32), np.array([0, -np.inf], np.float32), key=1)
    assert report.ok, str(report)


# Precision


def zipf(tokens: int, rows: int) -> np.ndarray:
    return ((np.random.default_rng(SEED).zipf(1.3, tokens) - 1) % rows).astype(np.int32)


def lookup(W, ids):
    return W[ids]


@pytest.mark.parametrize(("accumulated", "expected"), [(None, "imprecise"), (jnp.float32, "ok")])
def test_a_gradient_as_imprecise_as_autodiff_is_not_ok(accumulated, expected):
    def backward(args, dy):
        dtype = accumulated or args[0].dtype
        return jnp.zeros(args[0].shape, dtype).at[args[1]].add(dy.astype(dtype)).astype(args[0].dtype), None

    W = jnp.asarray(RNG.normal(size=(256, 2)), jnp.bfloat16)
    report = bpref.check(rule(lookup, backward), W, zipf(16_384, 256), key=1)
    assert verdicts(report) == {"W": expected}
    if expected == "imprecise":
        assert report.verdicts[0].detail.startswith("bfloat16 as imprecise as autodiff: as a whole ")
        assert " times less precise than float32 accumulation" in report.verdicts[0].detail


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "ok"), (1.02, "imprecise"), (1.1, "imprecise")])
def test_a_factor_in_few_digits_alone_is_seen_in_the_whole_array(factor, expected):
    """Each element is off by no more than is forgiven: all of them together, and alike, are not."""

    def backward(args, dy):
        x, W = args
        return (dy @ W.T * jnp.asarray(factor if x.dtype == jnp.bfloat16 else 1, x.dtype), x.T @ dy)

    x, W = (RNG.normal(size=shape).astype(np.float32) for shape in ((8, 16), (16, 5)))
    report = bpref.check(rule(lambda x, W: x @ W, backward), x, W, key=1, dtypes=["float32", "bfloat16"])
    assert verdicts(report) == {"x": expected, "W": "ok"}
    if factor != 1:
        assert report.verdicts[0].detail.startswith(f"in bfloat16 it is {factor} times the truth, sure to 0.00")


def test_an_accumulator_inside_that_autodiff_has_too():
    def primal(W, ids):
        return W.astype(jnp.bfloat16)[ids].astype(W.dtype)

    def backward(args, dy):
        dW = jnp.zeros(args[0].shape, jnp.bfloat16).at[args[1]].add(dy.astype(jnp.bfloat16))
        return dW.astype(args[0].dtype), None

    W = RNG.normal(size=(256, 2)).astype(np.float32)
    assert verdicts(bpref.check(rule(primal, backward), W, zipf(16_384, 256), key=1)) == {"W": "imprecise"}


def test_random_numbers_are_the_same_in_the_truth():
    def dropout(key, x):
        return jnp.where(jax.random.uniform(key, x.shape, x.dtype) < 0.5, x / 0.5, 0)

    x = RNG.normal(size=(16, 8)).astype(np.float32)
    report = bpref.check(rule(dropout, lambda args, dy: (None, dropout(args[0], dy))), jax.random.key(SEED), x, key=1)
    assert report.ok
    assert report.verdicts[0].precision[0].hand.maximum <= 1


def test_an_element_that_cancels_to_zero_is_not_imprecise():
    """A row with one value that is not 0: along it a cosine does not change, and autodiff happens to say so exactly."""
    u = np.zeros((6, 7), np.float32)
    u[4, 1] = -1.18
    u[[0, 0, 1, 2, 2, 3, 3, 5, 5], [0, 2, 2, 0, 1, 3, 4, 0, 5]] = (
        0.58,
        -0.49,
        0.12,
        -1.39,
        -0.97,
        1.66,
        1.39,
        0.67,
        -0.07,
    )
    v = np.round(np.random.default_rng(SEED).normal(size=(6, 7)), 2).astype(np.float32)
    v[4] = 0.44, 0.71, -0.17, 1.52, 1.31, 0.58, -0.2
    d = DERIVATIONS["cosine_similarity"]
    for key in range(1, 5):
        report = bpref.check(d.forward, u, v, backward=d.backward, key=key)
        assert report.ok, str(report)


def test_what_is_steep_has_no_kinks():
    f = rule(lambda x: jnp.sin(1e6 * x), lambda args, dy: (jnp.cos(1e6 * args[0]) * dy * 1e6,))
    report = bpref.check(f, np.linspace(-3, 3, 12, dtype=np.float32), key=1)
    assert report.ok
    assert "kinks" not in report.verdicts[0].detail


def test_a_formula_without_a_digit_left_vouches_for_nothing():
    def flat(x):
        return (1 - jnp.cos(x)) / x**2

    wrong = rule(flat, lambda args, dy: (dy * args[0] / 7,))  # -1/12 is right
    report = bpref.check(wrong, np.linspace(1, 4, 12, dtype=np.float32) * 1e-6, key=1)
    assert verdicts(report) == {"x": "cannot tell"}
    assert "round-off may explain" in report.verdicts[0].detail
    assert verdicts(bpref.check(wrong, np.linspace(1, 4, 12, dtype=np.float32), key=1)) == {"x": "wrong"}


def test_at_a_kink_it_has_a_value_in_every_dtype():
    """A constant that is no number of the dtype: 0 / (0 + 1e-46) is a subgradient in float64, and NaN in float32."""

    def backward(args, dy):
        return (dy * args[0] / (jnp.abs(args[0]) + jnp.asarray(1e-46, dy.dtype)),)

    f = rule(jnp.abs, backward)
    assert bpref.check(f, np.array([1, 2, -2], np.float32), key=1).ok
    report = bpref.check(f, np.array([1, 0, -2], np.float32), key=1)
    assert kinds(report) >= {("x", "nonfinite")}
    assert report.verdict == "imprecise"
    assert report.verdicts[0].detail == "in float32 it is NaN or infinite at [1], where autodiff is not"


def product(of_w):
    return rule(lambda x, W: x @ W, lambda args, dy: (dy @ of_w(args[1]), args[0].T @ dy))


@pytest.mark.parametrize("number", [0.0, 1.0, 0.3])
def test_a_matrix_of_one_number_throughout_is_not_taken_for_symmetric(number):
    """It stands for any matrix: drawn symmetric at every point, what forgets to transpose it was `ok`."""
    x, W = np.ones((2, 3), np.float32), np.full((3, 3), number, np.float32)
    assert bpref.check(product(lambda W: W.T), x, W, key=1).ok
    assert verdicts(bpref.check(product(lambda W: W), x, W, key=1)) == {"x": "wrong", "W": "ok"}
