"""Networks of every combinator, and what each of their examples has for a gradient, by autodiff of it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig
from bpref.verify import oracle
from tests.conftest import SEED
from tests.rules.sweeping import in_one_program

RNG = np.random.default_rng(SEED)
N, T, V, D = 3, 4, 5, 4


def close(got, expected, rtol=1e-10):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1.0, float(np.abs(b).max(initial=0))))


def squares(gradients):
    return sum(np.sum(np.abs(v) ** 2, tuple(range(1, v.ndim))) for v in jax.tree.leaves(gradients))


def images():
    block = bpref.residual(bpref.convolution(3, (3, 3), padding="same"), bpref.group_norm(1), bpref.relu())
    network = bpref.serial(
        stem=bpref.convolution(3, (3, 3), padding="same"),
        blocks=bpref.scan(bpref.remat(block), 2),
        pool=bpref.global_pool(),
        head=bpref.linear(2),
    )
    J = bpref.objective(network=network, loss=bpref.softmax_cross_entropy())
    return J, (RNG.normal(size=(N, 4, 4, 2)), np.arange(N) % 2)


def branches():
    sides = bpref.fan_out(bpref.serial(bpref.linear(3), bpref.tanh()), bpref.linear(3, bias=False))
    network = bpref.serial(sides, bpref.parallel(bpref.linear(3), bpref.layer_norm()), bpref.fan_in("sum"))
    return bpref.objective(network, bpref.square("batch_mean")), (RNG.normal(size=(N, D)), RNG.normal(size=(N, 3)))


def gpt(head, loss=bpref.sequence_cross_entropy):
    block = bpref.serial(
        attention=bpref.residual(bpref.rms_norm(), bpref.multi_head_attention(2, causal=True)),
        mlp=bpref.residual(norm=bpref.rms_norm(), up=bpref.linear(6), act=bpref.gelu(), down=bpref.linear(D)),
    )
    network = bpref.serial(embed=bpref.embedding(V, D), blocks=bpref.scan(bpref.remat(block), 2), head=head)
    tokens = RNG.integers(V, size=(N, T))
    return bpref.objective(network=network, loss=loss()), (tokens, (np.roll(tokens, -1, 1), np.ones((N, T), bool)))


def fused(tied=False):
    """The model's own objective, whose loss has the head's W."""
    config = GptConfig(V, 8, 2, 2, 6, context=T, tied=tied, rope=None)
    J = gpt_objective(config, remat=True)
    tokens = RNG.integers(V, size=(N, T))
    return J, (tokens, np.roll(tokens, -1, 1))


def tied():
    J, x = gpt(bpref.linear(V, bias=False))
    return bpref.shared(J, ("network.embed.W", "network.head.W")), x


def universal():
    J, x = gpt(bpref.linear(V))
    return bpref.shared(J, "network.blocks"), x


def reversed_again():
    f = bpref.serial(bpref.layer_norm(), bpref.linear(D))
    network = bpref.serial(
        bpref.fan_out(bpref.identity(), bpref.linear(D)), bpref.reversible(f, f, 2), bpref.fan_in("sum")
    )
    return bpref.objective(network, bpref.square("batch_mean")), (RNG.normal(size=(N, D)), RNG.normal(size=(N, D)))


COMPOSITIONS = {
    "a convnet": images,
    "branches": branches,
    "a scanned GPT": lambda: gpt(bpref.linear(V)),
    "a GPT with its loss": fused,
    "a tied GPT with its loss": lambda: fused(tied=True),
    "tied": tied,
    "one block for all": universal,
    "reversible": reversed_again,
}
EVERY_COMPOSITION = pytest.mark.parametrize("made", COMPOSITIONS.values(), ids=COMPOSITIONS)


def gradients_of(made):
    """A composition, its x and params, its gradient, and by autodiff of each example alone its share in that."""
    J, x = made()
    params = J.init(jax.random.key(SEED), x)

    def each(params, x):
        def alone(i):
            own = jax.tree.map(lambda v: v[i][None], x)
            return oracle.with_cotangents(lambda p: J.forward(p, own)[0] / N, params)[1](jnp.ones(()))[0]

        return jax.vmap(alone)(jnp.arange(N)), bpref.backpropagate(J, params, x)[1]

    return J, x, params, *jax.device_get(in_one_program(each)(params, jax.tree.map(jnp.asarray, x)))


def examples_first(got, expected):
    """The axis of the examples before that of the turns, of which there are not as many."""
    return got if got.shape == expected.shape else np.moveaxis(got, 1, 0)
