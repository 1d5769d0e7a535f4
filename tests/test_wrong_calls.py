"""Every public function, called with what it cannot mean: one line that says which argument, what came, what fits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref

X = np.full(3, 0.5, np.float32)
TANH = bpref.tanh()


def backward(args, dy):
    return (dy * (1 - jnp.tanh(args[0]) ** 2),)


@jax.custom_vjp
def squash(x):
    return jnp.tanh(x)


squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, dy: backward((x,), dy))

LAYER = "expected a Layer, one that is made, as by linear(64)"
DTYPE = 'expected a floating-point dtype such as "float32" or jnp.bfloat16'
SEED = "expected a whole number of 0 or more, or a jax.random.key: the seed of every draw"

OF_LAYERS = {
    "check_leaves": lambda v: bpref.check_leaves(v, (), X),
    "leaf_paths": bpref.leaf_paths,
    "map_leaves": lambda v: bpref.map_leaves(lambda leaf: leaf, v),
    "backpropagate": lambda v: bpref.backpropagate(v, (), X),
    "trainable": lambda v: bpref.trainable(v, (), X),
    "as_function": bpref.as_function,
    "residual": bpref.residual,
    "remat": bpref.remat,
    "scan": lambda v: bpref.scan(v, 2),
}


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize(
    ("v", "came"), [("a", "a str"), (bpref.tanh, "the function tanh"), ([TANH], "a list"), (squash, "a custom_vjp")]
)
def test_what_takes_a_layer_says_so_of_anything_else(name, v, came):
    with pytest.raises(TypeError) as error:
        OF_LAYERS[name](v)
    assert str(error.value) == f"{name}: layer is {came}, {LAYER}"


search: Any = partial(bpref.search, squash, "f32[N]")
named: Any = partial(bpref.check_intermediates, squash, (X,))

CALLS = {
    "checked": (lambda: bpref.checked("f"), f"checked: leaf is a str, {LAYER}"),  # type: ignore[arg-type]
    "objective": (lambda: bpref.objective("f", TANH), f"objective: network is a str, {LAYER}"),  # type: ignore[arg-type]
    "objective, loss": (
        lambda: bpref.objective(TANH, bpref.square),  # type: ignore[arg-type]
        f"objective: loss is the function square, {LAYER}",
    ),
    "map_leaves, f": (
        lambda: bpref.map_leaves("f", TANH),  # type: ignore[arg-type]
        "map_leaves: f is a str, expected a function of a leaf that returns a Layer",
    ),
    "map_leaves, leaf": (
        lambda: bpref.map_leaves(lambda leaf: 3, bpref.residual(TANH)),  # type: ignore[arg-type]
        f"map_leaves: what f returned for the leaf tanh is an int, {LAYER}",
    ),
    "Layer": (
        lambda: bpref.Layer(TANH.init, "f", TANH.backward, "mine"),  # type: ignore[arg-type]
        "Layer 'mine': forward is a str, expected a function",
    ),
    "scan": (lambda: bpref.scan(TANH, True), "scan: length is True, expected a positive integer"),
    "reversible": (
        lambda: bpref.reversible(TANH, TANH, True),
        "reversible: length is True, expected a positive integer",
    ),
    "trainable": (lambda: bpref.trainable(TANH, (), "x"), "trainable: x is a str, expected an array"),
    "check_leaves, params": (
        lambda: bpref.check_leaves(bpref.linear(2), {"W": "p"}, X),
        "check_leaves: params['W'] is a str, expected an array",
    ),
    "check_leaves, dy": (lambda: bpref.check_leaves(TANH, (), X, "dy"), "check_leaves: dy is a str, expected an array"),
    "cast_params": (lambda: bpref.cast_params("nope"), f"cast_params: dtype is 'nope', {DTYPE}"),
    "cast_params, None": (lambda: bpref.cast_params(None), f"cast_params: dtype is None, {DTYPE}"),
    "cast_params, stored": (lambda: bpref.cast_params("bfloat16", int), f"cast_params: stored is int, {DTYPE}"),
    "cast_params, leaf": (
        lambda: bpref.cast_params("bfloat16")("f"),  # type: ignore[arg-type]
        f"cast_params: leaf is a str, {LAYER}",
    ),
    "update_in_backward, leaf": (
        lambda: bpref.update_in_backward(optax.sgd(0.1))("f"),  # type: ignore[arg-type]
        f"update_in_backward: leaf is a str, {LAYER}",
    ),
    "power_iteration": (
        lambda: bpref.power_iteration("p"),  # type: ignore[arg-type]
        "power_iteration: params is a str, expected SpectralNormLinearParams",
    ),
    "update_running_statistics": (
        lambda: bpref.update_running_statistics(bpref.BatchNormParams(X, X, X, X), "c"),  # type: ignore[arg-type]
        "update_running_statistics: cache is a str, expected BatchNormCache",
    ),
    "crf_marginals": (
        lambda: bpref.crf_marginals("p", X, X),  # type: ignore[arg-type]
        "crf_marginals: params is a str, expected CRFParams",
    ),
    "RULES": (
        lambda: bpref.RULES["sofmax"],
        "\"there is no rule 'sofmax'; the nearest: softmax, log_softmax, softmin\"",
    ),
    "verify_rule": (
        lambda: bpref.verify_rule("gelu"),  # type: ignore[arg-type]
        "verify_rule: rule is a str, expected a Rule, such as bpref.RULES['gelu']",
    ),
    "verify_rule, seed": (
        lambda: bpref.verify_rule(bpref.RULES["tanh"], "a"),  # type: ignore[arg-type]
        f"verify_rule: seed is a str, {SEED}",
    ),
    "check, no such dtype": (
        lambda: bpref.check(squash, X, dtypes=["float32", "f32"]),
        f"check: dtypes[1] is 'f32', {DTYPE}",
    ),
    "check, of a host function": (
        lambda: bpref.check(np.tanh, X, backward=backward, dtypes=["f32"]),
        f"check: dtypes[0] is 'f32', {DTYPE}",
    ),
    "check, integers": (lambda: bpref.check(squash, X, dtypes=[int]), f"check: dtypes[0] is int, {DTYPE}"),
    "check, complex": (lambda: bpref.check(squash, X, dtypes="complex64"), f"check: dtypes is 'complex64', {DTYPE}"),
    "check, number": (lambda: bpref.check(squash, X, dtypes=3), f"check: dtypes is 3, {DTYPE}"),
    "check, no dtypes": (
        lambda: bpref.check(squash, X, dtypes=[]),
        "check: dtypes is empty, expected one dtype or more, or None for those of the arguments",
    ),
    "check, reference": (
        lambda: bpref.check(squash, X, reference=lambda x: None),
        "the reference returns None, squash returns float32[3]; expected the same",
    ),
    "check, flag": (
        lambda: bpref.check(squash, X, cross_check="no"),  # type: ignore[arg-type]
        "check: cross_check is a str, expected True or False",
    ),
    "audit, nothing": (
        lambda: bpref.audit(squash),
        "audit: args are 0, and squash(x): missing a required argument: 'x'",
    ),
    "audit, too much": (
        lambda: bpref.audit(squash, X, X),
        "audit: args are 2, and squash(x): too many positional arguments",
    ),
    "audit, no array": (
        lambda: bpref.audit(squash, "x"),
        "audit: x is a str, and squash takes it for an array: "
        "Argument 'x' of type <class 'str'> is not a valid JAX type",
    ),
    "audit, flag": (
        lambda: bpref.audit(squash, X, drive=1),  # type: ignore[arg-type]
        "audit: drive is 1, expected True or False",
    ),
    "search, seconds": (lambda: search(seconds="a"), "search: seconds is a str, expected a number of 0 or more"),
    "search, negative": (lambda: search(seconds=-1), "search: seconds is -1, expected 0 or more"),
    "search, key": (lambda: search(key="a"), f"search: key is a str, {SEED}"),
    "search, examples": (lambda: search(examples=1.5), "search: examples is 1.5, expected a whole number of 1 or more"),
    "search, no examples": (lambda: search(examples=0), "search: examples is 0, expected 1 or more"),
    "mutants": (lambda: bpref.mutants("f", X), "mutants: backward is a str, expected a function"),  # type: ignore[arg-type]
    "mutants, no points": (
        lambda: bpref.mutants(backward, (X,), X, points=[]),
        "mutants: points is empty, expected one tuple like args, or more",
    ),
    "mutants, points": (
        lambda: bpref.mutants(backward, (X,), X, points=[((X,), X), ((X,),)]),
        "mutants: points[1] has 1 arguments, args has 2",
    ),
    "equivalents": (
        lambda: bpref.equivalents(backward, (X,), X, points=3),  # type: ignore[arg-type]
        "equivalents: points is 3, expected a list of tuples, each like args",
    ),
    "strip_custom_rules": (
        lambda: bpref.strip_custom_rules("f"),  # type: ignore[type-var]
        "strip_custom_rules: fun is a str, expected a function",
    ),
    "check_intermediates": (
        lambda: bpref.check_intermediates(squash, X, {}),  # type: ignore[arg-type]
        "check_intermediates: args is float32[3], expected the tuple of forward's args",
    ),
    "check_intermediates, cotangents": (
        lambda: named("c"),
        'check_intermediates: cotangents is a str, expected {"NAME": its cotangent, ...} or a function of (args, dy) '
        "that returns that",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_be_meant_is_refused_before_anything_is_computed(name):
    call, message = CALLS[name]
    with pytest.raises((TypeError, ValueError, KeyError)) as error:
        call()
    assert str(error.value) == message


def test_one_dtype_may_be_given_for_several():
    alone, listed = (bpref.check(squash, X, dtypes=d, key=1) for d in (jnp.bfloat16, ["bfloat16"]))
    assert alone == listed
    assert [p.dtype for p in alone.verdicts[0].precision] == ["bfloat16"]
