"""What layers ask of their hyperparameters: of each rule by its own signature, and value by value."""

import inspect
import math
import re
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.checks.hyperparameters import as_numbers
from bpref.rule import Interval, Size
from bpref.rules import RULES
from tests.refusing import refusals

pytestmark = pytest.mark.quick


def arguments(asked):
    """Of each rule those for which it is true."""
    parameters = ((rule, inspect.signature(rule.make).parameters.values()) for rule in RULES.values())
    return [(rule, p.name) for rule, of_rule in parameters for p in of_rule if asked(p)]


NUMBERS = arguments(lambda p: float in (p.annotation, *get_args(p.annotation)))
FLAGS = arguments(lambda p: p.annotation is bool)
OTHERS = arguments(lambda p: p.annotation not in (bool, int, float) and p.name != "name")


def make(rule, **changed):
    """The layer of the rule's first case, its hyperparameters changed."""
    values = {Interval: lambda v: v.typical, Size: lambda v: 4}
    hyper = {name: values.get(type(v), lambda v: v)(v) for name, v in rule.cases[0].hyper.items()}
    return rule.make(**{**hyper, **changed})


def refusal(rule, **changed) -> str:
    """What `make` refuses them with; the rule's name alone where it takes them."""
    try:
        make(rule, **changed)
    except (TypeError, ValueError) as error:
        return str(error)
    return f"{rule.name}: "


def named(arguments):
    return [f"{rule.name} {name}" for rule, name in arguments]


@pytest.mark.parametrize("bad", ["x", (), True, math.nan], ids=repr)
@pytest.mark.parametrize(("rule", "name"), NUMBERS, ids=named(NUMBERS))
def test_what_is_no_number_is_refused_by_the_name_of_the_argument(rule, name, bad):
    if (rule.name, name) == ("pad", "value") and bad is math.nan:
        make(rule, **{name: bad})  # a border may be NaN
        return
    with pytest.raises(ValueError, match=rf"^{rule.name}: {name} is {re.escape(repr(bad))}, expected "):
        make(rule, **{name: bad})


@pytest.mark.parametrize("bad", [3, 0.5, 1j, (1, 1), ((1, 2), 3), (None,), [[1, 2], [3, 4]], {"a": 1}, None], ids=repr)
@pytest.mark.parametrize(("rule", "name"), OTHERS, ids=named(OTHERS))
def test_what_is_no_tuple_no_choice_and_no_name_is_refused_by_the_name_of_the_argument_or_taken(rule, name, bad):
    assert refusal(rule, **{name: bad}).startswith(f"{rule.name}: ")


@pytest.mark.parametrize("bad", ["none", 1, None], ids=repr)
@pytest.mark.parametrize(("rule", "name"), FLAGS, ids=named(FLAGS))
def test_what_is_no_boolean_is_refused(rule, name, bad):
    with pytest.raises(ValueError) as error:
        make(rule, **{name: bad})
    assert str(error.value) == f"{rule.name}: {name} is {bad!r}, expected True or False"


test_a_hyperparameter_that_is_none = refusals(
    {
        "layer_norm: eps is 'x', expected a positive number": lambda: bpref.layer_norm(eps="x"),
        "layer_norm: eps is True, expected a positive number": lambda: bpref.layer_norm(eps=True),
        "layer_norm: eps is None, expected a positive number": lambda: bpref.layer_norm(eps=None),
        "layer_norm: eps is 1j, expected a positive number": lambda: bpref.layer_norm(eps=1j),
        "leaky_relu: negative_slope is 'x', expected a number of at least 0": lambda: bpref.leaky_relu("x"),
        "prelu: initial is inf, expected a finite number": lambda: bpref.prelu(initial=math.inf),
        "dropout: rate is 'x', expected a number from 0 to below 1": lambda: bpref.dropout("x"),
        "linear: features is 4.0, expected a positive integer": lambda: bpref.linear(4.0),
        "linear: features is np.int64(0), expected a positive integer": lambda: bpref.linear(np.int64(0)),
        "ctc: blank is 'x', expected an integer of at least 0": lambda: bpref.ctc(blank="x"),
        "embedding: padding is True, expected an id from 0 to 2": lambda: bpref.embedding(3, 2, padding=True),
        "embedding: padding is 'x', expected an id from 0 to 2": lambda: bpref.embedding(3, 2, padding="x"),
        "lstm: forget_bias is nan, expected a finite number": lambda: bpref.lstm(3, forget_bias=math.nan),
        "lstm_block: forget_bias is 'x', expected a finite number": lambda: bpref.lstm_block(3, forget_bias="x"),
        "low_rank_linear: alpha is inf, expected a finite number": lambda: bpref.low_rank_linear(3, alpha=math.inf),
        "huber: delta is inf, expected a positive number": lambda: bpref.huber(math.inf),
        "token_entropy: temperature is inf, expected a positive number": lambda: bpref.token_entropy(math.inf),
        "clipped_value: clip is nan, expected a positive number or None": lambda: bpref.clipped_value(math.nan),
        "ppo: clip_high is 'x', expected a positive number": lambda: bpref.ppo(clip_high="x"),
        "ppo: dual_clip is inf, expected a number above 1 or None": lambda: bpref.ppo(dual_clip=math.inf),
        "rotary_embedding: base is inf, expected a number above 1": lambda: bpref.rotary_embedding(base=math.inf),
        "rotary_embedding: fraction is nan, expected a number from 0 to 1": (
            lambda: bpref.rotary_embedding(fraction=math.nan)
        ),
        "quantile: tau is 'x', expected a number from 0 to 1, or several": lambda: bpref.quantile("x"),
        "quantile: tau is nan, expected a number from 0 to 1": lambda: bpref.quantile([0.5, math.nan]),
        "pad: value is 'x', expected a number": lambda: bpref.pad(((1, 1),), value="x"),
        "pad: widths is (1, 1), expected a pair of non-negative integers for each axis": lambda: bpref.pad((1, 1)),
        "einsum: the equation is 3, expected a string such as 'ij,jk->ik'": lambda: bpref.einsum(3),
    },
)


ATTENTION = ("dot_product_attention", "blockwise_attention")
CROSS_ENTROPY = ("softmax_cross_entropy", "fused_linear_cross_entropy")
NEEDED = {"fused_linear_cross_entropy": {"vocabulary": 2}}
REFUSED = [
    (ATTENTION, "scale", (math.nan, math.inf, ()), "a finite number"),
    (ATTENTION, "soft_cap", (math.nan, math.inf), "a positive number or None"),
    (ATTENTION, "dropout", ("x",), "a number from 0 to below 1"),
    (ATTENTION, "sinks", ("none",), "True or False"),
    (CROSS_ENTROPY, "ignored", (1.5, math.nan, True, "x"), "an integer or None"),
    (
        CROSS_ENTROPY,
        "class_weights",
        ([1.0, math.inf], [1.0, math.nan], "xy", ["1", "2"], [[1.0], [1.0, 2.0]], 1.0, [0.0]),
        "C numbers of at least 0, not all 0",
    ),
    (
        ("sigmoid_cross_entropy",),
        "positive_weight",
        (math.inf, math.nan, "x", [], [1.0, 0.0]),
        "a positive number, or one for each C",
    ),
]
"""Rules, an argument of theirs, values that it cannot have, and what is expected of it."""


test_a_value_that_an_argument_cannot_have = refusals(
    {
        f"{rule}: {argument} is {v!r}, expected {expected}": (rule, {argument: v})
        for rules, argument, values, expected in REFUSED
        for rule in rules
        for v in values
    },
    lambda call: getattr(bpref, call[0])(**NEEDED.get(call[0], {}), **call[1]),
)


def test_weights_that_are_traced_count_as_those_that_are_not():
    """Their values cannot be seen, so they are taken as they are; a tuple may hold some that are traced."""
    x, labels, t = jnp.asarray([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]]), jnp.asarray([2, 0]), jnp.asarray([1, 0, 1])
    calls = {
        lambda w: bpref.softmax_cross_entropy(class_weights=w, smoothing=0.1): ((x, labels), [1.0, 2.0, 0.5]),
        lambda w: bpref.sigmoid_cross_entropy(w): ((x[0], t), [1.0, 2.0, 0.5]),
        lambda w: bpref.sigmoid_cross_entropy((w, 2.0, 0.5)): ((x[0], t), 1.5),
        lambda tau: bpref.quantile(tau): ((x, x[:, 0]), [0.1, 0.5, 0.75]),
        lambda tau: bpref.quantile([tau, 0.5, 0.75]): ((x, x[:, 0]), 0.25),
    }
    for make_layer, (at, weights) in calls.items():

        def sweep(w, at, make_layer=make_layer):
            y, _, dx = bpref.backpropagate(make_layer(w), (), at)
            return y, dx

        came, expected = jax.jit(sweep)(jnp.asarray(weights), at), sweep(weights, at)
        assert jax.tree.map(lambda v: v.dtype, came) == jax.tree.map(lambda v: v.dtype, expected)
        for v, e in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(v, e, rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("v", [1, 0.5, np.float32(0.5), np.float16(0.5), np.int32(1), jnp.bfloat16.dtype.type(0.5)])
def test_scalars_of_numpy_are_numbers(v):
    for layer in (bpref.layer_norm(eps=v), bpref.dropout(v / 2), bpref.prelu(initial=v), bpref.leaky_relu(v)):
        assert layer.name


def test_integers_and_booleans_of_numpy_are_integers_and_booleans():
    x = jnp.ones((2, 6, 5, 8))
    for layer in (
        bpref.linear(np.int64(4), bias=np.bool_(True)),
        bpref.convolution(np.int32(4), (np.int64(3), 3), stride=np.int64(2), groups=np.int64(2)),
        bpref.group_norm(np.int64(4)),
        bpref.softmax(np.int64(-1)),
        bpref.reduce_sum((np.int64(0), 1), keepdims=np.bool_(True)),
    ):
        params = layer.init(jnp.zeros(2, jnp.uint32), x)
        _, _, dx = bpref.backpropagate(layer, params, x, layer.forward(params, x)[0])
        assert dx.shape == x.shape, layer.name


def test_numbers_that_are_read_keep_their_shape():
    found = [as_numbers(v) for v in (1, [1, 2], np.float32(0.5), jnp.ones(2, jnp.bfloat16), [])]
    assert [(v.dtype, v.shape) for v in found if v is not None] == [
        (np.float64, shape) for shape in ((), (2,), (), (2,), (0,))
    ]
    assert [as_numbers(v) for v in ("1", [True], None, [1j], [[1], [1, 2]])] == [None] * 5
