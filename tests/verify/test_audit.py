"""audit: every custom rule in somebody else's function, at the values that flow there, by file and line."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from tests.conftest import SEED
from tests.refusing import refusals

X = np.random.default_rng(SEED).normal(size=(3, 4)).astype(np.float32)


@jax.custom_vjp
def doubled(x):
    return jnp.tanh(x)


doubled.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, dy: (2 * dy * (1 - y * y),))


def line_of(text: str) -> int:
    """The line of this file that ends with a comment."""
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.endswith(f"# {text}"))


def in_scan(x):
    return jax.lax.scan(lambda c, _: (doubled(c), None), x, None, length=3)[0]  # scan


def in_while(x):
    return jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, doubled(c[1])), (0, x))[1]  # while


def in_cond(x):
    return jax.lax.cond(x.sum() > -1e9, doubled, lambda x: x, x)  # cond


def in_jit_and_remat(x):
    return jax.jit(jax.checkpoint(lambda x: doubled(x) + 1))(x)  # remat


@pytest.mark.parametrize(
    ("f", "place"), [(in_scan, "scan"), (in_while, "while"), (in_cond, "cond"), (in_jit_and_remat, "remat")]
)
def test_a_wrong_rule_is_found_wherever_it_is(f, place):
    report = bpref.audit(lambda x: jax.nn.relu(f(x)).sum(), X, key=1)
    assert {s.name: s.verdict for s in report.sites} == {"doubled": "wrong", "relu": "ok"}
    (wrong,) = (s for s in report.sites if s.verdict == "wrong")
    assert (Path(wrong.file).name, wrong.line) == (Path(__file__).name, line_of(place))
    assert {f.kind for f in report.findings} == {"factor"}
    assert f"doubled (custom_vjp)   WRONG   called at {__file__}:{line_of(place)}" in str(report)
    assert "2.000 x the reference, every element: a constant factor 2" in str(report)
    with pytest.raises(AssertionError, match="doubled"):
        report.raise_if_wrong()


@jax.custom_vjp
def right(x):
    return jnp.tanh(x)


right.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, dy: (dy * (1 - y * y),))

NOT_TAKEN = {
    "cond": lambda f, x: jax.lax.cond(x.sum() > 1e9, f, lambda x: x, x),
    "switch": lambda f, x: jax.lax.switch(jnp.int32(0), [lambda x: x, f, lambda x: -x], x),
    "while": lambda f, x: jax.lax.while_loop(lambda c: c[0] < 0, lambda c: (c[0] + 1, f(c[1])), (0, x))[1],
    "scan": lambda f, x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=0)[0],
}


@pytest.mark.parametrize("inside", NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_what_did_not_run_is_not_ok_and_may_be_driven(inside):
    report = bpref.audit(partial(inside, doubled), X, key=1)
    assert (report.verdict, report.ok) == ("not run", False)
    assert [(s.name, s.verdict) for s in report.sites] == [("doubled", "not run")]
    assert "doubled (custom_vjp)   NOT RUN   called at " in str(report)
    assert report.raise_if_wrong() is report
    (site,) = bpref.audit(partial(inside, doubled), X, key=1, drive=True).sites
    assert (site.verdict, site.detail) == ("wrong", "it did not run; checked at drawn values")
    assert bpref.audit(partial(inside, right), X, key=1, drive=True).ok


def test_libraries_are_right_and_the_report_is_json(standard_promotion):
    def loss(x):
        z = jax.nn.relu6(jax.nn.relu(x) + jax.nn.silu(x)) + jax.nn.softplus(x)
        return optax.losses.softmax_cross_entropy(z, jax.nn.softmax(x)).sum() + jax.scipy.special.logsumexp(z)

    report = bpref.audit(loss, X, key=1)
    assert report.ok
    assert report.raise_if_wrong() is report
    plain = json.loads(report.to_json())
    assert {s["name"] for s in plain["sites"]} >= {"relu"}
    assert all(s["reports"][0]["ok"] for s in plain["sites"])


def test_a_function_without_rules_has_nothing_to_audit():
    report = bpref.audit(jnp.sin, X, key=1)
    assert (report.verdict, report.ok, report.sites) == ("not run", False, ())
    assert str(report).startswith("sin   0 custom rules   key 1\n  nothing was found to audit")


def test_specifications_are_filled_and_what_is_no_array_is_held_fixed():
    def scaled(x, factor, kind):
        return doubled(x) * factor if kind == "tanh" else x

    spec = jax.ShapeDtypeStruct((3, 4), np.float32)
    report, again = (bpref.audit(scaled, spec, 0.5, "tanh", key=3) for _ in range(2))
    assert [(s.name, s.verdict) for s in report.sites] == [("doubled", "wrong")]
    assert str(report) == str(again)
    assert str(report) != str(bpref.audit(scaled, spec, 0.5, "tanh", key=4))


test_what_cannot_be_audited = refusals(
    {
        "TypeError: audit: fun is a str, expected a function": "f",
        "TypeError: audit: fun is the Layer tanh, whose backward is no custom rule; use check or check_leaves": (
            bpref.tanh()
        ),
    },
    lambda fun: bpref.audit(fun, X),
)


@pytest.mark.parametrize(
    ("x", "came"), [(None, "None"), ([1.0], "a list"), ("a", "a str")], ids=["None", "list", "str"]
)
def test_what_is_no_array_and_is_taken_for_one_is_named(x, came):
    with pytest.raises(TypeError, match=f"^audit: x is {came}, and doubled takes it for an array"):
        bpref.audit(doubled, x)


def test_a_primal_in_numpy_cannot_be_traced_and_its_rule_is_for_check():
    rule = jax.custom_vjp(lambda x: np.sin(x))
    rule.defvjp(lambda x: (np.sin(x), x), lambda x, dy: (dy * np.cos(x),))
    with pytest.raises(ValueError, match=r"^audit: <lambda> cannot be traced by JAX, since something in it reads"):
        bpref.audit(lambda x: rule(x), X)
    assert bpref.check(rule, X, key=1).ok


@pytest.mark.parametrize("name", ["_core", "fwd", "apply", "<lambda>"])
def test_a_rule_whose_name_says_nothing_is_named_with_its_module(name):
    def primal(x):
        return jnp.tanh(x)

    primal.__name__ = primal.__qualname__ = name
    f = jax.custom_vjp(primal)
    f.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, dy: (2 * dy * (1 - y * y),))
    report = bpref.audit(lambda x: f(x).sum(), X, key=1)
    assert [(s.name, s.verdict) for s in report.sites] == [(f"test_audit.{name}", "wrong")]
    assert report.sites[0].reports[0].name == f"test_audit.{name}"
    assert f"  test_audit.{name} (custom_vjp)   WRONG   called at {__file__}:" in str(report)
