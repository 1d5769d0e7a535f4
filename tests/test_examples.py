"""The examples of the public functions run as they stand, those of each rule on its page of the book."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

import bpref

OF_FILES = {"fit", "gpt", "gpt_objective", "load", "load_weights", "mixture", "mixture_objective", "read_text"}
OF_FILES |= {"variational_autoencoder"}
"""Tested beside what they are of: their examples write files, or use bpref's names as they are."""

BY_ANOTHER = {"config_of": "load_weights", "save_weights": "load_weights", "squared_norms": "per_example_norms"}
"""Whose example shows a function that has none."""

FUNCTIONS = [
    name
    for name in bpref.__all__
    if inspect.isfunction(getattr(bpref, name)) and not {name} & (OF_FILES | BY_ANOTHER.keys() | bpref.RULES.keys())
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_runs(name, standard_promotion):
    if name in ("compile_for", "devices_of"):
        pytest.importorskip("libtpu")
    J = bpref.objective(bpref.linear(3), bpref.softmax_cross_entropy())
    X, y = jax.random.normal(jax.random.key(0), (4, 2)), jnp.arange(4) % 3
    given = {"bpref": bpref, "jax": jax, "jnp": jnp, "optax": optax, "J": J, "X": X, "y": y, "dy": jnp.ones((4, 3))}
    given["params"] = J.init(jax.random.key(0), (X, y))
    text = inspect.getdoc(getattr(bpref, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, given, name, None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize(("name", "other"), BY_ANOTHER.items())
def test_one_that_has_none_says_which_shows_it(name, other):
    text = inspect.getdoc(getattr(bpref, name)) or ""
    assert f"The example is that of `{other}`." in text
    assert f"{name}(" in (inspect.getdoc(getattr(bpref, other)) or "")
