"""What no call of a rule can mean is refused by name, before anything is computed: every rule by the same messages."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import bpref
from bpref.rule import Rule
from bpref.rules import RULES
from bpref.verify.rules.draw import Example, all_of_size, draw
from tests.conftest import SEED
from tests.refusing import refusals

pytestmark = pytest.mark.quick

EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def example_of(rule: Rule) -> Example:
    case = rule.cases[0]
    return draw(rule, case, all_of_size(case, 3), SEED)


def refusal(f: Any, *args: Any) -> str:
    with jax.enable_x64(True), pytest.raises(TypeError) as error:
        jax.eval_shape(lambda: f(*args))
    return str(error.value)


def with_one_replaced(tree: Any, v: Any):
    """Every way to put `v` in the place of one leaf, with where that is."""
    found, structure = jax.tree_util.tree_flatten_with_path(tree)
    for i, (path, _) in enumerate(found):
        yield (
            jax.tree_util.keystr(path),
            jax.tree.unflatten(structure, [v if k == i else w for k, (_, w) in enumerate(found)]),
        )


@EVERY_RULE
def test_params_that_are_not_its_own(rule: Rule):
    example = example_of(rule)
    forward, backward, params = example.layer.forward, example.layer.backward, example.params
    wanted = type(params).__name__ if params != () else "()"
    for bad in (3.0, np.ones(3), {"W": 1.0}, [1, 2], None):
        message = refusal(forward, bad, example.x)
        assert message.startswith(f"{rule.name}: params is ")
        assert message.endswith(f", expected {wanted}, as init gives for this x")
    message = f"{rule.name}: params is a str, expected an array"
    assert refusal(forward, "text", example.x) == message
    for where, bad in with_one_replaced(params, "text"):
        assert refusal(forward, bad, example.x) == f"{rule.name}: params{where} is a str, expected an array"
    with jax.enable_x64(True):
        y, cache = jax.eval_shape(forward, params, example.x)
    for bad in (3.0, {"W": 1.0}):
        assert refusal(backward, bad, cache, y).endswith(f", expected {wanted}, as init gives for this x")


@EVERY_RULE
def test_a_tensor_of_torch_and_a_text_as_x(rule: Rule):
    example = example_of(rule)
    advice = "expected an array of JAX or NumPy: convert it by jax.dlpack.from_dlpack"
    for where, bad in with_one_replaced(example.x, torch.ones(2)):
        assert (
            refusal(example.layer.forward, example.params, bad) == f"{rule.name}: x{where} is a torch.Tensor, {advice}"
        )
        assert (
            refusal(example.layer.init, jax.random.key(0), bad) == f"{rule.name}: x{where} is a torch.Tensor, {advice}"
        )
    for where, bad in with_one_replaced(example.x, "text"):
        assert refusal(example.layer.forward, example.params, bad).startswith(rule.name), where


X = jnp.ones((4, 3))
LINEAR = bpref.linear(2)
PARAMS = LINEAR.init(jax.random.key(SEED), X)


def test_a_cache_of_another_layer():
    _, cache = LINEAR.forward(PARAMS, X)
    gelu = bpref.gelu()
    gelu.forward((), X)
    calls = {
        "linear: cache is a str, expected LinearCache, as forward gives": lambda: LINEAR.backward(PARAMS, "text", X),
        "gelu: cache is a LinearCache, expected InputCache, as forward gives": lambda: gelu.backward((), cache, X),
    }
    for message, call in calls.items():
        with pytest.raises(TypeError) as error:
            call()
        assert str(error.value) == message


test_messages = refusals(
    {
        "TypeError: embedding: params is a tuple, expected EmbeddingParams, as init gives for this x": (
            lambda: bpref.embedding(2, 3).forward((PARAMS.W,), jnp.zeros(4, int))
        ),
        "TypeError: linear: params is a tuple, expected LinearParams, as init gives for this x": (
            lambda: LINEAR.forward((PARAMS.W,), X)
        ),
        "TypeError: lstm: W is None, expected an array, as init gives for this x": (
            lambda: bpref.lstm(2).forward(bpref.LstmParams(*(None, PARAMS.W, PARAMS.b)), jnp.ones((1, 2, 3)))
        ),
        "TypeError: transformer_block: attention is a LinearParams, expected AttentionBlockParams, as init gives for "
        "this x": (
            lambda: bpref.transformer_block(1, 4).forward(
                bpref.TransformerBlockParams(PARAMS, PARAMS), jnp.ones((2, 4))
            )
        ),
        "TypeError: linear: a layer is no function; call layer.forward(params, x), which gives (y, cache), or "
        "bpref.as_function(layer)(params, x), which gives y": (lambda: LINEAR(PARAMS, X)),
        "TypeError: update_in_backward: optimizer is a float, expected an optax transformation such as "
        "optax.sgd(0.1)": (lambda: bpref.update_in_backward(0.1)),
    },
)


def test_a_layer_that_somebody_else_wrote_is_taken_at_its_word():
    """Its init may be a stand-in: what its forward takes is known to it alone."""
    double = bpref.Layer(
        bpref.identity().init, lambda p, x: (p["a"] * x, x), lambda p, x, dy: (None, p["a"] * dy), "double"
    )
    np.testing.assert_array_equal(double.forward({"a": 2.0}, X)[0], 2)


def test_under_jit_the_checks_are_in_no_program():
    with_checks = jax.make_jaxpr(LINEAR.forward)(PARAMS, X)
    assert str(with_checks) == str(jax.make_jaxpr(inspect.unwrap(LINEAR.forward))(PARAMS, X))


def test_a_function_is_called_what_its_layer_is_called():
    head, gelu = bpref.linear(2, name="head"), bpref.gelu()
    f, g = map(bpref.as_function, (head, gelu))
    assert (f.__name__, g.__name__) == (head.name, gelu.name) == ("linear 'head'", "gelu")
    report = bpref.audit(lambda params, x: g((), f(params, x)).sum(), PARAMS, X, key=SEED)
    assert [site.name for site in report.sites] == ["linear 'head'", "gelu"]
