"""The clipped gradient is that of gradients that are made and clipped, and the private one that of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import EVERY_COMPOSITION, close, fused, gradients_of, squares
from tests.transforms.test_stateful import packed_transformer

RNG = np.random.default_rng(SEED)


@EVERY_COMPOSITION
def test_every_composition_clips_the_gradient_of_each_example(made):
    with jax.enable_x64(True):
        J, x, params, expected, _ = gradients_of(made)
        norms = np.sqrt(squares(expected))
        bound = float(np.median(norms))

        def both(params, x):
            return [bpref.clipped_gradient(J, params, x, bound, by_leaf=by_leaf) for by_leaf in (False, True)]

        whole, by_leaf = jax.device_get(in_one_program(both)(params, jax.tree.map(jnp.asarray, x)))
    assert (norms > bound).any()
    assert (norms < bound).any()
    close(whole.norms, norms)
    close(whole.dparams, jax.tree.map(lambda g: np.tensordot(np.minimum(1, bound / norms), g, 1), expected))

    def of_leaf(norms, gradients):
        turns = norms.ndim - 1
        own = np.sqrt(sum(np.sum(g**2, tuple(range(1 + turns, g.ndim))) for g in jax.tree.leaves(gradients)))
        close(np.moveaxis(norms, -1, 0), own)
        share = bound / np.maximum(own, bound)
        return jax.tree.map(lambda g: np.sum(share.reshape(*own.shape, *(1,) * (g.ndim - own.ndim)) * g, 0), gradients)

    close(by_leaf.dparams, jax.tree.map(of_leaf, by_leaf.norms, expected))


@pytest.mark.parametrize("light", [True, False], ids=["one sweep", "two sweeps"])
def test_a_packed_transformer_with_dropout_is_clipped_by_what_its_examples_add(light, monkeypatch):
    monkeypatch.setattr("bpref.transforms.clip.is_light", lambda params, cache: light)
    J, given = packed_transformer()
    J = bpref.stateful(J)
    params, state = bpref.begin(J, jax.random.key(SEED), given)
    x = given._replace(state=state)
    each, measuring = (bpref.map_leaves(f, J) for f in (bpref.per_example_gradients, bpref.per_example_norms))

    def every(params, x):
        (_, after), gradients, _ = bpref.backpropagate(each, params, x)
        norms = bpref.squared_norms(bpref.backpropagate(measuring, params, x)[1])
        whole = bpref.backpropagate(J, params, x)[1]
        bound = 0.5
        return after, gradients, norms, whole, bpref.clipped_gradient(J, params, x, bound), bound / jnp.sqrt(norms)

    after, gradients, norms, whole, clipped, share = jax.device_get(in_one_program(every)(params, x))
    first = jax.tree.map(lambda g, p: np.moveaxis(g, 1, 0) if p.shape[0] == 2 else g, gradients, params)
    np.testing.assert_allclose(norms, squares(first), rtol=1e-4)
    close(jax.tree.map(lambda g: g.sum(0), first), whole, 1e-4)
    close(clipped.dparams, jax.tree.map(lambda g: np.tensordot(np.minimum(1, share), g, 1), first), 1e-4)
    assert jax.tree.structure(clipped.y[1]) == jax.tree.structure(after)
    assert (share < 1).all()


@pytest.mark.parametrize("made", [fused, lambda: fused(tied=True)], ids=["a GPT", "a tied GPT"])
def test_whether_gradients_are_kept_or_made_again_changes_nothing(made, monkeypatch):
    J, x = made()

    def of_each(params, x):
        clipped = []
        for light in (True, False):
            monkeypatch.setattr("bpref.transforms.clip.is_light", lambda params, cache, light=light: light)
            clipped.append(bpref.clipped_gradient(J, params, x, 0.05))
        return clipped

    with jax.enable_x64(True):
        params = J.init(jax.random.key(SEED), x)
        kept, again = in_one_program(of_each)(params, jax.tree.map(jnp.asarray, x))
    close(kept, again)


def classifier():
    J = bpref.objective(bpref.serial(bpref.linear(6), bpref.tanh(), bpref.linear(3)), bpref.softmax_cross_entropy())
    x = RNG.normal(size=(8, 4)).astype(np.float32), np.arange(8) % 3
    return J, x, J.init(jax.random.key(SEED), x)


def test_the_private_gradient_is_that_of_optax(standard_promotion):
    J, x, params = classifier()
    C, n = 2.0, len(x[0])
    _, private, norms = bpref.private_gradient(J, params, x, C / n, 0.0, jax.random.key(0))
    _, each, _ = bpref.backpropagate(bpref.map_leaves(bpref.per_example_gradients, J), params, x)
    rival = optax.contrib.differentially_private_aggregate(C, 0.0, jax.random.key(0))
    expected, _ = rival.update(jax.tree.map(lambda g: n * g, each), rival.init(params))  # type: ignore[arg-type]
    assert 0 < (norms > C / n).sum() < n
    for a, b in zip(jax.tree.leaves(private), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_noise_is_that_of_its_multiplier_and_no_two_arrays_have_the_same():
    J, x, params = classifier()
    clipped = bpref.clipped_gradient(J, params, x, 0.5).dparams
    draw = jax.jit(lambda key: bpref.private_gradient(J, params, x, 0.5, 2.0, key).dparams)
    private = [draw(jax.random.key(k)) for k in range(200)]
    noise = [[np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (p, clipped)), strict=True)] for p in private]
    for of_array in zip(*noise, strict=True):
        drawn = np.concatenate(of_array)
        assert abs(drawn.std() - 1.0) < 4 / np.sqrt(2 * drawn.size)
        assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    assert abs(np.corrcoef([of[0][0] for of in noise], [of[2][0] for of in noise])[0, 1]) < 0.3


BAD_CALLS = {
    "clipped_gradient: bound is 0.0, expected a positive number": (
        lambda: bpref.clipped_gradient(*classifier()[:1], (), (), 0.0)
    ),
    "private_gradient: multiplier is -1.0, expected a number of at least 0": (
        lambda: bpref.private_gradient(*classifier()[:1], (), (), 1.0, -1.0, jax.random.key(0))
    ),
    "TypeError: clipped_gradient: layer is an int, expected a Layer, one that is made, as by ...": (
        lambda: bpref.clipped_gradient(3, (), (), 1.0)
    ),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)
