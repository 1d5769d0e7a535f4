"""Named intermediates: the first wrong step is found, and what follows from it is not accused."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import bpref
from bpref.models import mlp
from bpref.verify.steps.intermediates import check_intermediates
from tests.conftest import SEED
from tests.refusing import refusals

G = [bpref.RULES[name].make() for name in ("tanh", "relu", "identity")]
BACKWARD_ORDER = ["A3", "Z3", "A2", "Z2", "A1", "Z1", "A0"]


def J(params, X, y):
    return mlp.cost(mlp.forward(params, X, G)[0], y)


def arguments(dtype=np.float32):
    rng = np.random.default_rng(SEED)
    params = mlp.init(jax.random.key(SEED), (6, 5, 4, 1), dtype)
    return params, rng.normal(size=(9, 6)).astype(dtype), rng.normal(size=(9, 1)).astype(dtype)


def by_hand(args, dy, spoiled="", spoil=None):
    """The seed's backward, each step from the one before; one of them may be spoiled, and what follows uses it."""
    params, X, y = args
    A, Z = mlp.forward(params, jnp.asarray(X), G)[1]
    hand = {}

    def put(name, v):
        hand[name] = spoil(v) if name == spoiled else v

    put("A3", (A[3] - y) / len(y))
    for l in (3, 2, 1):
        put(f"Z{l}", hand[f"A{l}"] * mlp.derivative(G[l - 1], Z[l]))
        put(f"A{l - 1}", hand[f"Z{l}"] @ params.W[l])
    return hand


SPOILS = {
    "A3": (lambda v: v * 9, "factor"),
    "Z3": (lambda v: -v, "sign"),
    "A2": (lambda v: v * 0, "zero"),
    "Z2": (lambda v: v.at[0].set(0), "sparse"),
    "A1": (lambda v: v * 2, "factor"),
    "Z1": (lambda v: v[::-1], "shifted"),
    "A0": (lambda v: v.T, "transposed"),
}


@pytest.mark.parametrize("form", ["function", "arrays"])
def test_a_right_backward_of_the_seed_is_right_at_every_step(form):
    args = arguments()
    cotangents = by_hand if form == "function" else by_hand(args, 1)
    report = check_intermediates(J, args, cotangents, key=SEED)
    assert report.ok
    assert report.first_wrong is None
    assert [v.where for v in report.verdicts] == BACKWARD_ORDER
    assert max(v.error for v in report.verdicts) < (1e-10 if form == "function" else 1e-4)
    assert report.raise_if_wrong() is report


@pytest.mark.parametrize("name", SPOILS)
def test_the_first_wrong_step_is_named_and_what_follows_is_not_accused(name):
    spoil, kind = SPOILS[name]
    args = arguments()
    for cotangents in (partial(by_hand, spoiled=name, spoil=spoil), by_hand(args, 1, name, spoil)):
        report = check_intermediates(J, args, cotangents, key=SEED)
        assert report.first_wrong == name
        assert [f.where for f in report.findings] == [name]
        # One sample is too little for some diagnoses: it might fit by chance.
        assert report.findings[0].kind in ((kind,) if callable(cotangents) else (kind, "unexplained"))
        before = BACKWARD_ORDER[: BACKWARD_ORDER.index(name)]
        after = BACKWARD_ORDER[BACKWARD_ORDER.index(name) + 1 :]
        assert [v.verdict for v in report.verdicts] == ["ok"] * len(before) + ["wrong"] * (1 + len(after))
        chain = [name, *after]
        assert report.consequences == {w: (v,) for v, w in zip(chain, after, strict=False)}


def test_it_prints_a_table_in_backward_order_and_is_json():
    report = check_intermediates(J, arguments(), partial(by_hand, spoiled="Z2", spoil=lambda v: -v), key=3)
    lines = str(report).splitlines()
    assert lines[0] == "J   backward order   float64 oracle: its own primal, differentiated   key 3"
    assert lines[4].startswith("  Z2   WRONG   -1 x the reference")
    assert lines[5] == "  A1   WRONG   only because of dZ2, from which it is rightly computed"
    assert lines[-1] == "  first wrong step: dZ2"
    plain = json.loads(report.to_json())
    assert plain["first_wrong"] == "Z2"
    assert plain["consequences"]["A1"] == ["Z2"]
    with pytest.raises(AssertionError, match="first wrong step: dZ2"):
        report.raise_if_wrong()


def attention(q, k, v):
    """One head under jit, its softmax under remat: names inside of both."""

    @jax.checkpoint
    def softmax(S):
        E = jnp.exp(S - jax.lax.stop_gradient(S.max(-1, keepdims=True)))
        return checkpoint_name(E / E.sum(-1, keepdims=True), "P")

    @jax.jit
    def scores(q, k):
        return checkpoint_name(checkpoint_name(q, "Q") @ checkpoint_name(k, "K").T / np.sqrt(q.shape[-1]), "S")

    return checkpoint_name(softmax(scores(q, k)) @ checkpoint_name(v, "V"), "Y")


def attention_by_hand(args, dy, wrong=()):
    q, k, v = args
    scale = np.sqrt(q.shape[-1])
    P = jax.nn.softmax(q @ k.T / scale)
    dP = dy @ v.T
    dS = P * (dP - (0 if "S" in wrong else 1) * (P * dP).sum(-1, keepdims=True))
    dQ = dS @ k / (1 if "Q" in wrong else scale)
    return {"Y": dy, "V": P.T @ dy, "P": dP, "S": dS, "Q": dQ, "K": dS.T @ q / scale}


QKV = tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in ((4, 3), (5, 3), (5, 2)))


def test_two_wrong_steps_of_attention_are_told_from_their_consequences():
    assert check_intermediates(attention, QKV, attention_by_hand, key=SEED).ok
    report = check_intermediates(attention, QKV, partial(attention_by_hand, wrong=("S", "Q")), key=SEED)
    assert report.first_wrong == "S"
    assert [f.where for f in report.findings] == ["S", "Q"]
    assert report.findings[1].kind == "factor"
    assert report.consequences == {"K": ("S",)}
    assert {v.where: v.verdict for v in report.verdicts} == {
        "Y": "ok", "V": "ok", "P": "ok", "S": "wrong", "Q": "wrong", "K": "wrong",
    }  # fmt: skip


def test_names_that_are_not_given_are_gone_through():
    def hand(args, dy):
        return {name: v for name, v in attention_by_hand(args, dy, ("S",)).items() if name in ("Q", "P")}

    report = check_intermediates(attention, QKV, hand, key=SEED)
    assert {v.where: v.verdict for v in report.verdicts} == {"P": "ok", "Q": "wrong"}
    assert report.first_wrong == "Q"


def test_a_custom_rule_is_stripped_and_a_numpy_hand_is_called_with_values():
    @jax.custom_vjp
    def square(x):
        return checkpoint_name(x, "X") ** 2

    square.defvjp(lambda x: (x**2, x), lambda x, dy: (3 * dy * x,))

    def hand(args, dy):
        return {"X": 2 * np.asarray(args[0]) * np.asarray(dy)}

    assert check_intermediates(square, (jnp.arange(3.0),), hand, key=SEED).ok


def test_half_precision_is_judged_by_itself_and_a_small_error_in_it_is_left_open():
    def f(x):
        return (checkpoint_name(checkpoint_name(x, "X") * 3, "Z") ** 2).sum()

    x = np.linspace(-2, 2, 64).astype(np.float32)
    right = {"Z": jnp.asarray(6 * x), "X": jnp.asarray(18 * x)}
    assert check_intermediates(f, (x,), right, key=SEED).ok
    half = {name: v.astype(jnp.bfloat16) for name, v in right.items()}
    assert check_intermediates(f, (x,), half, key=SEED).ok
    report = check_intermediates(f, (x,), right | {"X": right["X"] * 1.001}, key=SEED)
    assert report.first_wrong == "X"
    near = check_intermediates(f, (x,), right | {"X": right["X"] * (1 + 3e-6)}, key=SEED)
    assert near.verdict == "cannot tell"
    assert "given as a function, cotangents are judged in float64" in str(near)


def test_another_subgradient_at_a_kink_is_accepted():
    def f(x):
        return checkpoint_name(jnp.maximum(checkpoint_name(x, "X"), 0), "A").sum()

    x = np.array([-1.0, 0.0, 2.0], np.float32)
    for slope, ok in ((0.0, True), (1.0, True), (1.5, False)):
        hand = {"A": np.ones(3, np.float32), "X": np.array([0, slope, 1], np.float32)}
        assert check_intermediates(f, (x,), hand, key=SEED).ok == ok


def named(x):
    z = checkpoint_name(x, "Z1")
    checkpoint_name(x, "unused")
    z = jax.lax.scan(lambda c, _: (checkpoint_name(c * 2, "inner"), None), z, None, length=2)[0]
    return checkpoint_name(checkpoint_name(z, "twice") + 1, "twice")


test_a_name_that_cannot_be_checked_is_refused = refusals(
    {
        "unknown named value 'Z2'; the nearest is Z1": {"Z2": 1},
        "the value named 'inner' is in the body of a scan, where it has one value for each step; ...": {"inner": 1},
        "2 values are named 'twice', and a name stands for one array...": {"twice": 1},
    },
    lambda cotangents: check_intermediates(named, (jnp.ones(()),), cotangents),
)


def test_a_call_that_cannot_be_checked_is_refused():
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="the forward names no value"):
        check_intermediates(jnp.sum, (x,), {"Z": x})
    with pytest.raises(ValueError, match=r"the output is float32\[2\], not a scalar; give its cotangent dy"):
        check_intermediates(named, (x,), {"Z1": x})
    with pytest.raises(ValueError, match=r"dy is float32\[3\], expected the output's float32\[2\]"):
        check_intermediates(named, (x,), {"Z1": x}, dy=jnp.ones(3))
    with pytest.raises(TypeError, match="the cotangents are a tuple, expected a dictionary"):
        check_intermediates(named, (x,), lambda args, dy: (x,))


def test_a_value_named_and_not_used_and_one_of_another_shape_are_explained():
    x = jnp.ones(2)
    report = check_intermediates(named, (x,), {"unused": x, "Z1": jnp.ones(3)}, dy=x)
    assert {f.where: f.kind for f in report.findings} == {"unused": "structure", "Z1": "structure"}
    assert "unused   WRONG   nothing is computed from this value: go on with what checkpoint_name returns" in str(
        report
    )
    assert "its shape is (3,), that of Z1 (2,)" in str(report)
