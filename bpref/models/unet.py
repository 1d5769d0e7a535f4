"""unet: a network that sees the noise in an image, and with which images are made of noise alone, step by step.

With images from 0 to 1, u = 2 image - 1, S steps of noise, s drawn for each image, e standard normal, and a_s the share
of u that is left after s of them (a_0 = 1, a_S nearly 0):

    u_s = sqrt(a_s) u + sqrt(1 - a_s) e                                   (N, H, W, C)
    J   = 1/N sum_n 1/2 (f(u_s, s)_n - e_n)^2                             what is trained

    u_0 = (u_s - sqrt(1 - a_s) f(u_s, s)) / sqrt(a_s), from -1 to 1       what f takes u to be, given u_s
    u_(s-1) = (sqrt(a_(s-1)) b_s u_0 + sqrt(1 - b_s) (1 - a_(s-1)) u_s) / (1 - a_s)  +  sqrt(v_s) e'
    b_s = 1 - a_s / a_(s-1),   v_s = b_s (1 - a_(s-1)) / (1 - a_s)        from s = S down to 1, u_S standard normal

f goes down and up again: blocks of two convolutions, each level of half the height and width and twice the channels,
and beside what comes up from it what went down, so that nothing small is lost. What s is every block is told, as sines
and cosines of it.

Differential: u_s is linear in u, so d image = 2 sqrt(a_s) du_s; s and e are drawn, and have none.

Sources: DDPM: arXiv:2006.11239, equations 4, 6, 7 and 14; a: arXiv:2102.09672, equation 17; the net: arXiv:1505.04597.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_size, require_sizes
from bpref.compose import fan_out, parallel, serial
from bpref.dtypes import cast, widen
from bpref.formulas.random_draws import KEY, require_key
from bpref.layer import Layer
from bpref.loops import scan
from bpref.models.rearranged import Generative, as_it_is, rearranged
from bpref.rules.activation.silu import silu
from bpref.rules.convolution.convolution import convolution
from bpref.rules.convolution.transposed_convolution import transposed_convolution
from bpref.rules.linear.linear import linear
from bpref.rules.loss.square import square
from bpref.rules.norm.group_norm import group_norm
from bpref.rules.reduction.fan_in import fan_in
from bpref.transforms.stateful import stateful

GROUPS = 4
"""Of channels, in every norm."""


def unet(width: int, depth: int, channels: int) -> Layer:
    """f: `{"x": images (N, H, W, C), "time": features (N, E)}` to as many images.

    Args:
      width: the channels of the first level, a multiple of 4; each further one has twice as many.
      depth: how often height and width are halved; both are a multiple of 2^depth.
      channels: C.

    Example:
      >>> f = bpref.unet(width=8, depth=1, channels=1)
      >>> x = {"x": jnp.ones((2, 4, 4, 1)), "time": jnp.ones((2, 8))}
      >>> f.forward(f.init(jax.random.key(0), x), x)[0].shape
      (2, 4, 4, 1)

    Raises:
      ValueError: a number is not a positive integer; images cannot be halved so often.
    """
    who = "unet"
    width, depth, channels = require_sizes(who, width=width, depth=depth, channels=channels)
    if width % GROUPS:
        raise ValueError(f"{who}: width is {width}, expected a multiple of {GROUPS}, the groups of its norms")
    return serial(
        start=parallel(x=convolution(width), time=serial(linear(4 * width), silu())),
        levels=_level(width, depth),
        end=rearranged("x_alone", lambda x: x["x"], lambda dy: {"x": dy, "time": None}),
        norm=group_norm(GROUPS),
        act=silu(),
        head=convolution(channels),
    )


def _level(features: int, depth: int) -> Layer:
    """A level, and those below it."""
    if not depth:
        return _block(features)
    down, up = convolution(2 * features, (3, 3), 2), transposed_convolution(features, (2, 2), 2, padding="valid")
    side_by_side = rearranged(
        "side_by_side",
        lambda x: {"x": {name: v["x"] for name, v in x.items()}, "time": x["across"]["time"]},
        lambda dy: {
            "across": {"x": dy["x"]["across"], "time": dy["time"]},
            "below": {"x": dy["x"]["below"], "time": None},
        },
    )
    return serial(
        before=_block(features),
        both=fan_out(
            across=as_it_is(), below=serial(down=_on(down), level=_level(2 * features, depth - 1), up=_on(up))
        ),
        joined=serial(side_by_side, _on(fan_in("concatenation"))),
        after=_block(features, convolution(features, (1, 1))),
    )


def _block(features: int, shortcut: Layer | None = None) -> Layer:
    """x (or the shortcut's) and two convolutions of it, what the time is added in between."""

    def convolved():
        return serial(group_norm(GROUPS), silu(), convolution(features))

    add = rearranged(
        "time_added",
        lambda x: {
            "x": {"kept": x["x"]["kept"], "made": x["x"]["made"] + x["time"]["here"][:, None, None]},
            "time": x["time"]["on"],
        },
        lambda dy: {
            "x": dy["x"],
            "time": {"here": cast(jnp.sum(widen(dy["x"]["made"]), (1, 2)), dy["x"]["made"].dtype), "on": dy["time"]},
        },
    )
    kept = as_it_is() if shortcut is None else shortcut
    return serial(
        first=parallel(x=fan_out(kept=kept, made=convolved()), time=fan_out(here=linear(features), on=as_it_is())),
        add=add,
        second=_on(serial(parallel(kept=as_it_is(), made=convolved()), fan_in())),
    )


def _on(layer: Layer) -> Layer:
    """The layer on x, and the time as it is."""
    return parallel(x=layer, time=as_it_is())


class NoisedParams(NamedTuple):
    key: PyTree


def noised(shares: np.ndarray, features: int) -> Layer[NoisedParams, Array, PyTree, Array]:
    """Images `(N, H, W, C)` to `{"given": {"x": u_s, "time": (N, E)}, "noise": e}`, for an s that is drawn for each.

    Args:
      shares: a_0 ... a_S.
      features: E, of the time.
    """

    def init(key, x):
        return NoisedParams(key)

    def forward(params, x):
        require_key("noised", params.key)
        of_s, of_e = jax.random.split(params.key)
        s = jax.random.randint(of_s, x.shape[:1], 1, len(shares), jnp.int32)
        e = cast(jax.random.normal(of_e, x.shape, jnp.float32), widen(x).dtype)
        a = jnp.asarray(shares, e.dtype)[s][:, None, None, None]
        u = jnp.sqrt(a) * (2 * widen(x) - 1) + jnp.sqrt(1 - a) * e
        y = {"given": {"x": u, "time": sinusoids(s, features, e.dtype)}, "noise": e}
        return jax.tree.map(lambda v: cast(v, x.dtype), y), jnp.sqrt(a)

    def backward(params, cache, dy):
        du = dy["given"]["x"]
        return NoisedParams(None), None if du is None else cast(2 * cache * widen(du), du.dtype)

    return Layer(init, forward, backward, "noised", held=KEY)


def sinusoids(s: Array, features: int, dtype: DTypeLike) -> Array:
    """Sines and cosines of s, (N, E), of wavelengths from 2 pi to 20,000 pi (arXiv:1706.03762, section 3.5)."""
    n = features // 2
    angles = s.astype(dtype)[:, None] * jnp.asarray(10000.0 ** (-np.arange(n) / n), dtype)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)


def cosine_shares(steps: int) -> np.ndarray:
    """a_0 ... a_S: the squared cosine of what is nearly 0 at first and nearly pi / 2 at last."""
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    b = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return np.concatenate([[1.0], np.cumprod(1 - b)])


def one_before(u: Array, noise: Array, a: Array, before: Array) -> tuple[Array, Array]:
    """The mean and the deviation of u_(s-1), given u_s, the noise in it, a_s and a_(s-1)."""
    b = 1 - a / before
    u_0 = jnp.clip((u - jnp.sqrt(1 - a) * noise) / jnp.sqrt(a), -1, 1)
    mean = (jnp.sqrt(before) * b * u_0 + jnp.sqrt(1 - b) * (1 - before) * u) / (1 - a)
    return mean, jnp.sqrt(b * (1 - before) / (1 - a))


def diffusion(image: Sequence[int], width: int = 16, depth: int = 1, steps: int = 100) -> Generative:
    """The network, stateful for its draws, which gives its guess of the noise and the noise; its loss; and the images.

    Args:
      image: H, W and C, the first two multiples of 2^depth.
      width, depth: as of `unet`.
      steps: S.

    Returns:
      Params are `{"noised", "unet"}`, those of `unet` under `params["unet"]["given"]`.

    Raises:
      ValueError: as of `unet`; steps is not a positive integer.

    Example:
      >>> model, images = bpref.diffusion((8, 8, 1)), jnp.ones((2, 8, 8, 1))
      >>> J = bpref.objective(model.network, model.loss)
      >>> params, state = bpref.begin(J, jax.random.key(0), (images, images))
      >>> (value, state), dparams, _ = bpref.backpropagate(J, params, bpref.With((images, images), state))
      >>> made = model.draw(params[0], jax.random.key(1), 10)
    """
    who = "diffusion"
    require_sizes(who, height=image[0], width=image[1], channels=image[2])
    f, shares = unet(width, depth, image[2]), cosine_shares(require_size(who, "steps", steps))
    for name, n in zip(("height", "width"), image[:2], strict=True):
        if n % 2**depth:
            raise ValueError(f"{who}: the images' {name} is {n}, expected a multiple of {2**depth}, for depth {depth}")
    network = serial(noised=noised(shares, 2 * width), unet=parallel(given=f, noise=as_it_is()))
    guess = rearranged(
        "noise_alone",
        lambda x: (x[0]["given"], x[0]["noise"]),
        lambda dy: ({"given": dy[0], "noise": dy[1]}, None),
    )

    def draw(params, key, count):
        def step(u, of):
            s, key = of
            a, before = jnp.asarray(shares, u.dtype)[jnp.stack([s, s - 1])]
            time = sinusoids(jnp.full(count, s), 2 * width, u.dtype)
            noise = f.forward(params["unet"]["given"], {"x": u, "time": time})[0]
            mean, deviation = one_before(u, noise, a, before)
            return mean + deviation * jax.random.normal(key, u.shape, u.dtype), ()

        first, others = jax.random.split(key)
        down = jnp.arange(steps, 0, -1), jax.random.split(others, steps)
        u, _ = scan(step, jax.random.normal(first, (count, *image)), down, steps)
        return (u + 1) / 2

    def error(y, images):
        return jnp.mean(jnp.square(widen(y["given"]) - widen(y["noise"])))

    loss, untrained = serial(guess, square("batch_mean")), (lambda learned, others: 1.0, "no guess at all")
    return Generative(
        stateful(network), loss, jax.jit(draw, static_argnums=2), "squared error of the noise", error, untrained
    )
