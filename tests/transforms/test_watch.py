"""What is watched are the numbers that flow, and where a network dies is where it was made to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.conftest import SEED
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import EVERY_COMPOSITION, close
from tests.transforms.test_stateful import NETWORKS


@EVERY_COMPOSITION
def test_every_composition_is_watched_beside_its_gradient(made):
    with jax.enable_x64(True):
        J, x = made()
        params, watching = J.init(jax.random.key(SEED), x), bpref.map_leaves(bpref.watch, J)
        dparams, watched = in_one_program(lambda *given: [bpref.backpropagate(f, *given)[1] for f in (J, watching)])(
            params, jax.tree.map(jnp.asarray, x)
        )
    close(bpref.unwatched(watched), dparams)
    assert sorted(bpref.statistics_by_path(J, watched)) == sorted(bpref.leaf_paths(J))
    assert bpref.where_it_dies(J, watched) is None


@pytest.mark.parametrize("made", NETWORKS.values(), ids=NETWORKS)
def test_what_has_state_is_watched(made):
    J, given = made()
    J, given = bpref.stateful(J), jax.tree.map(jnp.asarray, given)
    params, state = bpref.begin(J, jax.random.key(SEED), given)
    watching = bpref.map_leaves(bpref.watch, J)
    sweep = in_one_program(lambda p, x: bpref.backpropagate(watching, p, x)[1])
    assert sorted(bpref.statistics_by_path(J, sweep(params, given._replace(state=state)))) == sorted(
        bpref.leaf_paths(J)
    )


def network(*weights):
    """Linear layers and relu, by turns, of these weights."""
    layers = [layer for _ in weights for layer in (bpref.linear(3, bias=False), bpref.relu())]
    params = [p for W in weights for p in (bpref.LinearParams(jnp.asarray(W), None), ())]
    return bpref.serial(*layers), tuple(params)


def swept(layer, params, x, dy=None):
    dy = jnp.ones_like(x) if dy is None else dy
    return bpref.backpropagate(bpref.map_leaves(bpref.watch, layer), params, x, dy)[1]


def test_the_numbers_are_those_of_outputs_and_cotangents():
    layer = bpref.identity()
    x = jnp.asarray([[1.0, -2.0, 0.0], [4.0, jnp.nan, -jnp.inf]])
    seen = bpref.statistics_by_path(layer, swept(layer, (), x, jnp.full((2, 3), 2.0)))
    assert list(seen) == ["identity"]
    output, cotangent = jax.device_get((seen["identity"].output, seen["identity"].cotangent))
    assert tuple(cotangent) == (2.0, 0.0, 0.0, 0, 2.0, 6)
    finite = np.array([1, -2, 0, 4])
    np.testing.assert_allclose(output[:2], [finite.mean(), finite.std()], rtol=1e-6)
    assert tuple(output[2:]) == (np.float32(1 / 6), 2, 4.0, 6)


def scanned(*turns):
    """A scan of two diagonal layers a turn, of these factors."""
    layer = bpref.scan(bpref.serial(a=bpref.linear(3, bias=False), b=bpref.linear(3, bias=False)), len(turns))
    stacked = (jnp.stack([f * jnp.eye(3) for f in of]) for of in zip(*turns, strict=True))
    return layer, dict(zip("ab", (bpref.LinearParams(W, None) for W in stacked), strict=True))


def exploding():
    """Its backward gives infinities."""
    return bpref.Layer(
        lambda key, x: (), lambda params, x: (x, ()), lambda params, cache, dy: ((), dy * jnp.inf), "exploding"
    )


EYE, BIG = np.eye(3, dtype=np.float32), np.float32(3e38)
DEATHS = {
    "a dead relu": (network(EYE, -EYE, EYE), "the output of 3 relu is all zeros"),
    "an overflow": (network(BIG / 4 * EYE, 10 * EYE), "the output of 2 linear has 6 not finite"),
    "nothing": (network(EYE, 2 * EYE), None),
    "the second layer in a turn before that of the first": (
        scanned((1, 1), (1, 0), (0, 1)),
        "the output of b linear is all zeros, in turn 1",
    ),
    "a cotangent": (
        (bpref.serial(bpref.linear(3, bias=False), exploding()), (bpref.LinearParams(jnp.asarray(EYE), None), ())),
        "the cotangent of 0 linear has 6 not finite",
    ),
}


@pytest.mark.parametrize(("made", "said"), DEATHS.values(), ids=DEATHS)
def test_where_a_network_dies_is_named(made, said):
    layer, params = made
    x = 1 + jnp.eye(3)[:2]
    assert bpref.where_it_dies(layer, swept(layer, params, x)) == said


def test_a_single_number_that_is_zero_is_no_dead_layer():
    """A penalty beside x, to which nothing is added yet."""
    layer = bpref.parallel(bpref.tanh(), bpref.identity())
    x = jnp.ones((2, 3)), jnp.zeros(())
    assert bpref.where_it_dies(layer, swept(layer, ((), ()), x, x)) is None
    x = jnp.ones((2, 3)), jnp.zeros(2)
    assert bpref.where_it_dies(layer, swept(layer, ((), ()), x, x)) == "the output of 1 identity is all zeros"


def test_what_was_not_watched_is_refused():
    layer, params = network(EYE)
    for watched, message in (
        (params, "watched at 0 linear is a LinearParams, expected a Watched"),
        ((), "watched: it is a tuple of 0, expected a tuple of 2, one for each of (linear, relu)"),
    ):
        with pytest.raises((TypeError, ValueError)) as refused:
            bpref.statistics_by_path(layer, watched)
        assert str(refused.value) == message
