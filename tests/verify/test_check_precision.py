"""check of precision: what is off in the working dtype alone, and what is round-off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.conftest import SEED
from tests.verify.written import G, X, kinds, rms_norm, rule, verdicts


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_right_tanh_is_right_in_every_dtype(dtype):
    f = rule(jnp.tanh, lambda args, dy: (dy * (1 - jnp.tanh(args[0]) ** 2),))
    assert bpref.check(f, jnp.asarray(X, dtype)).ok


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


def test_an_error_in_one_element_in_the_working_dtype_alone_is_found():
    def backward(args, dy):
        flipped = (jnp.arange(5000) < 3) & (args[0].dtype == jnp.float32)
        return (jnp.where(flipped, -1.0, 1.0).astype(dy.dtype) * dy * jnp.cos(args[0]),)

    x = np.random.default_rng(SEED).normal(size=5000).astype(np.float32)
    assert verdicts(bpref.check(rule(jnp.sin, backward), x, key=1)) == {"x": "imprecise"}


def test_dtypes_may_leave_out_that_of_the_arguments():
    report = bpref.check(rms_norm(), X, G, dtypes=["bfloat16", "float16"], key=1)
    assert report.ok
    assert [p.dtype for p in report.verdicts[0].precision] == ["bfloat16", "float16"]


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "ok"), (1.05, "imprecise")])
def test_a_factor_where_arguments_have_several_dtypes_is_imprecise(factor, expected):
    def backward(args, dy):
        x, w = args
        other = factor if w.dtype == jnp.bfloat16 else 1.0
        return dy @ w.T.astype(dy.dtype), (other * (x.T @ dy)).astype(w.dtype)

    f = rule(lambda x, w: x @ w.astype(x.dtype), backward)
    rng = np.random.default_rng(SEED)
    x, w = rng.normal(size=(6, 8)).astype(np.float32), jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16)
    for key in range(3):
        assert verdicts(bpref.check(f, x, w, key=key)) == {"x": "ok", "w": expected}
