"""Which models are measured, in which sizes, and what each is compared with."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from benchmarks import library_models, plain_generative, plain_models
from benchmarks.library_models import Jitted
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig
from bpref.models.mixture import MixtureConfig, mixture_objective
from bpref.models.rearranged import Generative
from bpref.models.text import text_model

RNG = np.random.default_rng(0)


class Work(NamedTuple):
    """A model and all that it is compared with.

    Attributes:
      objective, params, x: what is trained, and on what.
      forms: `(params, x) -> J` on the same params, by name: autodiff of each is a rival.
      jitted: other libraries' steps in JAX.
      steps: steps that are called as they are.
      products: multiplications that a step needs at least, where they are counted.
    """

    objective: bpref.Layer
    params: Any
    x: Any
    forms: Mapping[str, Callable[[Any, Any], Any]]
    jitted: Mapping[str, Callable[[], Jitted]] = {}
    steps: Mapping[str, Callable[[], Callable[[], Any]]] = {}
    products: float | None = None


def mlp(depth: int = 8, width: int = 512, examples: int = 256) -> Work:
    widths = [width] * (depth + 1)
    hidden = [layer for n in widths[1:-1] for layer in (bpref.linear(n), bpref.tanh())]
    J = bpref.objective(bpref.serial(*hidden, bpref.linear(width)), bpref.softmax_cross_entropy())
    x = RNG.normal(size=(examples, width)).astype(np.float32), RNG.integers(width, size=examples).astype(np.int32)

    def plain(params, x):
        A, labels = x
        for p in params[0][:-1:2]:
            A = jnp.tanh(A @ p.W.T + p.b)
        last = params[0][-1]
        return optax.softmax_cross_entropy_with_integer_labels(A @ last.W.T + last.b, labels).mean()

    return Work(
        J,
        J.init(jax.random.key(0), x),
        x,
        {"plain form": plain},
        {"Flax NNX": partial(library_models.nnx_mlp, widths, x), "Equinox": partial(library_models.eqx_mlp, widths, x)},
        {
            "PyTorch eager": partial(library_models.torch_mlp, widths, x),
            "PyTorch compiled": partial(library_models.torch_mlp, widths, x, compiles=True),
        },
        products=examples * width**2 * (3 * depth - 1),
    )


def tokens(vocabulary: int, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and those that follow."""
    text = RNG.integers(vocabulary, size=(B, T + 1)).astype(np.int32)
    return text[:, :-1], text[:, 1:]


def gpt_config(vocabulary: int = 8192, width: int = 256, depth: int = 8, T: int = 256) -> GptConfig:
    return GptConfig(vocabulary, width, depth, width // 64 or 1, 8 * width // 3 // 8 * 8, T)


def gpt(config: GptConfig | None = None, B: int = 4) -> Work:
    c = config or gpt_config()
    x = tokens(c.vocabulary, B, c.context)
    J = gpt_objective(c)
    params = J.init(jax.random.key(0), x)
    forms = {
        "plain form": plain_models.gpt(c),
        "plain form, jax.nn.dot_product_attention": plain_models.gpt(c, plain_models.of_jax),
    }
    return Work(
        J,
        params,
        x,
        forms,
        {"Flax NNX": partial(library_models.nnx_gpt, c, x), "Equinox": partial(library_models.eqx_gpt, c, x)},
        {
            "PyTorch eager": partial(library_models.torch_gpt, c, params, x),
            "PyTorch compiled": partial(library_models.torch_gpt, c, params, x, compiles=True),
        },
        products=of_gpt(c, B),
    )


def of_gpt(c: GptConfig, B: int) -> float:
    """Three times those of the forward; half of the T x T logits are not seen."""
    of_block = 4 * c.width**2 + 3 * c.width * c.hidden + c.context * c.width
    return 3 * B * c.context * (c.depth * of_block + c.vocabulary * c.width)


def mixture(B: int = 4, T: int = 128, width: int = 128) -> Work:
    c = MixtureConfig(vocabulary=512, width=width, depth=2, heads=4, hidden=2 * width, experts=8, window=None)
    x, J = tokens(c.vocabulary, B, T), mixture_objective(c)
    return Work(J, J.init(jax.random.key(0), x), x, {"every expert on every token": plain_models.mixture(c)})


def text(name: str, block: Callable[[Any, Any], Any], B: int = 8, T: int = 128, width: int = 128) -> Work:
    x, J = tokens(256, B, T), text_model(name, 256, T, width, depth=2, heads=4).objective
    return Work(J, J.init(jax.random.key(0), x), x, {"plain form": plain_models.of_blocks(block)})


def images(network: bpref.Layer, logits: Callable[[Any, Any], Any], shape: tuple[int, ...], classes: int = 10) -> Work:
    """A network of images; one with state has it beside x."""
    J = bpref.objective(network, bpref.softmax_cross_entropy())
    data = RNG.normal(size=shape).astype(np.float32), RNG.integers(classes, size=shape[0]).astype(np.int32)
    params, state = bpref.begin(J, jax.random.key(0), data)
    has_state = bool(jax.tree.leaves(state))

    def plain(params, x):
        inputs, labels = x.x if has_state else x
        return optax.softmax_cross_entropy_with_integer_labels(logits(params[0], inputs), labels).mean()

    return Work(J, params, bpref.With(data, state) if has_state else data, {"plain form": plain})


def makes_images(model: Generative, plain: Callable[[Any, Any], Any], shape: tuple[int, ...]) -> Work:
    """A model that makes images."""
    J = bpref.objective(model.network, model.loss)
    data = (RNG.uniform(size=shape).astype(np.float32),) * 2
    params, state = bpref.begin(J, jax.random.key(0), data)
    return Work(J, params, bpref.With(data, state), {"plain form": plain})


def vae(image: tuple[int, ...] = (28, 28, 1), hidden: int = 512, latent: int = 16, N: int = 128) -> Work:
    model = bpref.variational_autoencoder(image, hidden, latent, 2)
    return makes_images(model, plain_generative.vae, (N, *image))


def unet(image: tuple[int, ...] = (16, 16, 1), width: int = 16, N: int = 16) -> Work:
    return makes_images(bpref.diffusion(image, width, 2), plain_generative.diffusion, (N, *image))


WORK: dict[str, Callable[[], Work]] = {
    "mlp": mlp,
    "lenet": lambda: images(bpref.lenet(), plain_models.lenet, (64, 28, 28, 1)),
    "resnet": lambda: images(
        bpref.resnet((2, 2, 2), 10, 16, small=True), partial(plain_models.resnet, small=True), (32, 16, 16, 3)
    ),
    "vit": lambda: images(
        bpref.vit(64, 4, 10, 128, 4, 4), partial(plain_models.vit, heads=4, patch=4), (16, 32, 32, 3)
    ),
    "vae": vae,
    "unet": unet,
    "lstm": lambda: text("lstm", plain_models.lstm_block),
    "mamba": lambda: text("mamba", plain_models.mamba),
    "mixture": mixture,
    "gpt": gpt,
}


DEEP = {"mlp of 64 layers": lambda: mlp(64, 128, 128), "gpt of 24 blocks, unrolled": lambda: unrolled(24)}


def unrolled(depth: int) -> Work:
    """A GPT whose blocks are no scan."""
    c = gpt_config(512, 64, depth, 64)
    x = tokens(c.vocabulary, 2, c.context)
    block = bpref.transformer_block(c.heads, c.hidden, eps=c.eps)
    body = bpref.serial(
        embed=bpref.embedding(c.vocabulary, c.width), blocks=bpref.serial(*[block] * depth), norm=bpref.rms_norm(c.eps)
    )
    J = bpref.objective(body=body, head=bpref.fused_linear_cross_entropy(c.vocabulary))

    def plain(params, x):
        ids, labels = x
        body = params["body"]
        h = body["embed"].W[ids]
        for p in body["blocks"]:
            h = plain_models.gated(p.mlp, plain_models.attended(c, p.attention, h, plain_models.all_logits), c.eps)
        h = plain_models.rms_norm(body["norm"].scale, h, c.eps)
        return plain_models.cross_entropy(h, params["head"].W, labels)

    return Work(J, J.init(jax.random.key(0), x), x, {"plain form": plain})
