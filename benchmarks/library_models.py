"""gpt and an MLP as users of Flax NNX, Equinox and PyTorch have them: a step of training, and its arguments."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from benchmarks.plain_models import of_jax, turned
from bpref.models.gpt_config import GptConfig
from bpref.models.gpt_weights import save_weights

ADAM = optax.adam(1e-3)

Jitted = tuple[Callable[..., Any], tuple[Any, ...]]
"""A step to be jitted, `(model, state, x) -> (J, model, state)`, and what it is called with."""


def stepping(loss: Callable[[Any, Any], Array]) -> Callable[..., Any]:
    """The step by autodiff and optax's Adam."""

    def step(params, state, x):
        J, dparams = jax.value_and_grad(loss)(params, x)
        updates, state = ADAM.update(dparams, state, params)
        return J, optax.apply_updates(params, updates), state

    return step


class NnxBlock(nnx.Module):
    def __init__(self, c: GptConfig, rngs: nnx.Rngs):
        self.c = c
        self.norms = nnx.List([nnx.RMSNorm(c.width, epsilon=c.eps, rngs=rngs) for _ in range(2)])
        self.qkv = nnx.Linear(c.width, 3 * c.width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(c.width, c.width, use_bias=False, rngs=rngs)
        self.into = nnx.Linear(c.width, 2 * c.hidden, use_bias=False, rngs=rngs)
        self.back = nnx.Linear(c.hidden, c.width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        z = self.qkv(self.norms[0](x)).reshape(*x.shape[:-1], 3 * self.c.heads, -1)
        q, k, v = jnp.split(z, 3, -2)
        x = x + self.out(of_jax(turned(q, 1e4), turned(k, 1e4), v).reshape(x.shape))
        u, t = jnp.split(self.into(self.norms[1](x)), 2, -1)
        return x + self.back(u * jax.nn.silu(t))


class NnxGpt(nnx.Module):
    def __init__(self, c: GptConfig, rngs: nnx.Rngs):
        self.embed = nnx.Embed(c.vocabulary, c.width, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(c, rngs) for _ in range(c.depth)])
        self.norm = nnx.RMSNorm(c.width, epsilon=c.eps, rngs=rngs)
        self.head = nnx.Linear(c.width, c.vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, ids: Array) -> Array:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def nnx_step(model: nnx.Module, x: Any) -> Jitted:
    graph, params = nnx.split(model)

    def loss(params, x):
        inputs, labels = x
        logits = nnx.merge(graph, params)(inputs)  # type: ignore[operator]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return stepping(loss), (params, ADAM.init(params), x)


def nnx_gpt(c: GptConfig, x: Any) -> Jitted:
    return nnx_step(NnxGpt(c, nnx.Rngs(0)), x)


def nnx_mlp(widths: list[int], x: Any) -> Jitted:
    rngs = nnx.Rngs(0)
    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [nnx.Linear(n, m, rngs=rngs), jnp.tanh]
    return nnx_step(nnx.Sequential(*layers[:-1]), x)


class EqxBlock(eqx.Module):
    norms: list[eqx.nn.RMSNorm]
    linears: list[eqx.nn.Linear]
    heads: int

    def __init__(self, c: GptConfig, key: Array):
        sizes = (c.width, 3 * c.width), (c.width, c.width), (c.width, 2 * c.hidden), (c.hidden, c.width)
        keys = jax.random.split(key, 4)
        self.norms = [eqx.nn.RMSNorm(c.width, eps=c.eps, use_bias=False) for _ in range(2)]
        self.linears = [eqx.nn.Linear(*s, use_bias=False, key=k) for s, k in zip(sizes, keys, strict=True)]
        self.heads = c.heads

    def __call__(self, x: Array) -> Array:
        """Of one sequence, (T, d)."""
        norm1, norm2 = map(jax.vmap, self.norms)
        qkv, out, into, back = map(jax.vmap, self.linears)
        q, k, v = jnp.split(qkv(norm1(x)).reshape(1, len(x), 3 * self.heads, -1), 3, -2)
        x = x + out(of_jax(turned(q, 1e4), turned(k, 1e4), v).reshape(x.shape))
        u, t = jnp.split(into(norm2(x)), 2, -1)
        return x + back(u * jax.nn.silu(t))


class EqxGpt(eqx.Module):
    embed: eqx.nn.Embedding
    blocks: list[EqxBlock]
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, c: GptConfig, key: Array):
        keys = jax.random.split(key, c.depth + 2)
        self.embed = eqx.nn.Embedding(c.vocabulary, c.width, key=keys[0])
        self.blocks = [EqxBlock(c, k) for k in keys[2:]]
        self.norm = eqx.nn.RMSNorm(c.width, eps=c.eps, use_bias=False)
        self.head = eqx.nn.Linear(c.width, c.vocabulary, use_bias=False, key=keys[1])

    def __call__(self, ids: Array) -> Array:
        x = jax.vmap(self.embed)(ids)
        for block in self.blocks:
            x = block(x)
        return jax.vmap(lambda h: self.head(self.norm(h)))(x)


def eqx_step(model: Any, x: Any) -> Jitted:
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, x):
        inputs, labels = x
        logits = jax.vmap(eqx.combine(params, static))(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return stepping(loss), (params, ADAM.init(params), x)


def eqx_gpt(c: GptConfig, x: Any) -> Jitted:
    return eqx_step(EqxGpt(c, jax.random.key(0)), x)


def eqx_mlp(widths: list[int], x: Any) -> Jitted:
    inside, depth = widths[1], len(widths) - 2
    return eqx_step(eqx.nn.MLP(widths[0], widths[-1], inside, depth, jnp.tanh, key=jax.random.key(0)), x)


def torch_step(model: Any, logits_of: Callable[[Any], Any], x: Any) -> Callable[[], float]:
    """PyTorch's step on a CPU, which gives J."""
    import torch

    inputs, labels = (torch.from_numpy(v) for v in x)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        J = torch.nn.functional.cross_entropy(logits_of(inputs).flatten(0, -2), labels.long().flatten())
        J.backward()
        optimizer.step()
        return float(J.detach())

    return step


def torch_gpt(c: GptConfig, params: Any, x: Any, compiles: bool = False) -> Callable[[], float]:
    """transformers' Llama with our weights."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save_weights(c, params, Path(folder))
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    called = torch.compile(model) if compiles else model
    return torch_step(model, lambda ids: called(input_ids=ids.long(), use_cache=False).logits, x)


def torch_mlp(widths: list[int], x: Any, compiles: bool = False) -> Callable[[], float]:
    import torch

    layers = []
    for n, m in itertools.pairwise(widths):
        layers += [torch.nn.Linear(n, m), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    return torch_step(model, torch.compile(model) if compiles else model, x)
