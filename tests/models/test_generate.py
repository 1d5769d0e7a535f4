"""A sequence continued token after token: what the whole network, run again for each of them, would draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.models import generate as module
from tests.conftest import SEED

V, D, P, STEPS = 11, 16, 4, 7
PROMPT = np.array([[1, 2, 3, 4], [9, 0, 9, 5]])


def gpt():
    blocks = bpref.scan(bpref.remat(bpref.transformer_block(4, 24, 2, window=6)), 2)
    return bpref.serial(embed=bpref.embedding(V, D), blocks=blocks, norm=bpref.rms_norm(), head=bpref.linear(V))


NETWORKS = {
    "gpt": gpt,
    "blocks of several kinds": lambda: bpref.gpt(
        bpref.GptConfig(V, D, 8, 4, 12, 16, 2, window=3, rotated=(True, True, True, False), windowed=(True, False))
    ),
    "tied": lambda: bpref.shared(gpt(), ("embed.W", "head.W")),
    "lstm": lambda: bpref.serial(bpref.embedding(V, D), bpref.lstm_block(8), bpref.rms_norm(), bpref.linear(V)),
}


def drawn(network):
    keys = iter(jax.random.split(jax.random.key(SEED), 99))
    params = network.init(next(keys), PROMPT)
    return jax.tree.map(lambda v: v + 0.7 * jax.random.normal(next(keys), v.shape, v.dtype), params)


@pytest.mark.parametrize("size", [1, P], ids="a prompt of {}".format)
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_greedy_is_the_largest_logit_of_the_whole_network(make, size):
    network = make()
    params, tokens = drawn(network), PROMPT[:, :size]
    forward = jax.jit(lambda params, ids: network.forward(params, ids)[0])
    for _ in range(STEPS):
        tokens = np.concatenate([tokens, np.argmax(forward(params, tokens)[:, -1:], -1)], 1)
    came = bpref.generate(network, params, PROMPT[:, :size], steps=STEPS, temperature=0)
    assert came.dtype == jnp.asarray(PROMPT).dtype
    np.testing.assert_array_equal(came, tokens[:, size:])


def kept(z, temperature, top_k, top_p):
    """The probabilities of one row, token by token."""
    p = np.exp((z - z.max()) / temperature)
    p /= p.sum()
    order = sorted(range(len(z)), key=lambda v: -p[v])[:top_k]
    share = sum(p[v] for v in order)
    chosen, total = [], 0.0
    for v in order:
        if top_p is None or total < top_p:
            chosen.append(v)
        total += p[v] / share
    return np.array([p[v] if v in chosen else 0 for v in range(len(z))]) / sum(p[v] for v in chosen)


@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, V])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_probabilities(temperature, top_k, top_p):
    z = np.random.default_rng(SEED).normal(size=(5, V)) * 2
    with jax.enable_x64(True):
        values, tokens = module.candidates(jnp.asarray(z), temperature, top_k, top_p)
        p = np.zeros_like(z)
        np.put_along_axis(p, np.asarray(tokens), np.asarray(jax.nn.softmax(values)), -1)
    np.testing.assert_allclose(p, [kept(row, temperature, top_k, top_p) for row in z], rtol=1e-12, atol=1e-15)


def test_draws_have_these_probabilities():
    """20,000 first tokens after one prompt, beside the probabilities of the whole network's last logits."""
    network, N = gpt(), 20000
    params = drawn(network)
    prompts = np.repeat(PROMPT[:1], N, 0)
    came = bpref.generate(network, params, prompts, steps=1, key=jax.random.key(SEED), temperature=1.5, top_k=5)
    share = np.bincount(np.asarray(came)[:, 0], minlength=V) / N
    z = np.asarray(network.forward(params, PROMPT[:1])[0])[0, -1]
    p = kept(z.astype(np.float64), 1.5, 5, None)
    assert ((share > 0) == (p > 0)).all()
    np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.25 / N))


def test_compiled_once_and_a_function_of_the_key():
    network, key, compiled = gpt(), jax.random.key(SEED), module._generated._cache_size
    params, before = drawn(network), compiled()
    first, again, hotter, other = (
        bpref.generate(network, params, PROMPT, steps=STEPS, key=k, temperature=t, top_k=5, top_p=0.9)
        for k, t in ((key, 1.0), (key, 1.0), (key, 5.0), (jax.random.key(1), 1.0))
    )
    assert compiled() == before + 1
    np.testing.assert_array_equal(first, again)
    assert (first != hotter).any()
    assert (first != other).any()


GREEDY = {"steps": 3, "temperature": 0}
REFUSED = {
    r"prompt has shape \(2, 0\), expected \(B, P\) with at least one token": (PROMPT[:, :0], GREEDY),
    r"prompt has shape \(4,\)": (PROMPT[0], GREEDY),
    r"prompt\[1, 0\] is 11, expected a token from 0 to 10": (PROMPT + 2, GREEDY),
    r"prompt\[1, 1\] is -1, expected a token from 0 to 10": (PROMPT - 1, GREEDY),
    "prompt has dtype float64, expected an integer dtype": (PROMPT * 1.0, GREEDY),
    "prompt is a list, expected an array": (PROMPT.tolist(), GREEDY),
    "a prompt of 4 tokens and 3 more are beyond the context of 5": (PROMPT, GREEDY | {"context": 5}),
    "steps is 0, expected a positive integer": (PROMPT, GREEDY | {"steps": 0}),
    "temperature is -1, expected a number of at least 0": (PROMPT, GREEDY | {"temperature": -1}),
    "top_k is 12, expected an integer from 1 to 11": (PROMPT, GREEDY | {"top_k": 12}),
    "top_k is 0, expected an integer from 1 to 11": (PROMPT, GREEDY | {"top_k": 0}),
    "top_p is 0.0, expected a positive number": (PROMPT, GREEDY | {"top_p": 0.0}),
    "top_p is 1.5, expected a number from 0 to 1": (PROMPT, GREEDY | {"top_p": 1.5}),
    "key is None, expected a PRNG key": (PROMPT, {"steps": 3}),
}


@pytest.mark.parametrize(("message", "of"), REFUSED.items(), ids=REFUSED)
def test_wrong_calls(message, of):
    network = gpt()
    prompt, options = of
    with pytest.raises((ValueError, TypeError), match=f"generate: {message}"):
        bpref.generate(network, network.init(jax.random.key(SEED), PROMPT), prompt, **options)


def test_networks_that_do_not_generate():
    embed, head = bpref.embedding(V, D), bpref.linear(V)
    reading = bpref.reading(bpref.gru(D), lambda x, lengths: bpref.Steps(x, None, lengths), "lengths")
    for network, message in (
        (bpref.serial(embed, reading), "generate: serial reads lengths beside x, expected a network of ids"),
        (bpref.serial(embed, bpref.transformer_block(2, 4, causal=False), head), "a position sees later ones"),
        (bpref.serial(embed, bpref.gru(D)), r"generate: the network gives Passed\(.*expected logits \(B, T, V\)"),
    ):
        params = {} if network.reads else network.init(jax.random.key(SEED), PROMPT)
        with pytest.raises((ValueError, TypeError), match=message):
            bpref.generate(network, params, PROMPT, **GREEDY)
