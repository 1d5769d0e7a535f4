"""The form of what a rule returns: never right where JAX refuses it, and judged where JAX takes it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.custom_derivatives import SymbolicZero

import bpref
from tests.conftest import SEED
from tests.verify.written import kinds, rule, verdicts

X = np.random.default_rng(SEED).normal(size=(3, 4)).astype(np.float32)
G = np.random.default_rng(SEED + 1).normal(size=4).astype(np.float32)
MASK = X > 0


class Pair(NamedTuple):
    a: Any
    b: Any


def masked(x, mask):
    return jnp.where(mask, jnp.sin(x), 0.0)


def of_masked(args, dy):
    return jnp.where(args[1], dy * jnp.cos(args[0]), 0.0)


def own_forward(forward):
    f = jax.custom_vjp(lambda x: 2 * x)
    f.defvjp(forward, lambda residuals, dy: (jax.tree.leaves(2 * jax.tree.leaves(dy)[0])[0],))
    return f


REFUSED = {
    "one cotangent for two arguments": (masked, lambda args, dy: (of_masked(args, dy),), (X, MASK), "mask"),
    "no tuple": (masked, of_masked, (X, MASK), "x"),
    "three for two": (masked, lambda args, dy: (of_masked(args, dy), None, None), (X, MASK), "x"),
    "a named tuple": (masked, lambda args, dy: Pair(of_masked(args, dy), None), (X, MASK), "x"),
    "a list in place of a tuple": (lambda t: t[0] + t[1], lambda args, dy: ([dy, dy],), ((X, X),), "t[0]"),
    "a number for an array": (lambda x, y: 2 * x, lambda args, dy: (2 * dy, 0.0), (X, X), "y"),
    "two cotangents, the default's left out": (lambda x, g, c=1.0: x * g[None], lambda a, dy: (dy, dy[0]), (X, G), "x"),
}


@pytest.mark.parametrize(("primal", "backward", "args", "where"), REFUSED.values(), ids=REFUSED)
def test_what_jax_refuses_is_wrong(primal, backward, args, where):
    f = rule(primal, backward)
    with pytest.raises((TypeError, ValueError), match="Custom VJP bwd rule"):
        jax.vjp(f, *args)[1](jnp.ones_like(X))
    assert (where, "structure") in kinds(bpref.check(f, *args, key=1))


def test_every_argument_needs_an_entry_whatever_its_dtype():
    report = bpref.check(rule(masked, lambda args, dy: (of_masked(args, dy),)), X, MASK, key=1)
    assert verdicts(report) == {"x": "ok", "mask": "wrong"}
    assert "the backward returned 1 cotangent; expected a tuple of 2, one for each argument" in str(report)
    host = bpref.check(lambda x, m: np.sin(x) * m, X, MASK, backward=lambda a, dy: (dy * np.cos(a[0]) * a[1],), key=1)
    assert verdicts(host) == {"x": "ok", "m": "wrong"}


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: (2 * x, None, None),
        lambda x: {"y": 2 * x, "residuals": 1},
        lambda x: ((2 * x,), None),
        lambda x: ((2 * x).astype(jnp.bfloat16), None),
        lambda x: ((2 * x)[None], None),
        lambda x: (2 * x, "mode"),
    ],
)
def test_a_forward_that_jax_refuses_is_wrong(forward):
    report = bpref.check(own_forward(forward), X, key=1)
    assert kinds(report) == {("x", "structure")}
    assert "jax.grad refuses it: " in str(report)


TAKEN = {
    "anything for integers": (masked, lambda args, dy: (of_masked(args, dy), "nothing"), (X, MASK)),
    "a list": (masked, lambda args, dy: [of_masked(args, dy), None], (X, MASK)),
    "one array for each of a pair": (lambda t: t[0] + t[1], lambda args, dy: (dy,), ((X, X),)),
    "an array where the argument has None": (
        lambda t: 2 * t["a"],
        lambda args, dy: ({"a": 2 * dy, "b": dy},),
        ({"a": X, "b": None},),
    ),
    "a symbolic zero": (
        lambda x, y: 2 * x,
        lambda args, dy: (2 * dy, jax.custom_derivatives.SymbolicZero(jax.typeof(args[1]))),
        (X, X),
    ),
    "a number for a number": (lambda x, c: 2 * x, lambda args, dy: (2 * dy, 0.0), (X, np.float32(2))),
}


@pytest.mark.parametrize(("primal", "backward", "args"), TAKEN.values(), ids=TAKEN)
def test_what_jax_takes_is_judged(primal, backward, args):
    assert bpref.check(rule(primal, backward), *args, key=1).ok
    doubled = rule(primal, lambda *rest: backward(*rest[:-1], 2 * rest[-1]))
    assert bpref.check(doubled, *args, key=1).verdict == "wrong"


# Rules that are told what is differentiated


def told(alone):
    """A product whose rule does something else where one argument alone, or one output alone, is asked for."""

    def forward(x, w):
        both = x.perturbed and w.perturbed
        return (x.value * w.value, jnp.sin(x.value)), (x.value, w.value, 1.0 if both else alone["argument"])

    def backward(kept, dys):
        x, w, factor = kept
        one = any(isinstance(dy, SymbolicZero) for dy in dys)
        dy, of_sine = (jnp.zeros_like(x) if isinstance(dy, SymbolicZero) else dy for dy in dys)
        factor = factor * (alone["output"] if one else 1.0)
        return factor * (dy * w + of_sine * jnp.cos(x)), factor * dy * x

    f = jax.custom_vjp(lambda x, w: (x * w, jnp.sin(x)))
    f.defvjp(forward, backward, symbolic_zeros=True)
    return f


@pytest.mark.parametrize(
    ("alone", "text"),
    [
        ({"argument": 1.0, "output": 1.0}, ""),
        ({"argument": 2.0, "output": 1.0}, "where x alone is differentiated it gives another value"),
        ({"argument": 1.0, "output": 2.0}, "where y[0] alone is used it gives another value than beside cotangents of"),
    ],
)
def test_a_rule_that_is_told_what_is_asked_for_is_asked_for_each_alone(alone, text):
    report = bpref.check(told(alone), X, MASK + X, key=1)
    assert report.ok == (not text)
    assert text in report.verdicts[0].detail
    assert kinds(report) <= {("x", "impure"), ("w", "impure")}


# Defaults, numbers and static arguments


def normalised(x, g, eps=1e-6):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * g[None, :]


def of_normalised(factor, count):
    def backward(args, dy):
        x, g, eps = args
        r = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
        d, xhat = dy * g[None, :], x * r
        dx = factor * r * (d - xhat * jnp.mean(d * xhat, -1, keepdims=True))
        return (dx, jnp.sum(dy * xhat, 0), None)[:count]

    return backward


@pytest.mark.parametrize("factor", [1.0, 1.1])
@pytest.mark.parametrize("given", [(), (1e-5,)])
def test_a_default_is_an_argument_and_a_number_is_held_fixed(factor, given):
    verdict = "ok" if factor == 1 else "wrong"
    f = rule(normalised, of_normalised(factor, 3))
    assert verdicts(bpref.check(f, X, G, *given, key=1)) == {"x": verdict, "g": "ok"}
    (site,) = bpref.audit(lambda x, g: f(x, g, *given), X, G, key=1).sites
    assert verdicts(site.reports[0]) == {"y[0]": "ok", "args[0]": verdict, "args[1]": "ok"}
    assert bpref.check(f, X, G, *given, reference=lambda x, g, *eps: normalised(x, g, *eps), key=1).verdict == verdict
    static = rule(normalised, lambda eps, args, dy: of_normalised(factor, 2)(args, dy), nondiff_argnums=(2,))
    assert bpref.check(static, X, G, *given, key=1).verdict == verdict


def test_a_search_fills_in_defaults():
    right = bpref.search(rule(normalised, of_normalised(1.0, 3)), ("f32[N,d]", "f32[d]"), seconds=3, key=1, examples=5)
    assert right.ok
    assert bpref.search(rule(normalised, of_normalised(1.1, 3)), ("f32[N,d]", "f32[d]"), seconds=3, key=1).found


@pytest.mark.parametrize("factor", [1.0, 1.5])
@pytest.mark.parametrize(
    "ids", [np.array([2, 0, 2]), jnp.array([2, 0, 2]), jax.ShapeDtypeStruct((3,), jnp.int32)], ids=["numpy", "jax", "s"]
)
def test_a_static_array(factor, ids):
    def backward(ids, args, dy):
        return (factor * jnp.zeros_like(args[0]).at[ids].add(dy),)

    f = rule(lambda x, ids: x[ids], backward, nondiff_argnums=(1,))
    report = bpref.check(f, X, ids, key=1)
    assert verdicts(report) == {"x": "ok" if factor == 1 else "wrong"}
    assert report.notes == ()


@pytest.mark.parametrize("factor", [1.0, 1.1])
@pytest.mark.parametrize("kind", ["jax", "numpy", "indices"])
def test_an_audit_of_a_rule_that_closes_over_an_array(factor, kind):
    c = {"jax": jnp.asarray(G), "numpy": G, "indices": np.array([2, 0, 1])}[kind]

    def times(x):
        return x[c] if kind == "indices" else x * c[None]

    def backward(args, dy):
        d = factor * dy * jnp.cos(times(args[0]))
        return (jnp.zeros_like(args[0]).at[c].add(d) if kind == "indices" else d * c[None],)

    f = rule(lambda x: jnp.sin(times(x)), backward)
    report = bpref.audit(jax.jit(f), X, key=1)
    assert report.verdict == ("ok" if factor == 1 else "wrong")
    assert {kind for f in report.findings for kind in [f.kind]} == (set() if factor == 1 else {"factor"})
    assert f(jnp.asarray(X)).shape == X.shape  # the user's function still runs


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_an_audit_of_a_loop_that_closes_over_an_array(factor):
    """As in JAX's `odeint`: reverse mode does not work for the loop, and the backward reads residuals at a traced i."""
    c = jnp.asarray(G[:2])

    def cube(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, c))[1]

    def backward(args, dy):
        return (factor * jax.lax.map(lambda i: 3 * c[i] * args[0][i] ** 2 * dy[i], jnp.arange(2)),)

    (site,) = bpref.audit(rule(cube, backward), X[0, :2], key=1).sites
    assert verdicts(site.reports[0])["args[0]"] == ("ok" if factor == 1 else "wrong")
    assert "its primal cannot be differentiated by JAX" in site.reports[0].notes[0]


def test_an_audit_of_a_rule_of_mixed_dtypes(standard_promotion):
    """Its cotangents of scale and history are what these become, whatever dy is; that of the input is right."""
    from flax.linen import fp8_ops

    def quantised(x, scale, history):
        return fp8_ops.in_qdq(jnp.float32, jnp.float8_e4m3fn, x, scale, history)

    (site,) = bpref.audit(quantised, X, jnp.full(1, 0.01), jnp.full(4, 4.0), key=1).sites
    assert verdicts(site.reports[0]) == {"y[0]": "ok", "args[0]": "ok", "args[1]": "wrong", "args[2]": "wrong"}
    assert {f.kind for f in site.reports[0].findings} <= {"nonlinear", "ignores_dy"}


SCALE = np.ones(4, np.float32)


def helper(x):
    return jnp.cos(x)


def backward_with_helpers(args, dy):
    return (dy * helper(args[0]) * SCALE[None],)


def test_a_helper_or_an_array_that_was_changed_is_looked_at_again(monkeypatch):
    """As in a notebook, where the cell of a helper is run again and not that of the rule."""
    f = rule(jnp.sin, backward_with_helpers)
    assert bpref.check(f, X, key=1).ok
    monkeypatch.setitem(globals(), "helper", lambda x: 2 * jnp.cos(x))
    assert bpref.check(f, X, key=1).verdict == "wrong"
    monkeypatch.undo()
    assert bpref.check(f, X, key=1).ok
    SCALE[0] = 3
    try:
        assert bpref.check(f, X, key=1).verdict == "wrong"
    finally:
        SCALE[0] = 1
