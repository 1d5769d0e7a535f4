"""Every public function, called with what it cannot mean: one line that says which argument, what came, what fits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from tests.refusing import refusals

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
    "channels_first": bpref.channels_first,
    "unbatched": bpref.unbatched,
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
    f"TypeError: checked: leaf is a str, {LAYER}": lambda: bpref.checked("f"),
    f"TypeError: objective: network is a str, {LAYER}": lambda: bpref.objective("f", TANH),
    f"TypeError: objective: loss is the function square, {LAYER}": lambda: bpref.objective(TANH, bpref.square),
    "TypeError: map_leaves: f is a str, expected a function of a leaf that returns a Layer": (
        lambda: bpref.map_leaves("f", TANH)
    ),
    f"TypeError: map_leaves: what f returned for the leaf tanh is an int, {LAYER}": (
        lambda: bpref.map_leaves(lambda leaf: 3, bpref.residual(TANH))
    ),
    "TypeError: Layer 'mine': forward is a str, expected a function": (
        lambda: bpref.Layer(TANH.init, "f", TANH.backward, "mine")
    ),
    "scan: length is True, expected a positive integer": lambda: bpref.scan(TANH, True),
    "reversible: length is True, expected a positive integer": lambda: bpref.reversible(TANH, TANH, True),
    "TypeError: trainable: x is a str, expected an array": lambda: bpref.trainable(TANH, (), "x"),
    "TypeError: check_leaves: params['W'] is a str, expected an array": (
        lambda: bpref.check_leaves(bpref.linear(2), {"W": "p"}, X)
    ),
    "TypeError: check_leaves: dy is a str, expected an array": lambda: bpref.check_leaves(TANH, (), X, "dy"),
    f"TypeError: cast_params: dtype is 'nope', {DTYPE}": lambda: bpref.cast_params("nope"),
    f"TypeError: cast_params: dtype is None, {DTYPE}": lambda: bpref.cast_params(None),
    f"TypeError: cast_params: stored is int, {DTYPE}": lambda: bpref.cast_params("bfloat16", int),
    f"TypeError: cast_params: leaf is a str, {LAYER}": lambda: bpref.cast_params("bfloat16")("f"),
    f"TypeError: update_in_backward: leaf is a str, {LAYER}": lambda: bpref.update_in_backward(optax.sgd(0.1))("f"),
    "TypeError: power_iteration: params is a str, expected SpectralNormLinearParams": (
        lambda: bpref.power_iteration("p")
    ),
    "TypeError: update_running_statistics: cache is a str, expected BatchNormCache": (
        lambda: bpref.update_running_statistics(bpref.BatchNormParams(X, X, X, X), "c")
    ),
    "TypeError: crf_marginals: params is a str, expected CRFParams": lambda: bpref.crf_marginals("p", X, X),
    "KeyError: \"there is no rule 'sofmax'; the nearest: softmax, log_softmax, softmin\"": (
        lambda: bpref.RULES["sofmax"]
    ),
    "TypeError: verify_rule: rule is a str, expected a Rule, such as bpref.RULES['gelu']": (
        lambda: bpref.verify_rule("gelu")
    ),
    f"TypeError: verify_rule: seed is a str, {SEED}": lambda: bpref.verify_rule(bpref.RULES["tanh"], "a"),
    f"TypeError: check: dtypes[1] is 'f32', {DTYPE}": lambda: bpref.check(squash, X, dtypes=["float32", "f32"]),
    f"TypeError: check: dtypes[0] is 'f32', {DTYPE}": (
        lambda: bpref.check(np.tanh, X, backward=backward, dtypes=["f32"])
    ),
    f"TypeError: check: dtypes[0] is int, {DTYPE}": lambda: bpref.check(squash, X, dtypes=[int]),
    f"TypeError: check: dtypes is 'complex64', {DTYPE}": lambda: bpref.check(squash, X, dtypes="complex64"),
    f"TypeError: check: dtypes is 3, {DTYPE}": lambda: bpref.check(squash, X, dtypes=3),
    "check: dtypes is empty, expected one dtype or more, or None for those of the arguments": (
        lambda: bpref.check(squash, X, dtypes=[])
    ),
    "the reference returns None, squash returns float32[3]; expected the same": (
        lambda: bpref.check(squash, X, reference=lambda x: None)
    ),
    "TypeError: check: cross_check is a str, expected True or False": lambda: bpref.check(squash, X, cross_check="no"),
    "TypeError: audit: args are 0, and squash(x): missing a required argument: 'x'": lambda: bpref.audit(squash),
    "TypeError: audit: args are 2, and squash(x): too many positional arguments": lambda: bpref.audit(squash, X, X),
    "TypeError: audit: x is a str, and squash takes it for an array: Argument 'x' of type <class 'str'> is not a "
    "valid JAX type": (lambda: bpref.audit(squash, "x")),
    "TypeError: audit: drive is 1, expected True or False": lambda: bpref.audit(squash, X, drive=1),
    "TypeError: search: seconds is a str, expected a number of 0 or more": lambda: search(seconds="a"),
    "search: seconds is -1, expected 0 or more": lambda: search(seconds=-1),
    f"TypeError: search: key is a str, {SEED}": lambda: search(key="a"),
    "TypeError: search: examples is 1.5, expected a whole number of 1 or more": lambda: search(examples=1.5),
    "search: examples is 0, expected 1 or more": lambda: search(examples=0),
    "TypeError: mutants: backward is a str, expected a function": lambda: bpref.mutants("f", X),
    "mutants: points is empty, expected one tuple like args, or more": (
        lambda: bpref.mutants(backward, (X,), X, points=[])
    ),
    "mutants: points[1] has 1 arguments, args has 2": (
        lambda: bpref.mutants(backward, (X,), X, points=[((X,), X), ((X,),)])
    ),
    "TypeError: equivalents: points is 3, expected a list of tuples, each like args": (
        lambda: bpref.equivalents(backward, (X,), X, points=3)
    ),
    "TypeError: strip_custom_rules: fun is a str, expected a function": lambda: bpref.strip_custom_rules("f"),
    "TypeError: check_intermediates: args is float32[3], expected the tuple of forward's args": (
        lambda: bpref.check_intermediates(squash, X, {})
    ),
    'TypeError: check_intermediates: cotangents is a str, expected {"NAME": its cotangent, ...} or a function of '
    "(args, dy) that returns that": (lambda: named("c")),
}


test_a_call_that_cannot_be_meant_is_refused_before_anything_is_computed = refusals(CALLS)


def test_one_dtype_may_be_given_for_several():
    alone, listed = (bpref.check(squash, X, dtypes=d, key=1) for d in (jnp.bfloat16, ["bfloat16"]))
    assert alone == listed
    assert [p.dtype for p in alone.verdicts[0].precision] == ["bfloat16"]
