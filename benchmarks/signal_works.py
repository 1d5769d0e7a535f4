"""What `bench_signals` measures, in which sizes, and the same networks written out plainly in JAX and in PyTorch."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from benchmarks import plain_models
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig

RNG = np.random.default_rng(0)


class Work(NamedTuple):
    """An objective and its data.

    Attributes:
      J, x: the objective, and x and y of the examples.
      plain: `(params, x) -> J` in plain JAX, where there is one.
      torch: `(params) -> module` of PyTorch from x to logits, where there is one.
      layered: whether that module is made of layers alone, as BackPACK needs it.
    """

    J: bpref.Layer
    x: Any
    plain: Callable[[Any, Any], Any] | None = None
    torch: Callable[[Any], Any] | None = None
    layered: bool = False


def labels(logits: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def mlp() -> Work:
    """4 layers of 256, 128 examples."""
    hidden = [layer for _ in range(3) for layer in (bpref.linear(256), bpref.tanh())]
    J = bpref.objective(bpref.serial(*hidden, bpref.linear(10)), bpref.softmax_cross_entropy())
    x = RNG.normal(size=(128, 256)).astype(np.float32), RNG.integers(10, size=128)
    return Work(J, x, lambda params, x: labels(plain_mlp(params[0][::2], x[0]), x[1]), torch_mlp, True)


def plain_mlp(layers: Any, A: Any) -> Any:
    *hidden, last = layers
    for p in hidden:
        A = jnp.tanh(A @ p.W.T + p.b)
    return A @ last.W.T + last.b


def lenet() -> Work:
    """LeNet-5, 64 images of 28 x 28."""
    J = bpref.objective(bpref.lenet(), bpref.softmax_cross_entropy())
    x = RNG.normal(size=(64, 28, 28, 1)).astype(np.float32), RNG.integers(10, size=64)
    return Work(J, x, lambda params, x: labels(plain_models.lenet(params[0], x[0]), x[1]), torch_lenet, True)


GPT = GptConfig(vocabulary=512, width=128, depth=2, heads=4, hidden=512, context=128, gated=False)


def gpt(config: GptConfig = GPT, B: int = 8) -> Work:
    """2 blocks of 128 features, 8 sequences of 128 tokens of 512, the fused loss."""
    tokens = RNG.integers(config.vocabulary, size=(B, config.context))

    def block(h, p):
        h = plain_models.attended(config, p.attention, h, plain_models.all_logits)
        n = plain_models.rms_norm(p.mlp.norm.scale, h, config.eps)
        return h + jax.nn.silu(n @ p.mlp.W_in.T) @ p.mlp.W_out.T, None

    def plain(params, x):
        body = params["body"]
        h, _ = jax.lax.scan(block, body["embed"].W[x[0]], body["blocks"])
        return labels(plain_models.rms_norm(body["norm"].scale, h, config.eps) @ params["head"].W.T, x[1])

    x = tokens, np.roll(tokens, -1, 1)
    return Work(gpt_objective(config), x, plain, lambda params: torch_gpt(config, params))


def gpt_of_leaves() -> Work:
    """The same of attention, norms and linear layers as leaves, and of logits made whole."""
    block = bpref.serial(
        attention=bpref.residual(bpref.rms_norm(), bpref.multi_head_attention(4, causal=True, rope=1e4, bias=False)),
        mlp=bpref.residual(
            bpref.rms_norm(), bpref.linear(512, bias=False), bpref.silu(), bpref.linear(128, bias=False)
        ),
    )
    parts = {"embed": bpref.embedding(512, 128), "blocks": bpref.scan(block, 2), "norm": bpref.rms_norm()}
    network = bpref.serial(**parts, head=bpref.linear(512, bias=False))
    tokens = RNG.integers(512, size=(8, 128))
    return Work(
        bpref.objective(network, bpref.sequence_cross_entropy()),
        (tokens, (np.roll(tokens, -1, 1), np.ones(tokens.shape, bool))),
    )


WORK: dict[str, Callable[[], Work]] = {"MLP": mlp, "LeNet": lenet, "GPT": gpt, "GPT of leaves": gpt_of_leaves}


def filled(module: Any, W: Any, b: Any = None) -> Any:
    """The module of PyTorch with these weights."""
    import torch

    with torch.no_grad():
        for own, v in ((module.weight, W), (getattr(module, "bias", None), b)):
            if own is not None and v is not None:
                own.copy_(torch.from_numpy(np.array(v)))
    return module


def torch_linear(W: Any, b: Any = None) -> Any:
    import torch

    return filled(torch.nn.Linear(W.shape[1], W.shape[0], bias=b is not None), W, b)


def torch_mlp(params: Any) -> Any:
    import torch

    layers = [torch_linear(*p) for p in params[0][::2]]
    between = itertools.chain.from_iterable((layer, torch.nn.Tanh()) for layer in layers)
    return torch.nn.Sequential(*list(between)[:-1])


def torch_lenet(params: Any) -> Any:
    """Of images with their channels last, as ours."""
    from torch import nn

    of = params[0]

    def convolved(p, **given):
        F, k, _, C = p.W.shape
        return filled(nn.Conv2d(C, F, k, **given), np.moveaxis(p.W, -1, 1), p.b)

    first = convolved(of["C1"][0], padding=2), nn.Tanh(), nn.AvgPool2d(2)
    second = convolved(of["C3"][0]), nn.Tanh(), nn.AvgPool2d(2), convolved(of["C5"][0]), nn.Tanh()
    return nn.Sequential(
        *first, *second, nn.Flatten(), torch_linear(*of["F6"][0]), nn.Tanh(), torch_linear(*of["head"])
    )


def torch_gpt(c: GptConfig, params: Any) -> Any:
    """Llama's decoder without a gate, of PyTorch's layers."""
    import torch
    from torch import nn
    from torch.nn import functional

    D = c.width // c.heads
    angle = np.arange(c.context)[:, None] * (c.rope or 1e4) ** (-np.arange(D // 2) / (D // 2))
    cos, sin = (torch.from_numpy(f(angle).astype(np.float32)) for f in (np.cos, np.sin))

    def turned(u):
        a, b = u.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    class Block(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.norm1, self.norm2 = (filled(nn.RMSNorm(c.width, c.eps), v.norm.scale) for v in (p.attention, p.mlp))
            self.qkv, self.o = torch_linear(p.attention.W_qkv), torch_linear(p.attention.W_o)
            self.up, self.down = torch_linear(p.mlp.W_in), torch_linear(p.mlp.W_out)

        def forward(self, x):
            z = self.qkv(self.norm1(x)).unflatten(-1, (3 * c.heads, D)).transpose(1, 2)
            q, k, v = z.split(c.heads, 1)
            o = functional.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
            x = x + self.o(o.transpose(1, 2).flatten(2))
            return x + self.down(functional.silu(self.up(self.norm2(x))))

    body = params["body"]
    blocks = [Block(jax.tree.map(lambda v, l=l: v[l], body["blocks"])) for l in range(c.depth)]
    embed = filled(nn.Embedding(c.vocabulary, c.width), body["embed"].W)
    norm = filled(nn.RMSNorm(c.width, c.eps), body["norm"].scale)
    return nn.Sequential(embed, *blocks, norm, torch_linear(params["head"].W))
