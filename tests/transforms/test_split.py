"""The two halves of the backward give what the whole does, and neither does the other's work."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.conftest import SEED
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import EVERY_COMPOSITION
from tests.transforms.test_stateful import NETWORKS


def halves(J, params, x):
    """dparams and dx by the whole backward, and by the two halves of it."""
    later_of = bpref.map_leaves(bpref.split_backward, J)
    _, dparams, dx = in_one_program(lambda p, x: bpref.backpropagate(J, p, x))(params, x)
    _, later, dx_now = in_one_program(lambda p, x: bpref.backpropagate(later_of, p, x))(params, x)
    return (dparams, dx), (in_one_program(bpref.backward_params)(params, later), dx_now)


def close(whole, split):
    for v in (whole, split):
        assert jax.tree.structure(v) == jax.tree.structure(whole)
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@EVERY_COMPOSITION
def test_the_halves_of_every_composition_are_the_whole(made):
    with jax.enable_x64(True):
        J, x = made()
        x = jax.tree.map(jnp.asarray, x)
        close(*halves(J, J.init(jax.random.key(SEED), x), x))


@pytest.mark.parametrize("made", NETWORKS.values(), ids=NETWORKS)
def test_the_halves_with_state_are_the_whole(made):
    with jax.enable_x64(True):
        J, given = made()
        J, given = bpref.stateful(J), jax.tree.map(in_float64, given)
        params, state = bpref.begin(J, jax.random.key(SEED), given)
        (dparams, dx), (later, dx_now) = halves(J, params, given._replace(state=state))
        close((dparams, dx.x), (later, dx_now.x))


def in_float64(v):
    return jnp.asarray(v, jnp.float64 if np.issubdtype(v.dtype, np.floating) else None)


def products(compiled) -> set[str]:
    """The shapes of the matrix products in a program."""
    return set(re.findall(r"= (\w+\[[\d,]*\])\S* (?:dot|custom-call)\(", compiled.as_text()))


def test_neither_half_has_the_products_of_the_other():
    """Z = A W^T: A (5, 3), W (7, 3), then (5, 7), (11, 7)."""
    network = bpref.map_leaves(bpref.split_backward, bpref.serial(bpref.linear(7), bpref.tanh(), bpref.linear(11)))
    x, dy = jnp.ones((5, 3)), jnp.ones((5, 11))
    params = network.init(jax.random.key(0), x)
    _, cache = network.forward(params, x)
    first = jax.jit(network.backward).lower(params, cache, dy).compile()
    later = jax.eval_shape(network.backward, params, cache, dy)[0]
    second = jax.jit(bpref.backward_params).lower(params, later).compile()
    whole = bpref.serial(bpref.linear(7), bpref.tanh(), bpref.linear(11))
    both = jax.jit(whole.backward).lower(params, cache, dy).compile()
    dA, dW = {"f32[5,3]", "f32[5,7]"}, {"f32[7,3]", "f32[11,7]"}
    assert [products(p) for p in (both, first, second)] == [dA | dW, dA, dW]


def test_what_is_left_of_other_params_is_refused():
    network = bpref.map_leaves(bpref.split_backward, bpref.serial(bpref.linear(2), bpref.linear(2)))
    x = jnp.ones((3, 2))
    params = network.init(jax.random.key(0), x)
    _, later, _ = bpref.backpropagate(network, params, x, x)
    with pytest.raises(TypeError) as refused:
        bpref.backward_params(params[:1], later)
    assert str(refused.value).startswith("backward_params: later is a tuple of another tree than params; expected ")


def twice(turn):
    """A layer taken two times by what it shares."""
    return turn(bpref.shared(bpref.serial(a=bpref.linear(2), b=bpref.linear(2)), ("a.W", "b.W")))


@pytest.mark.parametrize(
    ("layer", "names"),
    [(twice(lambda f: bpref.scan(f, 2)), "a.W"), (twice(lambda f: bpref.serial(f, f)), "a.W, a.W")],
    ids=["inside of scan", "two of one name"],
)
def test_what_is_shared_in_places_that_cannot_be_told_apart_is_refused(layer, names):
    x = jnp.ones((3, 2))
    params = layer.init(jax.random.key(0), x)
    _, later, _ = bpref.backpropagate(bpref.map_leaves(bpref.split_backward, layer), params, x, x)
    with pytest.raises(ValueError) as refused:
        bpref.backward_params(params, later)
    assert str(refused.value).startswith(f"backward_params: what is shared is ({names}); expected each name once, and ")
