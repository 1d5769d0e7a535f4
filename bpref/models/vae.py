"""vae: a variational autoencoder, which codes an image as a few numbers, and makes images of such numbers.

With images t of P pixels from 0 to 1, H hidden features and K numbers for each image:

    h     = tanh(W_1 t + b_1)       (mu, L) = W_2 h + b_2                 (N, H), twice (N, K)      the encoder
    z     = mu + exp(L / 2) e,      e standard normal                     (N, K)      `reparameterization`
    x     = W_4 tanh(W_3 z + b_3) + b_4                                   (N, P)      the decoder: logits
    J     = 1/N sum_n (-log p(t_n | x_n) + KL(N(mu_n, exp(L_n)) || N(0, 1)))      the loss `vae`, in nats an image

An image is made of a z that is standard normal: each pixel's probability s(x). With several hidden layers each of them
is as the first.

Source: Kingma and Welling, arXiv:1312.6114, section 3 and appendix C.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bpref.checks.hyperparameters import require_sizes
from bpref.compose import fan_out, parallel, serial
from bpref.dtypes import widen
from bpref.layer import Layer
from bpref.models.rearranged import Generative, as_it_is, rearranged
from bpref.rules.activation.tanh import tanh
from bpref.rules.geometry.flatten import flatten
from bpref.rules.linear.linear import linear
from bpref.rules.loss.vae import vae
from bpref.rules.stochastic.reparameterization import reparameterization
from bpref.transforms.stateful import stateful


def variational_autoencoder(image: Sequence[int], hidden: int = 256, latent: int = 8, depth: int = 1) -> Generative:
    """The network, stateful for its draws; its loss, -1 times the evidence lower bound; and how it makes images.

    Args:
      image: H, W and C.
      hidden, latent: H and K.
      depth: the hidden layers of encoder and decoder each.

    Returns:
      The network's output is `{"z": logits, "code": (mu, log_var)}`, `(N, P)` and twice `(N, K)`; its params are
      `{"encoder", "split", "draw", "decoder"}`.

    Raises:
      ValueError: a number is not a positive integer.

    Example:
      >>> model = variational_autoencoder((8, 8, 1), latent=2)
      >>> J = objective(model.network, model.loss)
      >>> params, state = begin(J, key, (images, images))
      >>> (value, state), dparams, _ = backpropagate(J, params, With((images, images), state))
      >>> made = model.draw(params[0], key, 10)
    """
    who = "variational_autoencoder"
    P = math.prod(require_sizes(who, height=image[0], width=image[1], channels=image[2]))
    hidden, latent, depth = require_sizes(who, hidden=hidden, latent=latent, depth=depth)
    features = [layer for _ in range(depth) for layer in (linear(hidden), tanh())]
    decoder = serial(*features, linear(P))
    network = serial(
        encoder=serial(flatten(), *features, linear(2 * latent)),
        split=rearranged(
            "mu_and_log_var",
            lambda x: (x[:, :latent], x[:, latent:]),
            lambda dy: jnp.concatenate(dy, 1),
        ),
        draw=fan_out(z=reparameterization(), code=as_it_is()),
        decoder=parallel(z=decoder, code=as_it_is()),
    )

    def draw(params, key, count):
        z = jax.random.normal(key, (count, latent))
        return jax.nn.sigmoid(decoder.forward(params["decoder"]["z"], z)[0]).reshape(count, *image)

    loss = _loss()

    def nats(y, images):
        x = jax.tree.map(widen, (y, images))
        return loss.forward(loss.init(jax.random.key(0), x), x)[0]

    untrained = _independent_pixels, "each pixel for itself"
    return Generative(stateful(network), loss, draw, "nats an image", nats, untrained)


def _independent_pixels(learned: np.ndarray, others: np.ndarray) -> float:
    """Nats an image, each pixel's probability being its mean."""
    p = np.clip(learned.mean(0), 1e-3, 1 - 1e-3)
    return float(-(others * np.log(p) + (1 - others) * np.log(1 - p)).mean(0).sum())


def _loss() -> Layer:
    beside = rearranged(
        "beside_the_code",
        lambda x: (x[0]["z"], x[1], *x[0]["code"]),
        lambda dy: ({"z": dy[0], "code": (dy[2], dy[3])}, dy[1]),
    )
    return serial(parallel(as_it_is(), flatten()), beside, vae())
