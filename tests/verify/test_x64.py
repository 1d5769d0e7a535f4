"""A check in both of JAX's modes: 64-bit numbers off and a NumPy int64 array closed over; on, and narrow arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import bpref
from bpref.layer import Layer

X = np.arange(1, 4, dtype=np.float32)
MISSING = "the path of `x` into `reduce_sum` (test_x64.py:"


@pytest.fixture(params=[False, True], ids=["x64 off", "x64 on"])
def index(request):
    """A NumPy array of JAX's other integer dtype. JAX keeps it in the dtype of the first mode that it is traced in."""
    with jax.enable_x64(request.param):
        yield np.array([0, 2, 1])


def forward_of(index):
    return lambda x: (x**2)[index] * x.sum()


def backward_of(index, scale: float = 1.0):
    """The sum's own derivative is forgotten where `scale` is 0."""

    def backward(x, dy):
        dx = jnp.zeros_like(x).at[index].add(2 * x[index] * dy) * x.sum()
        return (dx + scale * (dy * x[index] ** 2).sum(),)

    return backward


def rule(index, scale: float = 1.0):
    f = jax.custom_vjp(forward_of(index))
    f.defvjp(lambda x: (forward_of(index)(x), x), backward_of(index, scale))
    return f


def layer(index, scale: float = 1.0) -> Layer:
    backward = backward_of(index, scale)
    return Layer(
        lambda key, x: (), lambda _, x: (forward_of(index)(x), x), lambda _, x, dy: ((), *backward(x, dy)), "layer"
    )


@pytest.mark.parametrize("x", [X, jax.ShapeDtypeStruct(X.shape, X.dtype)], ids=["values", "specification"])
def test_check(index, x):
    right, wrong = (bpref.check(rule(index, scale), x, key=1) for scale in (1, 0))
    assert right.ok, str(right)
    assert [v.verdict for v in wrong.verdicts] == ["wrong"]
    assert MISSING in wrong.verdicts[0].detail
    assert "the search for a cause failed" not in str(wrong)


def test_check_of_a_layer(index):
    assert bpref.check(layer(index), (), X, key=1).ok
    assert MISSING in bpref.check(layer(index, 0), (), X, key=1).verdicts[-1].detail


def test_what_cannot_be_traced_in_float64_is_as_sure_unless_it_has_constants():
    """An index of int64, traced as int32, cannot be traced with 64-bit numbers; then a constant 0.1 is float32's."""
    note = "it runs in its own dtypes alone, whose constants are rounded: errors below 2e-06 may pass"
    index = np.array([0, 2, 1])
    cases = (0.5, 2.0**-24, (), False), (0.1, 2.0**-24, (note,), True), (0.1, 2.0**-16, (note,), False)
    for constant, error, notes, ok in cases:

        def forward(x, c=constant):
            return c * x[index]

        def backward(args, dy, c=constant, error=error):
            return (c * (dy[index] + error * dy[index]),)

        report = bpref.check(forward, X, backward=backward, key=1)
        assert (report.notes, report.ok) == (notes, ok)


def test_check_intermediates(index):
    def forward(x):
        z = checkpoint_name((x**2)[index], "z")
        w = checkpoint_name(z * x.sum(), "w")
        return (w**2).sum()

    def cotangents(args, dy, scale=1.0):
        z = (args[0] ** 2)[index]
        dw = 2 * z * args[0].sum() * dy
        return {"w": dw, "z": scale * dw * args[0].sum()}

    assert bpref.check_intermediates(forward, (X,), cotangents, key=1).ok
    wrong = bpref.check_intermediates(forward, (X,), lambda *given: cotangents(*given, scale=2.0), key=1)
    assert [(f.where, f.detail) for f in wrong.findings] == [
        ("z", "2.000 x the reference, every element: a constant factor 2")
    ]
    given = cotangents((jnp.asarray(X),), jnp.ones((), np.float32))
    assert bpref.check_intermediates(forward, (X,), given, key=1).ok


def test_check_leaves(index):
    for scale, is_right in ((1.0, True), (0.0, False)):
        network = bpref.serial(layer(index, scale), bpref.tanh())
        of_layer, of_tanh = bpref.check_leaves(network, ((), ()), X / 10)
        assert (of_layer.error < 1e-10) == is_right
        assert of_tanh.error < 1e-10


def test_search_and_audit(index):
    found = bpref.search(rule(index, 0.0), "f32[3]", seconds=20, key=1, examples=4)
    assert found.report is not None
    assert found.report.findings[0].where == "x"
    report = bpref.audit(lambda x: rule(index, 0.0)(x).sum(), X, key=1)
    assert report.verdict == "wrong"


def test_a_host_function(index):
    def squares(x):
        return np.asarray(x)[index] ** 2

    def backward(args, dy):
        dx = np.zeros_like(args[0])
        dx[index] = 2 * args[0][index] * dy
        return (2 * dx,)

    report = bpref.check(squares, X, backward=backward, key=1)
    assert report.verdicts[0].detail == "2.000 x the reference, every element: a constant factor 2"


def test_what_only_fails_with_64_bit_numbers_is_found_by_whom_has_them():
    """`jnp.ones` is float64 in one mode alone, and JAX refuses such a cotangent of a float32 argument."""

    @jax.custom_vjp
    def double(x):
        return 2 * x

    with jax.numpy_dtype_promotion("standard"):
        double.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy * jnp.ones(dy.shape),))
        assert bpref.check(double, X, key=1).ok
        with jax.enable_x64(True):
            report = bpref.check(double, X, key=1)
    assert [(f.kind, f.detail) for f in report.findings] == [("dtype", "its cotangent is float64, expected float32")]
