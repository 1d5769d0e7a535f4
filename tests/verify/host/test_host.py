"""check of what is called and not traced: references, working dtypes, outputs that are not finite."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.conftest import SEED
from tests.verify.written import details, kinds, verdicts

X = np.linspace(-3, 3, 7, dtype=np.float32)
RNG = np.random.default_rng(SEED)


def softplus(x):
    return np.logaddexp(x, 0)


def softplus_backward(args, dy):
    return (dy / (1 + np.exp(-args[0])),)


def test_the_values_and_the_backward_are_held_against_the_reference():
    right = bpref.check(softplus, X, backward=softplus_backward, reference=jax.nn.softplus, key=1)
    assert verdicts(right) == {"y": "ok", "x": "ok"}
    assert right.oracle == "float64 oracle: the reference, differentiated"
    other = bpref.check(softplus, X, backward=softplus_backward, reference=jax.nn.relu, key=1)
    assert verdicts(other) == {"y": "wrong", "x": "wrong"}
    twice = lambda args, dy: (2 * softplus_backward(args, dy)[0],)  # noqa: E731
    wrong = bpref.check(softplus, X, backward=twice, reference=jax.nn.softplus, key=1)
    assert verdicts(wrong) == {"y": "ok", "x": "wrong"}
    assert kinds(wrong) == {("x", "factor")}


def test_a_reference_that_jax_cannot_trace_is_differentiated_by_numbers():
    log = lambda x: np.log(1 + np.exp(x))  # noqa: E731
    by_jax = lambda a, dy: (dy * jax.nn.sigmoid(a[0]),)  # noqa: E731
    for fun, backward in ((softplus, softplus_backward), (jax.nn.softplus, by_jax)):
        right = bpref.check(fun, X, backward=backward, reference=log, key=1)
        assert right.oracle.startswith("numerical oracle: finite differences of the reference")
        assert verdicts(right) == {"y": "ok", "x": "ok"}
        wrong = bpref.check(fun, X, backward=backward, reference=np.sinh, key=1)
        assert verdicts(wrong) == {"y": "wrong", "x": "wrong"}


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(ValueError) as error:
        bpref.check(softplus, X, backward=softplus_backward, reference=lambda x: jnp.sum(x), key=1)
    assert str(error.value) == "the reference returns [], softplus returns [7]; expected the same"


def test_precision_is_measured_in_the_dtypes_that_are_asked_for():
    given = {"backward": softplus_backward, "reference": jax.nn.softplus}
    report = bpref.check(softplus, X, **given, dtypes=["float32", "bfloat16"], key=1)
    assert [p.dtype for p in report.verdicts[1].precision] == ["float32", "bfloat16"]
    assert all(p.beside == "autodiff" for p in report.verdicts[1].precision)
    alone = bpref.check(softplus, X, backward=softplus_backward, key=1)
    (p,) = alone.verdicts[0].precision
    assert (p.dtype, p.beside) == ("float32", "attainable")
    assert p.autodiff.maximum <= 0.5 < p.hand.maximum < 4


def test_a_host_backward_that_rounds_is_imprecise_in_the_working_dtype_alone():
    def coarse(args, dy):
        (dx,) = softplus_backward(args, dy)
        return (dx.astype(np.float16).astype(np.float32) if dy.dtype == np.float32 else dx,)

    for options in ({}, {"reference": jax.nn.softplus}):
        report = bpref.check(softplus, X, backward=coarse, key=1, **options)
        assert verdicts(report)["x"] == "imprecise"
        assert kinds(report) == {("x", "imprecise")}


def test_a_kernel_in_float32_alone_is_held_against_its_reference_in_float64():
    def kernel(x):
        assert x.dtype == np.float32
        return np.sin(x)

    def backward(factor):
        return lambda args, dy: (np.float32(factor) * dy * np.cos(args[0]),)

    right = bpref.check(kernel, X, backward=backward(1), reference=jnp.sin, key=1)
    assert verdicts(right) == {"y": "ok", "x": "ok"}
    assert "computed in float32; float32 " in details(right)["x"]
    wrong = bpref.check(kernel, X, backward=backward(1.05), reference=jnp.sin, key=1)
    assert kinds(wrong) == {("x", "factor")}
    coarse = bpref.check(kernel, X, backward=backward(1.00005), reference=jnp.sin, key=1)
    assert verdicts(coarse)["x"] == "imprecise"


def test_a_callback_that_takes_float32_alone_is_held_against_its_reference():
    def on_host(x):
        assert x.dtype == np.float32
        return np.tanh(x)

    def kernel(x):
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, np.float32), x, vmap_method="sequential")

    right = lambda args, dy: (dy * (1 - jnp.tanh(args[0]) ** 2),)  # noqa: E731
    report = bpref.check(kernel, X, backward=right, reference=jnp.tanh, key=1)
    assert verdicts(report) == {"y": "ok", "x": "ok"}
    wrong = lambda args, dy: (-right(args, dy)[0],)  # noqa: E731
    assert kinds(bpref.check(kernel, X, backward=wrong, reference=jnp.tanh, key=1)) == {("x", "sign")}


def logarithm(x):
    return np.log(x)


def test_a_function_that_is_not_defined_everywhere_is_tried_where_it_is():
    x = jax.ShapeDtypeStruct((8,), np.float32)
    assert verdicts(bpref.check(logarithm, x, backward=lambda a, dy: (dy / a[0],), key=1)) == {"x": "ok"}
    assert verdicts(bpref.check(logarithm, x, backward=lambda a, dy: (7 * dy,), key=1)) == {"x": "wrong"}


def test_what_only_a_nan_depends_on_is_not_ok():
    right = bpref.check(logarithm, X, backward=lambda a, dy: (dy / a[0],), key=1)
    assert details(right) == {"x": "only outputs that are NaN or infinite depend on it at [0] and 2 more of 7 elements"}
    assert right.verdict == "cannot tell"
    wrong = bpref.check(logarithm, X, backward=lambda a, dy: (7 * dy,), key=1)
    assert wrong.verdict == "wrong"
    nowhere = bpref.check(lambda x: x * np.nan, X, backward=lambda a, dy: (7 * dy,), key=1)
    assert nowhere.verdict == "cannot tell"


def test_an_argument_is_judged_through_the_outputs_that_are_finite():
    def ragged(x, w):
        y = x * w
        y[2] = np.nan
        return y

    x, w = RNG.normal(size=(4, 5)).astype(np.float32), RNG.normal(size=5).astype(np.float32)
    report = bpref.check(ragged, x, w, backward=lambda a, dy: (dy * a[1], (dy * a[0]).sum(0)), key=1)
    assert verdicts(report) == {"x": "cannot tell", "w": "ok"}
    assert "judged through the finite outputs: y is NaN or infinite at [2, 0] and 4 more of 20" in details(report)["w"]
    wrong = bpref.check(ragged, x, w, backward=lambda a, dy: (dy * a[1], (dy * a[0]).mean(0)), key=1)
    assert verdicts(wrong)["w"] == "wrong"


def test_a_nan_of_the_function_alone_is_wrong():
    def ragged(x):
        y = np.tanh(x)
        y[-1] = np.nan
        return y

    report = bpref.check(ragged, X, backward=lambda a, dy: (dy * (1 - np.tanh(a[0]) ** 2),), reference=jnp.tanh, key=1)
    assert verdicts(report)["y"] == "wrong"
    assert report.verdict == "wrong"


def test_a_host_backward_that_clips_is_not_linear():
    clipped = lambda args, dy: (np.clip(softplus_backward(args, dy)[0], -50, 50),)  # noqa: E731
    assert kinds(bpref.check(softplus, X, backward=clipped, key=1)) == {("x", "nonlinear")}
    assert bpref.check(softplus, X, backward=clipped, key=1, linear=False).ok


SATURATED = np.float32([[3.9, -3.9, 19, 3, -16], [11, 39, 28, -21, -38]]), np.float32([[0, 70, 0, 0, 40]])
"""All but one of the probabilities nearly 0, so that y (dy - sum dy y) is little more than what rounding makes of 1."""


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_backward(args, dy, softmax=softmax):
    y = softmax(args[0])
    return (y * (dy - np.sum(y * dy, -1, keepdims=True)),)


@pytest.mark.parametrize("x", SATURATED, ids=["two rows", "one"])
def test_terms_that_cancel_inside_accuse_no_right_backward(x):
    """Moved inputs do not move a probability of 1 - 4e-7: what it is off is of the backward's own rounding."""
    for key in range(6):
        report = bpref.check(softmax, x, backward=softmax_backward, reference=jax.nn.softmax, key=key)
        assert verdicts(report)["x"] in ("ok", "cannot tell"), str(report)


def test_what_overflows_by_hand_and_in_its_reference_alike_is_undefined_and_no_fault_of_the_hand():
    def unshifted(x):
        e = np.exp(x)
        return e / e.sum(-1, keepdims=True)

    backward = partial(softmax_backward, softmax=unshifted)
    x = np.array([[100.0, 99.0, 98.0]], np.float32)
    report = bpref.check(unshifted, x, backward=backward, reference=unshifted_by_jax, key=1)
    assert verdicts(report) == {"y": "cannot tell", "x": "cannot tell"}, str(report)
    assert "in float32 the function itself is NaN or infinite" in details(report)["y"]
    shifted = bpref.check(unshifted, x, backward=backward, reference=jax.nn.softmax, key=1)
    assert verdicts(shifted) == {"y": "imprecise", "x": "imprecise"}, str(shifted)
    # In float64 the square of the sum overflows at one of the points, and autodiff of the reference says so.
    report = bpref.check(unshifted, 2 * x, backward=backward, reference=unshifted_by_jax, key=1)
    assert verdicts(report)["x"] == "cannot tell"
    assert "the oracle says" in details(report)["x"]


def test_right_rounding_inside_of_the_reference_is_no_mistake_of_the_hand():
    """One query and four keys, the scores far apart: what autodiff loses of 1 - p is more than the inputs' rounding."""
    rng = np.random.default_rng(0)
    for scale in (10.0, 30.0):
        q, k = (scale * rng.normal(size=(2, 1, 3))).astype(np.float32), rng.normal(size=(2, 4, 3)).astype(np.float32)
        for key in range(3):
            report = bpref.check(scores, q, k, backward=scores_backward, reference=by_jax, key=key)
            assert report.verdict in ("ok", "cannot tell"), str(report)


def scores(q, k):
    return softmax(q @ np.swapaxes(k, -1, -2))


def scores_backward(args, dp):
    q, k = args
    (dz,) = softmax_backward((q @ np.swapaxes(k, -1, -2),), dp)
    return dz @ k, np.swapaxes(dz, -1, -2) @ q


def by_jax(q, k):
    return unshifted_by_jax(q @ jnp.swapaxes(k, -1, -2))


def unshifted_by_jax(z):
    e = jnp.exp(z)
    return e / jnp.sum(e, -1, keepdims=True)


def test_where_terms_cancel_a_backward_that_leaves_one_out_is_wrong():
    def backward(args, dy):
        y = softmax(args[0])
        return (y * (1 - y) * dy,)

    assert verdicts(bpref.check(softmax, SATURATED[0], backward=backward, reference=jax.nn.softmax))["x"] == "wrong"


def test_a_cotangent_of_a_narrower_dtype_is_said():
    half = lambda args, dy: (softplus_backward(args, dy)[0].astype(np.float16),)  # noqa: E731
    report = bpref.check(softplus, X, backward=half, key=1)
    assert details(report) == {"x": "its cotangent is float16, expected float32"}


def test_arrays_of_four_axes_have_a_precision_of_their_elements():
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 2, 2)
    report = bpref.check(softplus, x, backward=softplus_backward, key=1)
    (verdict,) = report.verdicts
    assert verdict.verdict == "ok"
    assert len(verdict.precision[0].worst) == 4
    assert 0 < verdict.precision[0].whole < 1e-7


def squared(forward, backward):
    rule = jax.custom_vjp(jnp.square)
    rule.defvjp(forward, backward)
    return rule


IN_NUMPY = {
    "the backward of tanh": lambda slope: bpref.check(
        jnp.tanh, X, backward=lambda args, dy: (slope * np.multiply(dy, 1 - np.square(np.tanh(args[0]))),), key=1
    ),
    "the backward of square": lambda slope: bpref.check(
        squared(lambda x: (jnp.square(x), x), lambda x, dy: (slope * np.multiply(2 * np.asarray(x), dy),)), X, key=1
    ),
    "the forward rule of square": lambda slope: bpref.check(
        squared(lambda x: (np.square(x), x), lambda x, dy: (slope * 2 * x * dy,)), X, key=1
    ),
}


@pytest.mark.parametrize("stage", IN_NUMPY)
def test_a_rule_in_numpy_beside_a_function_of_jax_is_called_with_arrays(stage):
    right, wrong = IN_NUMPY[stage](1), IN_NUMPY[stage](1.5)
    assert right.notes == (f"JAX cannot trace {stage}: it was called as a host function, with arrays",)
    assert (right.verdict, wrong.verdict) == ("ok", "wrong"), f"{right}\n{wrong}"


def test_a_forward_rule_that_reads_values_is_named_and_not_the_backward():
    rule = squared(lambda x: (np.square(x), x), lambda x, dy: (2 * x * dy,))

    def twice(x):
        return rule(rule(x))

    with pytest.raises(ValueError, match=r"^the forward rule of twice raised TracerArrayConversionError: "):
        bpref.check(twice, X, key=1)


BUFFER = np.zeros_like(X)
WRITING = {
    "into dy": lambda args, dy: (np.multiply(dy, 2, out=dy),),
    "into its arguments": lambda args, dy: (np.multiply(dy, 2, out=args[0]),),
    "into one buffer": lambda args, dy: (np.multiply(dy, 2, out=BUFFER, casting="same_kind"),),
}


@pytest.mark.parametrize("where", WRITING)
def test_a_backward_in_numpy_may_write(where):
    report = bpref.check(lambda x: x * 2, X, backward=WRITING[where], key=1)
    assert report.ok, str(report)
    assert not bpref.check(lambda x: x * 3, X, backward=WRITING[where], key=1).ok


def test_a_specification_is_filled_with_what_a_called_function_is_defined_for():
    report = bpref.check(
        lambda A: np.linalg.slogdet(A)[1] + 0 * np.linalg.cholesky(A).sum(),
        jax.ShapeDtypeStruct((3, 3), np.float32),
        backward=lambda args, dy: (dy * np.linalg.inv(args[0]).T,),
        key=1,
    )
    assert report.ok, str(report)


def test_outputs_whose_shapes_change_with_values_are_refused():
    x, zero = np.random.default_rng(1).normal(size=400), lambda args, dy: (np.zeros_like(args[0]),)
    with pytest.raises(ValueError, match=r"^positive: the shapes of its outputs change with the values"):
        bpref.check(positive, x, backward=zero, key=1)


def positive(x):
    return x[x > 0]


KINKED = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: x > 0, (0, 0.25, 1), (-0.1, 1.02, 2)),
    "abs": (np.abs, np.sign, (-1, 0, 1), (-1.1, 2)),
}


@pytest.mark.parametrize(("f", "slope", "right", "wrong"), KINKED.values(), ids=KINKED)
def test_at_a_kink_whatever_is_between_the_slopes_on_either_side_is_right_and_nothing_else(f, slope, right, wrong):
    at_zero = np.array([0.0, 1, -1, 0], np.float32)

    def report(chosen):
        def backward(args, dy):
            return (dy * np.where(args[0] == 0, chosen, slope(args[0])).astype(dy.dtype),)

        return bpref.check(f, at_zero, backward=backward, key=1)

    assert [verdicts(report(s))["x"] for s in right] == ["ok"] * len(right)
    assert [verdicts(report(s))["x"] for s in wrong] == ["wrong"] * len(wrong)
    assert "; at 2 kinks it has another subgradient, as right" in details(report(right[-1]))["x"]
    assert details(report(2))["x"].endswith(", at a kink")


def test_a_smooth_function_that_turns_sharply_has_no_kink():
    """Of softplus the slope at 0 is known, 1/2, and no other between 0 and 1 is right."""
    x, sharply = np.array([0.0, 1, -1]), lambda x: np.logaddexp(0, 1e5 * x) / 1e5
    slopes = {s: bpref.check(sharply, x, backward=lambda a, dy, s=s: (dy * np.heaviside(a[0], s),)) for s in (0.5, 0.9)}
    assert {s: verdicts(report)["x"] for s, report in slopes.items()} == {0.5: "ok", 0.9: "wrong"}
