"""vae and unet: what they are composed of, written out, its gradient autodiff's, and images that come of noise."""

import doctest
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.models.unet import cosine_shares, noised, one_before, sinusoids
from bpref.rules import RULES
from tests.rules.sweeping import by_oracle, compiled

IMAGES = np.random.default_rng(0).uniform(size=(3, 4, 4, 1))


def dense(p, x):
    return x @ p.W.T + p.b


def plain_autoencoder(params, key, images):
    t = images.reshape(len(images), -1)
    e = params["encoder"]
    mu, log_var = jnp.split(dense(e[3], jnp.tanh(dense(e[1], t))), 2, 1)
    z = RULES["reparameterization"].reference(params["draw"]["z"]._replace(key=key), (mu, log_var))
    d = params["decoder"]["z"]
    logits = dense(d[2], jnp.tanh(dense(d[0], z)))
    kl = jnp.exp(log_var) + mu**2 - 1 - log_var
    return (optax.sigmoid_binary_cross_entropy(logits, t).sum() + kl.sum() / 2) / len(images)


def plain_diffusion(params, key, images, steps=5):
    of_s, of_e = jax.random.split(key)
    s = jax.random.randint(of_s, (3,), 1, steps + 1, jnp.int32)
    e = jax.random.normal(of_e, images.shape, jnp.float32).astype(images.dtype)
    a = jnp.asarray(cosine_shares(steps))[s][:, None, None, None]
    x = a**0.5 * (2 * images - 1) + (1 - a) ** 0.5 * e
    p = params["unet"]["given"]
    time = jax.nn.silu(dense(p["start"]["time"][0], sinusoids(s, 8, x.dtype)))
    x = convolved(p["start"]["x"], x)
    p, ends = p["levels"], p
    across = block(p["before"], x, time)
    below = block(p["both"]["below"]["level"], convolved(p["both"]["below"]["down"]["x"], across, 2), time)
    up = p["both"]["below"]["up"]["x"]
    below = RULES["transposed_convolution"].reference(up, below, 4, (2, 2), 2, padding="valid")
    joined = jnp.concatenate([across, below], 3)
    x = block(p["after"], joined, time, lambda q, v: v @ q.W[:, 0, 0].T + q.b)
    x = convolved(ends["head"], activated(ends["norm"], x))
    return ((x - e) ** 2).sum() / 2 / len(images)


def convolved(p, x, stride=1):
    return RULES["convolution"].reference(p, x, len(p.b), (3, 3), stride)


def activated(p, x):
    return jax.nn.silu(RULES["group_norm"].reference(p, x, 4))


def block(p, x, time, shortcut=lambda q, v: v):
    first, second = p["first"], p["second"]["x"][0]["made"]
    h = convolved(first["x"]["made"][2], activated(first["x"]["made"][0], x))
    h = h + dense(first["time"]["here"], time)[:, None, None]
    return shortcut(first["x"]["kept"], x) + convolved(second[2], activated(second[0], h))


MODELS = {
    "vae": (lambda: bpref.variational_autoencoder((4, 4, 1), 5, 2), plain_autoencoder, lambda s: s["draw"]["z"]["key"]),
    "unet": (lambda: bpref.diffusion((4, 4, 1), 4, 1, 5), plain_diffusion, lambda s: s["noised"]["key"]),
}


@pytest.mark.parametrize(("make", "plain", "key_of"), MODELS.values(), ids=MODELS)
def test_it_is_the_plain_form_and_its_gradient_autodiffs(make, plain, key_of):
    model = make()
    J = bpref.objective(model.network, model.loss)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        params, state = compiled(partial(bpref.begin, J))(jax.random.key(0), (IMAGES, IMAGES))
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)
        sweep = compiled(partial(bpref.backpropagate, J))
        (value, after), (dparams, _), _ = sweep(params, bpref.With((IMAGES, IMAGES), state))
        used = jax.random.split(key_of(state[0]))[0]
        expected, (truth,) = by_oracle(lambda p: plain(p, used, IMAGES), params[0])
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        for ours, theirs in zip(jax.tree.leaves(dparams), jax.tree.leaves(truth), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-11)
    assert (jax.random.key_data(key_of(after[0])) != jax.random.key_data(key_of(state[0]))).any()
    made = model.draw(jax.tree.map(lambda p: p.astype(np.float32), params[0]), jax.random.key(1), 2)
    assert made.shape == (2, 4, 4, 1)
    assert (made >= 0).all()
    assert (made <= 1).all()


def test_noise_is_as_much_as_the_share_says_and_images_have_its_cotangent():
    shares = cosine_shares(50)
    assert shares[0] == 1
    assert shares[-1] < 1e-4
    assert (np.diff(shares) < 0).all()
    leaf, x = noised(np.array([1.0, 0.64]), 4), np.full((4000, 1, 1, 1), 1.0, np.float32)
    params = leaf.init(jax.random.key(0), x)
    y, cache = leaf.forward(params, x)
    rest = y["given"]["x"] - 0.8
    np.testing.assert_allclose(rest, 0.6 * y["noise"], atol=1e-6)
    np.testing.assert_allclose([rest.mean(), rest.std()], [0, 0.6], atol=0.03)
    dx = leaf.backward(params, cache, y)[1]
    np.testing.assert_allclose(dx, 1.6 * y["given"]["x"], rtol=1e-6)


def test_a_step_back_is_bayes_rule():
    """The product of two normal densities: of u_(s-1) given the image, and of u_s given u_(s-1)."""
    rng, a, before = np.random.default_rng(1), 0.5, 0.7
    u, e = rng.uniform(-1, 1, size=(2, 9))
    u_s, b = a**0.5 * u + (1 - a) ** 0.5 * e, 1 - a / before
    precision = 1 / (1 - before) + (1 - b) / b
    with jax.enable_x64(True):
        mean, deviation = one_before(u_s, e, a, before)
    np.testing.assert_allclose(deviation, precision**-0.5, rtol=1e-12)
    expected = (before**0.5 * u / (1 - before) + (1 - b) ** 0.5 * u_s / b) / precision
    np.testing.assert_allclose(mean, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one_before(u_s, e, a, 1.0)[0], u, atol=1e-6)


def test_the_example_of_the_autoencoder_runs():
    names = {n: getattr(bpref, n) for n in bpref.__all__} | {
        "key": jax.random.key(0),
        "images": np.ones((2, 8, 8, 1), "f"),
    }
    of = names["variational_autoencoder"]
    (example,) = doctest.DocTestFinder(recurse=False).find(of, "variational_autoencoder", globs=names)
    assert doctest.DocTestRunner().run(example) == (0, len(example.examples))


def test_wrong_shapes():
    with pytest.raises(ValueError, match="diffusion: the images' width is 6, expected a multiple of 4, for depth 2"):
        bpref.diffusion((8, 6, 1), depth=2)
    with pytest.raises(ValueError, match="unet: width is 6, expected a multiple of 4, the groups of its norms"):
        bpref.diffusion((8, 8, 1), width=6)
    with pytest.raises(ValueError, match="variational_autoencoder: latent is 0, expected a positive integer"):
        bpref.variational_autoencoder((8, 8, 1), latent=0)
