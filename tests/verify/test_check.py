"""check: it accuses what is wrong, names where and why, and accuses nothing that is right."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.corpus import DERIVATIONS
from bpref.verify.examining.refusals import CannotCheck
from tests.conftest import SEED

RNG = np.random.default_rng(SEED)
X = RNG.normal(size=(5, 7)).astype(np.float32)
G = RNG.normal(size=7).astype(np.float32)


def verdicts(report: bpref.Report) -> dict[str, str]:
    return {v.where: v.verdict for v in report.verdicts}


def kinds(report: bpref.Report) -> set[tuple[str, str]]:
    return {(f.where, f.kind) for f in report.findings}


def rule(primal, backward, **options):
    """A custom_vjp function that keeps its arguments."""
    f = jax.custom_vjp(primal, **options)
    f.defvjp(lambda *args: (primal(*args), args), lambda *rest: backward(*rest))
    return f


def rms_norm(factor: float = 1.0):
    def primal(x, g):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * g[None, :]

    def backward(args, dy):
        x, g = args
        r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        d, xhat = dy * g[None, :], x * r
        return factor * r * (d - xhat * jnp.mean(d * xhat, -1, keepdims=True)), jnp.sum(dy * xhat, 0)

    return rule(primal, backward)


def test_a_report_says_where_and_why():
    report = bpref.check(rms_norm(2.0), X, G, key=1729)
    assert not report.ok
    assert verdicts(report) == {"x": "wrong", "g": "ok"}
    assert kinds(report) == {("x", "factor")}
    lines = str(report).splitlines()
    assert lines[0] == "primal   float64 oracle: its own primal, differentiated   key 1729"
    assert lines[1] == "  x   WRONG   2.000 x the reference, every element: a constant factor 2"
    assert lines[2].startswith("  g   ok      ")
    assert " in float64; float32 " in lines[2]


def test_a_report_is_json_and_raises():
    wrong, right = bpref.check(rms_norm(2.0), X, G, key=1), bpref.check(rms_norm(), X, G, key=1)
    plain = json.loads(wrong.to_json())
    assert (plain["verdict"], plain["ok"], plain["key"]) == ("wrong", False, 1)
    assert [v["where"] for v in plain["verdicts"]] == ["x", "g"]
    with pytest.raises(AssertionError, match=r"2\.000 x the reference"):
        wrong.raise_if_wrong()
    assert right.raise_if_wrong() is right
    with pytest.raises(AssertionError, match=r"2\.000 x the reference"):
        bpref.assert_gradient(rms_norm(2.0), X, G)
    bpref.assert_gradient(rms_norm(), X, G)


def test_the_same_key_gives_the_same_report_and_a_new_one_is_drawn_and_named():
    f = rms_norm()
    assert bpref.check(f, X, G, key=3) == bpref.check(f, X, G, key=3)
    assert bpref.check(f, X, G).key != bpref.check(f, X, G).key


def test_x64_never_leaks():
    bpref.check(rms_norm(), X, G)
    with pytest.raises(ValueError, match="raised ZeroDivisionError"):
        bpref.check(jnp.tanh, X, backward=lambda args, dy: 1 / 0)
    assert jnp.ones(1).dtype == jnp.float32


def test_a_custom_vjp_with_nondiff_argnums_and_static_arguments():
    @partial(jax.custom_vjp, nondiff_argnums=(1, 2))
    def power(x, n, name):
        return x**n

    power.defvjp(lambda x, n, name: (x**n, x), lambda n, name, x, dy: (dy * n * x ** (n - 1),))
    assert verdicts(bpref.check(power, jnp.abs(X), 3, "cube")) == {"x": "ok"}
    power.defvjp(lambda x, n, name: (x**n, x), lambda n, name, x, dy: (dy * x ** (n - 1),))
    report = bpref.check(power, jnp.abs(X), 3, "cube")
    assert kinds(report) == {("x", "factor")}
    assert "0.3333 x the reference" in str(report)


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_a_custom_jvp_inside_jit_inside_scan(slope):
    relu = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    relu.defjvp(lambda primals, tangents: (relu(*primals), jnp.where(primals[0] > 0, slope * tangents[0], 0)))

    def f(x, w):
        def step(c, _):
            return jax.jit(relu)(c @ w), None

        return jax.lax.scan(jax.checkpoint(step), x, None, length=2)[0]

    w = np.random.default_rng(SEED).normal(size=(7, 7)).astype(np.float32)
    assert verdicts(bpref.check(f, X, w)) == dict.fromkeys("xw", "ok" if slope == 1 else "wrong")


def test_a_layer_is_named_by_its_params():
    layer = bpref.serial(bpref.linear(4), bpref.tanh())
    params = layer.init(jax.random.key(SEED), X)
    assert verdicts(bpref.check(layer, params, X)) == {"params[0].W": "ok", "params[0].b": "ok", "x": "ok"}
    linear = bpref.linear(4)
    halved = linear._replace(
        backward=lambda p, c, dy: (linear.backward(p, c, dy)[0]._replace(b=dy.mean(0)), linear.backward(p, c, dy)[1])
    )
    report = bpref.check(halved, params[0], X)
    assert kinds(report) == {("params.b", "mean_for_sum")}


def test_a_reference_is_held_against_the_output_too():
    f = rule(lambda x: 3 * jnp.sin(x), lambda args, dy: (3 * dy * jnp.cos(args[0]),))
    report = bpref.check(f, X, reference=jnp.sin)
    assert verdicts(report) == {"y": "wrong", "x": "wrong"}
    assert bpref.check(f, X).ok


def test_specifications_are_filled_and_retried_where_the_function_is_not_defined():
    f = rule(jnp.log, lambda args, dy: (dy / args[0],))
    assert bpref.check(f, jax.ShapeDtypeStruct((4, 3), jnp.float32), key=1).ok
    chol = lambda a: jnp.linalg.cholesky(a, symmetrize_input=True)  # noqa: E731
    f = rule(chol, lambda args, dy: (jnp.zeros_like(args[0]),))
    report = bpref.check(f, jax.ShapeDtypeStruct((3, 3), jnp.float32), key=1)
    assert kinds(report) == {("a", "zero")}


def test_an_argument_called_y_and_integers_among_the_arguments():
    f = rule(
        lambda x, y, ids: x[ids] * y,
        lambda args, dy: (jnp.zeros_like(args[0]).at[args[2]].add(dy * args[1]), dy * args[0][args[2]], None),
    )
    ids = np.array([1, 3, 1])
    assert verdicts(bpref.check(f, X, X[:3], ids)) == {"x": "ok", "y": "ok"}


# What the usual checkers miss


def test_inputs_made_with_the_checkers_own_seed():
    state = np.random.RandomState(0)
    x, g = state.randn(5, 7).astype(np.float32), state.randn(7).astype(np.float32)
    for key in (0, 1):
        x2 = np.random.default_rng(key).normal(size=(5, 7)).astype(np.float32)
        assert kinds(bpref.check(rms_norm(-1.0), x, g, key=key)) == {("x", "sign")}
        assert kinds(bpref.check(rms_norm(0.0), x2, g, key=key)) == {("x", "zero")}


def test_a_derivative_slightly_wrong_in_one_of_many_elements():
    x = np.random.default_rng(SEED).normal(size=100_000).astype(np.float32)
    f = rule(jnp.sin, lambda args, dy: ((dy * jnp.cos(args[0])).at[1234].multiply(1.0001),))
    report = bpref.check(f, x)
    assert kinds(report) == {("x", "sparse")}
    assert "1234" in str(report)


def test_nan_is_never_equal():
    f = rule(jnp.sin, lambda args, dy: ((dy * jnp.cos(args[0])).at[0, 0].set(jnp.nan),))
    assert kinds(bpref.check(f, X)) == {("x", "nonfinite")}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_right_tanh_is_right_in_every_dtype(dtype):
    f = rule(jnp.tanh, lambda args, dy: (dy * (1 - jnp.tanh(args[0]) ** 2),))
    assert bpref.check(f, jnp.asarray(X, dtype)).ok


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
def test_a_clip_is_found_wherever_it_is_set_and_may_be_declared(limit):
    f = rule(jnp.sin, lambda args, dy: (jnp.clip(dy, -limit, limit) * jnp.cos(args[0]),))
    assert kinds(bpref.check(f, X)) == {("x", "clipped")}
    if limit >= 1:
        assert bpref.check(f, X, linear=False).ok


def test_a_backward_that_is_not_linear():
    f = rule(jnp.sin, lambda args, dy: (jnp.abs(dy) * jnp.cos(args[0]),))
    report = bpref.check(f, X, key=1)
    assert kinds(report) == {("x", "nonlinear")}
    assert report.findings[0].detail == "not linear in dy: b(2u - 3v) is 2.0e+00 off 2b(u) - 3b(v)"


# Precision


def test_a_right_derivation_that_computes_in_half_precision_is_imprecise():
    def coarse(args, dy):
        half = jnp.cos(args[0]).astype(jnp.bfloat16).astype(args[0].dtype)
        return (dy * half,)

    f = rule(jnp.sin, coarse)
    for key in range(10):
        report = bpref.check(f, X, key=key)
        assert verdicts(report) == {"x": "imprecise"}
        assert "casts down to bfloat16" in report.notes[0]


def test_a_function_that_only_runs_in_float32_is_checked_in_float64():
    def primal(x):
        return jax.lax.scan(lambda c, v: (c + (v * v).sum(), None), jnp.zeros((), jnp.float32), x)[0]

    assert bpref.check(rule(primal, lambda args, dy: (2 * args[0] * dy,)), X).ok
    assert bpref.check(rule(primal, lambda args, dy: (2.0001 * args[0] * dy,)), X).verdict == "wrong"
    report = bpref.check(rule(primal, lambda args, dy: (3 * args[0] * dy,)), X)
    assert kinds(report) == {("x", "factor")}


def test_a_saturated_function_is_not_accused_of_round_off():
    f = rule(jnp.tanh, lambda args, dy: (dy * (1 - jnp.tanh(args[0]) ** 2),))
    x = np.full(4, 17.3, np.float32) + np.arange(4, dtype=np.float32) / 10
    report = bpref.check(f, x)
    assert report.verdict in ("ok", "cannot tell")
    assert bpref.check(f, np.concatenate([x, X[0]])).verdict != "wrong"


def test_overflow_in_the_working_dtype_is_found():
    f = rule(
        lambda x: jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0),
        lambda args, dy: (dy * jnp.exp(args[0]) / (1 + jnp.exp(args[0])),),
    )
    report = bpref.check(f, np.linspace(90, 100, 5, dtype=np.float32))
    assert kinds(report) == {("x", "nonfinite")}


# Kinks and ties


@pytest.mark.parametrize(("slope", "right"), [(0.0, True), (0.5, True), (1.0, True), (-0.1, False), (1.5, False)])
def test_any_subgradient_is_accepted_at_a_kink(slope, right):
    f = rule(
        lambda x: jnp.maximum(x, 0.0),
        lambda args, dy: (jnp.where(args[0] == 0, slope, (args[0] > 0).astype(dy.dtype)) * dy,),
    )
    report = bpref.check(f, np.array([-1.0, 0.0, 2.0, 0.0], np.float32))
    assert report.ok == right
    assert {k for _, k in kinds(report)} <= {"kink"} if right else "kink" not in {k for _, k in kinds(report)}


def tied_maximum(share):
    def backward(args, dy):
        ties = (args[0] == args[0].max(-1, keepdims=True)).astype(dy.dtype)
        return (share(ties) * dy[..., None],)

    return rule(lambda x: x.max(-1), backward)


def test_ties_may_be_broken_in_any_way_that_gives_all_of_the_cotangent():
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], np.float32)
    first = tied_maximum(lambda ties: jnp.where(jnp.cumsum(ties, -1) == 1, ties, 0.0))
    assert bpref.check(tied_maximum(lambda ties: ties / ties.sum(-1, keepdims=True)), x).ok
    assert bpref.check(first, x).ok
    assert not bpref.check(tied_maximum(lambda ties: jnp.where(ties.sum(-1, keepdims=True) > 1, 0.0, ties)), x).ok
    assert not bpref.check(tied_maximum(lambda ties: ties), x).ok


def test_a_smooth_function_whose_formula_has_a_kink():
    """log(1 + exp(x)) as max(x, 0) + log1p(exp(-|x|)): smooth at 0, where autodiff of max alone says 1/2."""

    def loss(x):
        return jnp.where(x > 0, x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))

    right = rule(loss, lambda args, dy: (dy * jax.nn.sigmoid(args[0]),))
    assert bpref.check(right, np.array([0.0, 1.0, -1.0, 0.0], np.float32)).ok


# Right derivations at awkward values

AWKWARD = {
    "singular": ("inverse", [np.ones((2, 2))]),
    "nothing but zeros": ("cosine_similarity", [np.zeros((1, 1)), np.zeros((1, 1))]),
    "overflow": ("gaussian_kl", [np.zeros((1, 1)), np.full((1, 1), 2e18)]),
    "a kink that cancels": ("sigmoid_cross_entropy", [np.zeros((1, 5)), np.zeros((1, 5))]),
    "underflow": ("softmax", [np.array([[0, 0, 0, 0, -2000.0]])]),
    "a gradient of zero": ("attention", [np.zeros((1, 2, 1)), np.ones((1, 2, 1)), np.array([[[0.3], [-1.2]]])]),
}


@pytest.mark.parametrize(("name", "values"), AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("key", [0, 11])
def test_a_right_derivation_is_not_accused_at_awkward_values(name, values, key):
    derivation = DERIVATIONS[name]
    args = [v.astype(np.float32) for v in values]
    report = bpref.check(derivation.forward, *args, backward=derivation.backward, key=key)
    assert report.verdict == ("cannot tell" if name in ("gaussian_kl", "inverse", "cosine_similarity") else "ok"), str(
        report
    )


def test_total_cancellation_is_not_accused():
    """RMS norm of one feature: its gradient is 1e-43 of the terms that it is the difference of."""
    f, x, g = rms_norm(), np.array([[2e18]], np.float32), np.zeros(1, np.float32)
    assert {bpref.check(f, x, g, key=key).verdict for key in range(8)} <= {"ok", "cannot tell"}


def test_dtypes_may_leave_out_that_of_the_arguments():
    report = bpref.check(rms_norm(), X, G, dtypes=["bfloat16", "float16"], key=1)
    assert report.ok
    assert [p.dtype for p in report.verdicts[0].precision] == ["bfloat16", "float16"]


def test_ties_are_right_whatever_the_key():
    first = tied_maximum(lambda ties: jnp.where(jnp.cumsum(ties, -1) == 1, ties, 0.0))
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], np.float32)
    assert [key for key in range(20) if not bpref.check(first, x, key=key).ok] == []


# Forms


def test_what_comes_back_in_the_wrong_form():
    f = lambda x, w: jnp.tanh(x) * w  # noqa: E731
    both = lambda args, dy: (dy * args[1] * (1 - jnp.tanh(args[0]) ** 2), dy * jnp.tanh(args[0]))  # noqa: E731
    check = partial(bpref.check, f, X, X)
    assert check(backward=both).ok
    said = {
        "returned 1 cotangent; expected a tuple of 2": lambda a, dy: both(a, dy)[:1],
        "returned a generator": lambda a, dy: (v for v in both(a, dy)),
        "returned float32[5, 7], not a tuple": lambda a, dy: both(a, dy)[0],
        "returned None for it, which stands for zero": lambda a, dy: (both(a, dy)[0], None),
        "its cotangent is float16, expected float32": lambda a, dy: (
            both(a, dy)[0],
            both(a, dy)[1].astype(jnp.float16),
        ),
    }
    for message, backward in said.items():
        report = check(backward=backward)
        assert verdicts(report)["w"] == "wrong"
        assert message in str(report)
        assert {k for w, k in kinds(report) if w == "w"} <= {"structure", "dtype"}


def test_a_forgotten_sum_and_a_transposed_matrix_by_their_shapes():
    f = lambda x, W, b: x @ W.T + b[None, :]  # noqa: E731
    W, b = RNG.normal(size=(4, 7)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
    report = bpref.check(f, X, W, b, backward=lambda a, dy: (dy @ a[1], a[0].T @ dy, dy))
    assert kinds(report) == {("W", "transposed"), ("b", "missing_sum")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bpref.check(jnp.sin, X, key="a"), "check: key is a str, expected a whole number"),
        (
            lambda: bpref.check(bpref.linear(3, name="fc"), X),
            "check: linear 'fc' is a Layer, which takes 2 arguments, params and x (params = ",
        ),
        (lambda: bpref.check("f"), "check: fun is a str, expected a function or a Layer"),
        (lambda: bpref.check(jnp.sin, X, backward=3), "check: backward is 3, expected a function"),
        (lambda: bpref.check(jnp.sin, X), "sin: nothing in it is derived by hand"),
        (lambda: bpref.check(jnp.sin, 1.0, backward=lambda a, d: (d,)), "sin: no argument is an array"),
        (lambda: bpref.check(jnp.sin, np.arange(3), backward=lambda a, d: (d,)), "sin: no argument is an array"),
        (lambda: bpref.check(jnp.sin, X, X, backward=lambda a, d: (d,)), "sin raised TypeError: sin() takes 1"),
        (lambda: bpref.check(jnp.sin, X, backward=lambda a, d: (d[9, 9, 9],)), "the backward of sin raised "),
        (lambda: bpref.check(jnp.sin, X, reference=lambda x: 1 / 0), "the reference raised ZeroDivisionError"),
        (
            lambda: bpref.check(lambda x: "a", X, backward=lambda a, d: (d,)),
            "<lambda> returned a str, expected an array",
        ),
        (lambda: bpref.check(lambda x: None, X, backward=lambda a, d: (d,)), "<lambda>: it returns no floating-point"),
        (
            lambda: bpref.check(lambda x: jax.nn.relu(x) if x.sum() > 0 else x, X),
            "<lambda> works on arrays but cannot be traced by JAX",
        ),
    ],
)
def test_a_call_that_cannot_be_checked_says_who_is_at_fault(call, message):
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_function_with_two_answers_is_no_function():
    f = lambda x: x * np.float32(np.random.rand())  # noqa: E731
    report = bpref.check(f, X, backward=lambda args, dy: (dy,))
    assert verdicts(report)["x"] == "cannot tell"
    assert "called twice with the same arguments it gives two answers" in str(report)


def test_a_function_that_answers_otherwise_eagerly_or_under_vmap():
    def shy(x):
        return jnp.sin(x) if isinstance(x, jax.core.Tracer) else 2 * jnp.sin(x)

    backward = lambda args, dy: (dy * jnp.cos(args[0]),)  # noqa: E731
    assert bpref.check(shy, X, backward=backward).ok
    report = bpref.check(shy, X, backward=backward, eager=True)
    assert ("y", "impure") in kinds(report)
    batched = jax.custom_batching.custom_vmap(lambda dy: dy)
    batched.def_vmap(lambda size, in_batched, dy: (2 * dy, in_batched[0]))
    report = bpref.check(jnp.sin, X, backward=lambda args, dy: (batched(dy) * jnp.cos(args[0]),))
    assert not report.ok


def test_empty_arrays_and_complex_functions():
    square = lambda z: z * z  # noqa: E731
    right, wrong = (lambda a, dy: (2 * a[0] * dy,)), (lambda a, dy: (2 * jnp.conj(a[0]) * dy,))
    assert bpref.check(square, np.zeros((0, 3), np.float32), backward=right).ok
    z = (X + 1j * X[::-1]).astype(np.complex64)
    assert bpref.check(square, z, backward=right).ok
    assert not bpref.check(square, z, backward=wrong).ok


# Numbers in place of an oracle


def host(x, w):
    return np.tanh(x @ w)


def host_backward(args, dy):
    x, w = args
    d = dy * (1 - np.tanh(x @ w) ** 2)
    return d @ w.T, x.T @ d


def test_a_numpy_function_is_checked_by_numbers():
    w = np.random.default_rng(3).normal(size=(7, 3)) / 4  # tanh is not saturated, where 1 - y^2 is imprecise
    right = bpref.check(host, X, w, backward=host_backward, key=1)
    assert verdicts(right) == {"x": "ok", "w": "ok"}
    assert right.oracle.startswith("numerical oracle")
    wrong = bpref.check(
        host, X, w, backward=lambda a, dy: (host_backward(a, dy)[0] * 2, host_backward(a, dy)[1]), key=1
    )
    assert kinds(wrong) == {("x", "factor")}


def test_a_host_function_in_float32_and_one_that_is_too_noisy():
    single = lambda x: np.sin(x.astype(np.float32))  # noqa: E731
    assert bpref.check(single, X, backward=lambda a, dy: (np.cos(a[0]) * dy,), key=1).ok
    assert bpref.check(single, X, backward=lambda a, dy: (1.05 * np.cos(a[0]) * dy,), key=1).verdict == "wrong"
    noise = lambda x: np.asarray(x) + 0.1 * np.sin(1e9 * np.asarray(x))  # noqa: E731
    assert bpref.check(noise, X, backward=lambda a, dy: (dy,), key=1).verdict != "ok"


def test_a_rule_over_a_callback_is_not_its_own_oracle():
    def sine(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    small = X[:2, :3]
    assert bpref.check(rule(sine, lambda args, dy: (dy * jnp.cos(args[0]),)), small, key=1).ok
    report = bpref.check(rule(sine, lambda args, dy: (-dy * jnp.cos(args[0]),)), small, key=1)
    assert kinds(report) == {("x", "sign")}
    assert "kernel or callback" in report.notes[0]


def test_a_loop_that_jax_cannot_reverse_is_checked_by_numbers():
    def cube(x):
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, jnp.ones_like(x)))[1]

    report = bpref.check(rule(cube, lambda args, dy: (3 * args[0] ** 2 * dy,)), X[:2, :2], key=1)
    assert report.ok
    assert "cannot be differentiated" in report.notes[0]


def test_an_error_in_one_element_in_the_working_dtype_alone_is_found():
    def backward(args, dy):
        flipped = (jnp.arange(5000) < 3) & (args[0].dtype == jnp.float32)
        return (jnp.where(flipped, -1.0, 1.0).astype(dy.dtype) * dy * jnp.cos(args[0]),)

    x = np.random.default_rng(SEED).normal(size=5000).astype(np.float32)
    assert verdicts(bpref.check(rule(jnp.sin, backward), x, key=1)) == {"x": "imprecise"}


def test_integer_outputs_and_typed_random_keys():
    def largest(x):
        return x.max(-1), jnp.argmax(x, -1), x > 0

    def backward(args, dy):
        return (jax.nn.one_hot(jnp.argmax(args[0], -1), 7, dtype=dy[0].dtype) * dy[0][:, None],)

    assert bpref.check(rule(largest, backward), X, key=1).ok
    noisy = rule(
        lambda seed, x: x * jax.random.normal(seed, x.shape, x.dtype),
        lambda args, dy: (None, dy * jax.random.normal(args[0], dy.shape, dy.dtype)),
    )
    assert verdicts(bpref.check(noisy, jax.random.key(SEED), X, key=1)) == {"x": "ok"}


def test_infinite_everywhere_says_nothing():
    f = rule(jnp.exp, lambda args, dy: (3 * dy * jnp.exp(args[0]),))
    assert bpref.check(f, np.full(3, 1000.0, np.float32), key=1).verdict == "cannot tell"


def test_a_host_function_may_write_into_its_arguments():
    sine = lambda x: np.sin(x, out=x)  # noqa: E731
    assert bpref.check(sine, X, backward=lambda args, dy: (np.cos(args[0]) * dy,), key=1).ok


def test_the_other_order_of_bytes_is_read_and_what_jax_has_not_is_named():
    f = rule(jnp.sin, lambda args, dy: (dy * jnp.cos(args[0]),))
    assert bpref.check(f, X.astype(X.dtype.newbyteorder()), key=1).ok
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(TypeError, match="which JAX has not; expected one such as float64"):
            bpref.check(f, X.astype(np.longdouble))


def test_of_an_error_that_announces_its_reason_the_reason_is_said():
    f = rule(jnp.sin, lambda args, dy: (dy * jnp.cos(args[0]),))
    with pytest.raises(CannotCheck, match="Binding failed with the error: too many positional arguments"):
        bpref.check(f, X, backward=f)
