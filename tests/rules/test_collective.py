"""Collective rules: on a mesh of eight devices as on one, nothing crossing but what is derived; and what is refused."""

import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

import bpref
from bpref import Layer
from bpref.rule import specs
from tests.conftest import SEED, needs_libtpu
from tests.simulated import on_devices

CROSSES = {
    "column, parallel": ({}, {"all-reduce": 1}),
    "row, parallel": ({"all-reduce": 1}, {"all-reduce": 1}),
    "column, sequence parallel": ({"all-gather": 1}, {"all-gather": 1, "reduce-scatter": 1}),
    "row, sequence parallel": ({"reduce-scatter": 1}, {"reduce-scatter": 1, "all-gather": 1, "all-reduce": 1}),
    "vocabulary": ({"all-reduce": 2}, {"all-reduce": 2}),
    "ring, all": ({"collective-permute": 2 * 3}, {"collective-permute": 2 * 3 + 2 * 3 + 2 * 4}),
    "ring, causal": ({"collective-permute": 2 * 3}, {"collective-permute": 2 * 3 + 2 * 3 + 2 * 4}),
    "expert_dispatch": ({"all-to-all": 1}, {"all-to-all": 2}),
    "expert_combine": ({"all-to-all": 1}, {"all-to-all": 2}),
    "pipeline": ({"collective-permute": 6, "all-reduce": 1}, {"collective-permute": 6 + 6, "all-reduce": 1}),
}
"""What has to cross in a forward, and in a forward and its backward. Of the row's last the all-reduce is that of db."""


@pytest.fixture(scope="module")
def on_eight_devices():
    """For each comparison the errors of each way to take the gradient, and the collectives; in one process for all."""
    return json.loads(on_devices(8, "-m", "tests.rules.on_eight_devices"))


@pytest.mark.parametrize("name", CROSSES)
def test_eight_devices_give_the_gradient_of_one_and_only_what_has_to_crosses(on_eight_devices, name):
    errors, forward, both = on_eight_devices[name]
    assert set(errors) == {"inside, True", "inside, False", "outside"}
    assert max(errors.values()) < 1e-12
    assert (forward, both) == CROSSES[name]


def test_every_comparison_is_judged(on_eight_devices):
    assert set(on_eight_devices) == {*CROSSES, "README"}


def test_the_readmes_network_is_that_of_one_device_with_one_sum(on_eight_devices):
    error, crosses = on_eight_devices["README"]
    assert error < 1e-12
    assert crosses == {"all-reduce": 1}


@needs_libtpu
def test_keys_and_values_go_round_the_chips_of_a_tpu_as_often_as_they_have_to():
    chips = np.array(bpref.devices_of("tpu-v5e:2x2"))
    mesh = Mesh(chips, ("model",), axis_types=(AxisType.Auto,))
    split = PartitionSpec(None, "model")
    sweep = jax.shard_map(
        partial(bpref.backpropagate, bpref.ring_attention("model", causal=True)),
        mesh=mesh,
        in_specs=((), split, split),
        out_specs=(split, (), split),
    )
    lies = NamedSharding(mesh, split)
    q, k, v = (jax.ShapeDtypeStruct((1, 512, n, 64), jnp.bfloat16, sharding=lies) for n in (2, 1, 1))
    seen = bpref.compile_for("tpu-v5e:2x2", sweep, (), specs(bpref.Heads, q, k, v), q)
    assert seen.collectives == CROSSES["ring, causal"][1]


def column(total: Callable[[Array], Array]) -> Layer:
    """Each device's rows of a product, the same x for all: dx is their sum."""

    def forward(W, x):
        return x @ W.T, x

    def backward(W, x, dy):
        return dy.T @ x, total(dy @ W)

    layer = Layer(lambda key, x: jax.random.normal(key, (3, x.shape[-1]), x.dtype), forward, backward, "column")
    return bpref.over_devices(layer, "model", 2, params=0, x=None, cache=None, y=0)


def checked(layer: Layer) -> bpref.Report:
    x = np.random.default_rng(SEED).normal(size=(5, 4)).astype(np.float32)
    return bpref.check(layer, layer.init(jax.random.key(0), x), x, key=SEED)


def test_the_checker_finds_a_wrong_sum_over_devices():
    assert checked(column(partial(lax.psum, axis_name="model"))).ok
    (finding,) = checked(column(partial(lax.pmean, axis_name="model"))).findings
    assert (finding.where, finding.kind) == ("x", "factor")
    alike = "column: what is to be alike is each device's own; expected the same on all, as a sum over 'model' gives"
    with pytest.raises(ValueError, match=alike):
        checked(column(lambda own: own))


X = jnp.ones((2, 3, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bpref.column_parallel_linear(4, ""), "column_parallel_linear: axis is '', expected the name"),
        (lambda: bpref.row_parallel_linear(4, 0), "row_parallel_linear: axis is 0, expected a positive integer"),
        (
            lambda: bpref.row_parallel_linear(4, 4),
            r"row_parallel_linear: x has shape \(2, 3, 5\), expected 4 blocks along its first axis, one of each device",
        ),
        (
            lambda: bpref.row_parallel_linear(4, 2, sequence_parallel=True),
            "row_parallel_linear: x has 3 positions T, expected a multiple of the 2 devices",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        bpref.backpropagate(layer := make(), layer.init(jax.random.key(0), X), X)


def test_inside_of_shard_map_the_types_are_asked():
    """What is to be alike and may not be; and blocks on one device where there are devices."""
    mesh = AbstractMesh((2,), ("model",))
    split = PartitionSpec("model")

    def traced(layer, of_x):
        def run(x):
            return layer.forward(layer.init(jax.random.key(0), x), x)[0]

        jax.eval_shape(jax.shard_map(run, mesh=mesh, in_specs=of_x, out_specs=split), X)

    traced(bpref.column_parallel_linear(4, "model"), PartitionSpec())
    with pytest.raises(ValueError, match="x varies along 'model' by its type, expected the same on all devices of it"):
        traced(bpref.column_parallel_linear(4, "model"), split)
    with pytest.raises(TypeError, match="2 devices on one, inside of shard_map; expected the name of an axis"):
        traced(bpref.column_parallel_linear(4, 2), PartitionSpec())
