"""mixture: the published sizes, the objective written out with its penalty, and positions chunk after chunk."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.models.mixture import MIXTURE_PRESETS
from bpref.rules import RULES
from tests.rules.sweeping import by_oracle, compiled

CONFIG = bpref.MixtureConfig(11, 8, 2, 2, 6, experts=4, kv_heads=1, shared=1, balance_weight=0.3, z_weight=0.2)
IDS = np.arange(24).reshape(2, 12) ** 2 % 11
LABELS = np.roll(IDS, -1, 1)


@pytest.mark.parametrize(
    ("name", "size"), [("mixtral-8x7b", 46_702_792_704), ("mixtral-8x22b", 140_620_634_112)], ids=MIXTURE_PRESETS
)
def test_published_sizes(name, size):
    params = jax.eval_shape(bpref.mixture(name).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert sum(p.size for p in jax.tree.leaves(params)) == size


def plain(params, ids, labels):
    """Block by block, every expert on every token."""
    p, penalty = params["body"], 0.0
    x = p["embed"]["tokens"].W[ids]
    for l in range(2):
        block = jax.tree.map(lambda v, l=l: v[l], p["blocks"])
        h = x + RULES["attention_block"].reference(block["attention"]["x"], x, 2, 1, rope=1e6, eps=1e-5)
        n = RULES["rms_norm"].reference(block["experts"]["norm"]["x"], h, 1e-5)
        y, balance, z = RULES["mixture_of_experts"].reference(block["experts"]["experts"]["x"], n, 4, 6, shared=1)
        x, penalty = h + y, penalty + 0.3 * balance + 0.2 * z
    x = RULES["rms_norm"].reference(p["norm"]["x"], x, 1e-5)
    logits = x @ params["head"]["product"]["x"].W.T
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean() + penalty, logits


@pytest.mark.parametrize("remat", [False, True], ids=["all kept", "remat"])
def test_it_is_the_plain_form_and_its_gradient_autodiffs(remat):
    network, objective = bpref.mixture(CONFIG), bpref.mixture_objective(CONFIG, remat)
    with jax.enable_x64(True):
        params = compiled(network.init)(jax.random.key(0), IDS)
        of_objective = jax.eval_shape(objective.init, jax.random.key(0), (IDS, LABELS))
        assert jax.tree.structure(params) == jax.tree.structure(of_objective)
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda p: p.astype(np.float64) + 0.3 * rng.normal(size=p.shape), params)
        J, dparams, _ = compiled(partial(bpref.backpropagate, objective))(params, (IDS, LABELS))
        evaluated = compiled(bpref.evaluation(objective).forward)(params, (IDS, LABELS))[0]
        y = compiled(network.forward)(params, IDS)[0]
        with jax.numpy_rank_promotion("allow"):
            without = optax.softmax_cross_entropy_with_integer_labels(y, LABELS).mean()
            dy = jnp.ones(()), jnp.zeros_like(y)
            (expected, logits), (truth,) = by_oracle(lambda p: plain(p, IDS, LABELS), params, dy=dy)
        np.testing.assert_allclose(J, expected, rtol=1e-12)
        np.testing.assert_allclose(evaluated, without, rtol=1e-12)
        np.testing.assert_allclose(y, logits, rtol=1e-9, atol=1e-12)
        for ours, theirs in zip(jax.tree.leaves(dparams), jax.tree.leaves(truth), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-12)
        came, dx = compiled(partial(bpref.backpropagate, network))(params, IDS, logits)[:2]
        assert dx["body"]["blocks"]["experts"]["experts"]["x"].U.any()
        np.testing.assert_array_equal(came, y)


def test_chunk_after_chunk_it_is_the_whole():
    network = bpref.mixture(CONFIG)
    decoder = bpref.decoding(network, 12)
    with jax.enable_x64(True):
        params, state = bpref.begin(decoder, jax.random.key(0), IDS[:, :5])
        params = jax.tree.map(lambda p: p.astype(np.float64), params)
        state = jax.tree.map(lambda s: s.astype(np.float64) if jnp.issubdtype(s.dtype, jnp.floating) else s, state)
        came = []
        for at in (slice(5), slice(5, 6), slice(6, 12)):
            (logits, state), _ = decoder.forward(params, bpref.With(IDS[:, at], state))
            came.append(logits)
        expected = network.forward(params, IDS)[0]
        np.testing.assert_allclose(np.concatenate(came, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mixture", "mixture_objective"])
def test_the_examples_run(name):
    names = {n: getattr(bpref, n) for n in bpref.__all__} | {"jax": jax, "jnp": jnp}
    (example,) = doctest.DocTestFinder(recurse=False).find(names[name], name, globs=names)
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))


def test_wrong_configs_and_what_does_not_generate():
    with pytest.raises(ValueError, match="mixture: width is 8, expected a multiple of heads, 3"):
        bpref.MixtureConfig(11, 8, 2, 3, 6)
    with pytest.raises(ValueError, match="mixture_of_experts: k is 5, expected at most the number of experts E = 4"):
        bpref.MixtureConfig(11, 8, 2, 2, 6, experts=4, k=5)
    with pytest.raises(ValueError, match="mixture: balance_weight is -1, expected a number of at least 0"):
        bpref.MixtureConfig(11, 8, 2, 2, 6, balance_weight=-1)
    with pytest.raises(ValueError, match="unknown preset 'mixtral'; there is mixtral-8x7b, mixtral-8x22b"):
        bpref.mixture("mixtral")
    dropping = bpref.mixture(bpref.MixtureConfig(11, 8, 2, 2, 6, capacity_factor=1.25))
    with pytest.raises(
        TypeError, match=r"mixture_of_experts says nothing .*, and the load of the experts of all of them"
    ):
        bpref.decoding(dropping, 12)
