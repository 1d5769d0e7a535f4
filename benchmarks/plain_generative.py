"""Models that make images, written out as a user of JAX would write them, on the params of ours, with their draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks import plain_forms
from benchmarks.plain_models import convolved
from bpref.models.unet import GROUPS, cosine_shares
from bpref.rules import RULES
from bpref.rules.stochastic.reparameterization import ReparameterizationParams


def vae(params: Any, x: Any) -> Array:
    """`variational_autoencoder`'s J: `x` is of the images, themselves again, and the state with the key."""
    (images, _), state = x.x, x.state
    p, (key, _) = params[0], jax.random.split(state[0]["draw"]["z"]["key"])
    t = images.reshape(images.shape[0], -1)
    mu, log_var = jnp.split(_perceptron(p["encoder"], t), 2, 1)
    z = RULES["reparameterization"].reference(ReparameterizationParams(key), (mu, log_var))
    return plain_forms.vae((), (_perceptron(p["decoder"]["z"], z), t, mu, log_var))


def _perceptron(p: Any, A: Array) -> Array:
    layers = [layer for layer in p if hasattr(layer, "W")]
    for layer in layers[:-1]:
        A = jnp.tanh(A @ layer.W.T + layer.b[None])
    return A @ layers[-1].W.T + layers[-1].b[None]


def diffusion(params: Any, x: Any, steps: int = 100) -> Array:
    """`diffusion`'s J: the squared error of the noise that the net sees in images that it was added to."""
    (images, _), state = x.x, x.state
    of_s, of_e = jax.random.split(jax.random.split(state[0]["noised"]["key"])[0])
    s = jax.random.randint(of_s, images.shape[:1], 1, steps + 1, jnp.int32)
    e = jax.random.normal(of_e, images.shape, jnp.float32).astype(images.dtype)
    a = jnp.asarray(cosine_shares(steps), images.dtype)[s][:, None, None, None]
    u = jnp.sqrt(a) * (2 * images - 1) + jnp.sqrt(1 - a) * e
    p = params[0]["unet"]["given"]
    n = p["start"]["time"][0].W.shape[1] // 2
    angles = s.astype(u.dtype)[:, None] * jnp.asarray(10000.0 ** (-np.arange(n) / n), u.dtype)[None]
    time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)
    guess = unet(p, u, time)
    return 0.5 * jnp.sum((guess - e) ** 2) / len(images)


def unet(p: Any, u: Array, time: Array) -> Array:
    """Noisy images, and what s is told as, to the noise in them."""
    time = jax.nn.silu(time @ p["start"]["time"][0].W.T + p["start"]["time"][0].b[None])
    x = _level(p["levels"], convolved(p["start"]["x"], u, 1, "SAME"), time)
    return convolved(p["head"], jax.nn.silu(_normed(p["norm"], x)), 1, "SAME")


def _level(p: Any, x: Array, time: Array) -> Array:
    if "both" not in p:
        return _block(p, x, time)
    across = _block(p["before"], x, time)
    inner = p["both"]["below"]
    below = _level(inner["level"], convolved(inner["down"]["x"], across, 2, "SAME"), time)
    # out[h, w, i, j, c] is what down's pixel (h, w) gives to the pixel (i, j) of its 2 x 2.
    up = jnp.einsum("nhwd,dijc->nhiwjc", below, inner["up"]["x"].W).reshape(*across.shape)
    return _block(p["after"], jnp.concatenate([across, up + inner["up"]["x"].b[None, None, None]], -1), time)


def _block(p: Any, x: Array, time: Array) -> Array:
    first = p["first"]
    kept = convolved(first["x"]["kept"], x, 1, "SAME") if hasattr(first["x"]["kept"], "W") else x
    here = time @ first["time"]["here"].W.T + first["time"]["here"].b[None]
    made = _convolved(first["x"]["made"], x) + here[:, None, None]
    return kept + _convolved(p["second"]["x"][0]["made"], made)


def _convolved(p: Any, x: Array) -> Array:
    return convolved(p[2], jax.nn.silu(_normed(p[0], x)), 1, "SAME")


def _normed(p: Any, x: Array) -> Array:
    groups = x.reshape(*x.shape[:3], GROUPS, -1)
    xhat = (groups - groups.mean((1, 2, 4), keepdims=True)) * lax.rsqrt(groups.var((1, 2, 4), keepdims=True) + 1e-5)
    return p.scale[None, None, None] * xhat.reshape(x.shape) + p.shift[None, None, None]
