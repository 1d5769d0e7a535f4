"""Kernels and callbacks: Pallas without a device for it, `pure_callback`, `jax.ffi`; right ones and wrong ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

import bpref
from benchmarks.audits import pallas_mha
from tests.conftest import SEED
from tests.verify.written import rule, verdicts

RNG = np.random.default_rng(SEED)
X = RNG.normal(size=(6, 8)).astype(np.float32)
G = RNG.normal(size=8).astype(np.float32)


def of_rows(kernel, x, *others, outputs, block):
    """A kernel over blocks of rows; the first operand that has one row is given to each block."""
    n, d = x.shape
    spec = lambda v: pl.BlockSpec((1, d), lambda i: (0, 0)) if v.shape[0] == 1 else _row(v.shape[1], block)  # noqa: E731
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, block),),
        in_specs=[spec(v) for v in (x, *others)],
        out_specs=[_row(width, block) for width in outputs],
        out_shape=[jax.ShapeDtypeStruct((n, width), x.dtype) for width in outputs],
    )(x, *others)


def _row(width, block):
    return pl.BlockSpec((block, width), lambda i: (i, 0))


def rms_norm(factor, block=2):
    def forward_kernel(x_ref, g_ref, y_ref, r_ref):
        x = x_ref[...]
        r_ref[...] = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        y_ref[...] = x * r_ref[...] * g_ref[...]

    def backward_kernel(x_ref, g_ref, r_ref, dy_ref, dx_ref):
        d, xhat = dy_ref[...] * g_ref[...], x_ref[...] * r_ref[...]
        dx_ref[...] = factor * r_ref[...] * (d - xhat * jnp.mean(d * xhat, -1, keepdims=True))

    def forward(x, g):
        y, r = of_rows(forward_kernel, x, g[None], outputs=(x.shape[1], 1), block=block)
        return y, (x, g, r)

    def backward(kept, dy):
        x, g, r = kept
        (dx,) = of_rows(backward_kernel, x, g[None], r, dy, outputs=(x.shape[1],), block=block)
        return dx, jnp.sum(dy * x * r, 0)

    f = jax.custom_vjp(lambda x, g: forward(x, g)[0])
    f.defvjp(forward, backward)
    return f


def naive_rms_norm(x, g):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * g[None]


def softmax(factor, forward_by_kernel):
    def kernel(x_ref, y_ref):
        e = jnp.exp(x_ref[...] - jnp.max(x_ref[...], -1, keepdims=True))
        y_ref[...] = e / jnp.sum(e, -1, keepdims=True)

    def backward_kernel(y_ref, dy_ref, dx_ref):
        y, dy = y_ref[...], dy_ref[...]
        dx_ref[...] = factor * y * (dy - jnp.sum(y * dy, -1, keepdims=True))

    def primal(x):
        return of_rows(kernel, x, outputs=x.shape[1:], block=2)[0] if forward_by_kernel else jax.nn.softmax(x)

    f = jax.custom_vjp(primal)
    f.defvjp(lambda x: (primal(x),) * 2, lambda y, dy: of_rows(backward_kernel, y, dy, outputs=y.shape[1:], block=2))
    return f


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_pallas_kernels_are_interpreted_where_there_is_no_device_for_them(factor):
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU backend"):
        rms_norm(factor)(X, G)
    expected = "ok" if factor == 1 else "wrong"
    for report in (
        bpref.check(rms_norm(factor), X, G, key=1),
        bpref.check(rms_norm(factor), X, G, reference=naive_rms_norm, key=1),
        bpref.audit(lambda x, g: rms_norm(factor)(x, g).sum(), X, G, key=1).sites[0].reports[0],
    ):
        assert [v.verdict for v in report.verdicts][-2:] == [expected, "ok"], str(report)
    with pytest.raises(ValueError, match="Only interpret mode"):  # the user's mode is left as it was
        rms_norm(factor)(X, G)


@pytest.mark.parametrize("factor", [1.0, 1.1])
@pytest.mark.parametrize("forward_by_kernel", [True, False])
def test_a_backward_that_is_a_kernel(factor, forward_by_kernel):
    f, expected = softmax(factor, forward_by_kernel), "ok" if factor == 1 else "wrong"
    assert verdicts(bpref.check(f, X, key=1)) == {"x": expected}
    assert verdicts(bpref.check(f, X, reference=jax.nn.softmax, key=1)) == {"y": "ok", "x": expected}
    assert bpref.audit(f, X, key=1).verdict == expected


def test_a_search_through_kernels():
    found = bpref.search(softmax(1.1, True), ("f32[4,d]",), reference=jax.nn.softmax, seconds=5, key=1, examples=2)
    assert {f.where for f in found.report.findings} == {"x"}


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_last_block_that_is_ragged(factor):
    report = bpref.check(rms_norm(factor, block=4), X, G, reference=naive_rms_norm, key=1)
    assert verdicts(report) == {"y": "ok", "x": "ok" if factor == 1 else "wrong", "g": "ok"}


def test_a_ragged_block_that_is_summed_is_not_ok():
    """The interpreter fills what is beyond the last row with NaN, as a device may fill it with anything."""

    def kernel(x_ref, y_ref):
        y_ref[...] = jnp.broadcast_to(jnp.sum(x_ref[...], 0, keepdims=True), x_ref.shape)

    def blocks(x):
        return of_rows(kernel, x, outputs=x.shape[1:], block=4)[0]

    f = rule(blocks, lambda args, dy: (dy,))
    assert not bpref.check(f, X, key=1).ok
    assert not bpref.check(f, X, reference=lambda x: x, key=1).ok
    summed_backwards = rule(lambda x: x, lambda args, dy: (blocks(dy),))
    assert not bpref.check(summed_backwards, X, key=1).ok


def called_back(f, dtype=None):
    def call(x, *others):
        shape = jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)
        return jax.pure_callback(f, shape, x, *others, vmap_method="sequential")

    return call


def in_float32_alone(x):
    if x.dtype != np.float32:
        raise TypeError(f"only float32, got {x.dtype}")
    return np.sin(x)


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_callback_that_insists_on_float32(factor, caplog, capfd):
    f = rule(called_back(in_float32_alone), lambda args, dy: (factor * dy * jnp.cos(args[0]),))
    expected, x = "ok" if factor == 1 else "wrong", X[:2, :3]
    assert verdicts(bpref.check(f, x, key=1)) == {"x": expected}
    assert verdicts(bpref.check(f, x, reference=jnp.sin, key=1)) == {"y": "ok", "x": expected}
    assert bpref.audit(f, x, key=1).verdict == expected
    assert (caplog.text, capfd.readouterr().err) == ("", "")


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_backward_that_is_a_callback_in_float32(factor):
    def on_host(x, dy):
        return np.asarray(factor * dy * np.cos(x), np.float32)

    f = rule(jnp.sin, lambda args, dy: (called_back(on_host, jnp.float32)(args[0], dy),))
    report, x = bpref.check(f, X[:2, :3], key=1), X[:2, :3]
    assert verdicts(report) == {"x": "ok" if factor == 1 else "wrong"}
    assert report.notes[0] == "a kernel or callback in its rule that does not compute in float64"
    assert bpref.audit(f, x, key=1).verdict == ("ok" if factor == 1 else "wrong")


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_foreign_function_of_lapack(factor):
    jnp.linalg.cholesky(np.eye(1, dtype=np.float32))  # JAX loads LAPACK when it first lowers one of its functions

    def cholesky(a):
        name = {"float32": "lapack_spotrf_ffi", "float64": "lapack_dpotrf_ffi"}[str(a.dtype)]
        shapes = jax.ShapeDtypeStruct(a.shape, a.dtype), jax.ShapeDtypeStruct((), jnp.int32)
        call = jax.ffi.ffi_call(
            name, shapes, input_layouts=[(1, 0)], output_layouts=[(1, 0), ()], vmap_method="sequential"
        )
        return jnp.tril(call((a + a.T) / 2, uplo=np.uint8(ord("L")))[0])

    def backward(l, dl):
        p = jnp.tril(l.T @ dl)
        p = p - jnp.diag(jnp.diag(p)) / 2
        inverse = jnp.linalg.inv(l)
        s = inverse.T @ p @ inverse
        return (factor / 2 * (s + s.T),)

    f = jax.custom_vjp(cholesky)
    f.defvjp(lambda a: (cholesky(a),) * 2, backward)
    a = (X[:3] @ X[:3].T + 3 * np.eye(3)).astype(np.float32)
    expected = "ok" if factor == 1 else "wrong"
    assert verdicts(bpref.check(f, a, key=1)) == {"a": expected}
    assert bpref.check(f, a, reference=partial(jnp.linalg.cholesky, symmetrize_input=True), key=1).verdict == expected
    assert bpref.audit(f, a, key=1).verdict == expected


def test_rounding_where_the_truth_is_zero_is_imprecise_and_no_permutation():
    # The first row of causal attention attends to one key: dq is zero there, and the kernel's is what rounding leaves.
    assert verdicts(pallas_mha()) == {"y": "ok", "q": "imprecise", "k": "ok", "v": "ok"}


def doubled():
    def kernel(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    def run(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    f = jax.custom_vjp(run)
    f.defvjp(lambda x: (run(x), None), lambda _, dy: (run(dy),))
    return f


INTERPRETED = "a Pallas kernel in it ran interpreted, on a CPU: what a device's compiler makes of it was not seen"


def test_a_report_says_that_a_kernel_ran_interpreted_and_only_then():
    f = doubled()
    assert bpref.check(f, X[0], key=1).notes[-1] == INTERPRETED
    assert bpref.check(f, X[0], reference=lambda x: 2 * x, key=1).notes[-1] == INTERPRETED
    assert INTERPRETED not in bpref.check(rule(lambda x: 2 * x, lambda _, dy: (2 * dy,)), X[0], key=1).notes


def test_leaves_intermediates_and_mutants_have_their_kernels_interpreted_too():
    f = doubled()

    def forward(x):
        return jnp.sum(f(checkpoint_name(jnp.sin(x), "Y")) ** 2)

    report = bpref.check_intermediates(forward, (X[0],), {"Y": 8 * jnp.sin(X[0])}, key=1)
    assert (report.ok, report.notes) == (True, (INTERPRETED,))
    layer = bpref.Layer(lambda key, x: (), lambda p, x: (f(x), x), lambda p, cache, dy: ((), f(3 * dy)), "tripled")
    # Small enough that tanh does not saturate: the last place of its y is not the hundredth of its slope.
    tripled, tanh = bpref.check_leaves(bpref.serial(layer, bpref.tanh()), ((), ()), X / 4)
    assert (tripled.path, tripled.where) == ("0 tripled", "x")
    np.testing.assert_allclose([tripled.error, tanh.error], [2, 0], atol=1e-14)
    assert [m.equivalent for m in bpref.mutants(lambda args, dy: (f(dy) * args[0],), (X[0],), X[0])] == [""] * 3
