"""The Mamba block: what it refuses, what it keeps, and that it sees the past alone, whatever its chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.verify.numbers.measure import relative_error
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate


def init(layer, x):
    return layer.init(jax.random.key(0), x)


BAD_CALLS = {
    "mamba_block: states is 0, expected a positive integer": lambda: bpref.mamba_block(states=0),
    "mamba_block: expand is 0, expected a positive integer": lambda: bpref.mamba_block(expand=0),
    "mamba_block: rank is 0.5, expected a positive integer": lambda: bpref.mamba_block(rank=0.5),
    "mamba_block: window is 0, expected a positive integer": lambda: bpref.mamba_block(window=0),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)


@pytest.fixture
def example():
    """A block's params, seven steps of time and a cotangent, in float64."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, dy = rng.normal(size=(2, 2, 7, 4))
        params = bpref.mamba_block(states=3, rank=2).init(jax.random.key(1), jnp.asarray(x))
        yield params, x, dy


def test_the_chunk_changes_no_value(example):
    in_one, in_three = (backpropagate(bpref.mamba_block(states=3, rank=2, chunk=c), *example) for c in (64, 3))
    assert max(map(float, jax.tree.leaves(jax.tree.map(relative_error, in_three, in_one)))) < 1e-12


def test_a_step_sees_itself_and_the_past(example):
    params, x, dy = example
    layer = bpref.mamba_block(states=3, rank=2)
    later = np.concatenate((x[:, :4], x[:, 4:] + 1), 1)
    np.testing.assert_array_equal(layer.forward(params, later)[0][:, :4], layer.forward(params, x)[0][:, :4])
    early = np.concatenate((dy[:, :4], np.zeros_like(dy[:, 4:])), 1)
    _, _, dx = backpropagate(layer, params, x, early)
    assert not np.any(dx[:, 4:])
    assert np.all(dx[:, :4])


def test_nothing_of_one_size_for_each_state_and_step_is_kept():
    layer = bpref.mamba_block(states=16, expand=2, rank=8, chunk=64)
    x = jax.ShapeDtypeStruct((2, 256, 32), jnp.float32)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), x))
    cache = jax.eval_shape(lambda p, x: layer.forward(p, x)[1], params, x)
    kept = {name: v.shape for name, v in cache._asdict().items()}
    assert kept == {
        "x": (2, 256, 32),
        "rms": (2, 256, 1),
        "vz": (2, 256, 128),
        "RBC": (2, 256, 40),
        "delta": (2, 256, 64),
        "y": (2, 256, 64),
        "starts": (4, 2, 16, 64),
    }
