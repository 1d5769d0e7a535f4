"""The bridge under `jax.shard_map`: params alike on every device, x another one on each."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

import bpref
from bpref.rule import Case, Rule
from bpref.rules import RULES
from bpref.verify.draw import axes_of, draw, sized
from bpref.verify.oracle import with_cotangents
from tests.conftest import SEED

EVERY_CASE = pytest.mark.parametrize(
    ("rule", "case"), [pytest.param(r, c, id=f"{r.name}-{c.name}") for r in RULES.values() for c in r.cases]
)
MESH = AbstractMesh((4,), ("data",))


@EVERY_CASE
def test_every_value_of_a_sweep_varies_as_it_has_to(rule: Rule, case: Case):
    """A program of types alone: JAX refuses a carry or a cotangent that varies over other devices than it says."""
    example = draw(rule, case, sized(case, dict.fromkeys(axes_of(case), 3)), SEED)
    function = bpref.as_function(example.layer)
    leaves, tree = jax.tree.flatten((example.params, example.x))
    in_params = len(jax.tree.leaves(example.params))

    def sweep(*leaves):
        own = [v if i < in_params else jax.lax.pcast(v, "data", to="varying") for i, v in enumerate(leaves)]
        y, cotangents = with_cotangents(lambda *given: function(*jax.tree.unflatten(tree, given)), *own)
        cotangents(y)
        return ()

    jax.eval_shape(jax.shard_map(sweep, mesh=MESH, in_specs=PartitionSpec(), out_specs=()), *leaves)


FOUR_DEVICES = """
import jax, jax.numpy as jnp
import bpref
from jax.sharding import PartitionSpec as P

block = bpref.residual(bpref.serial(bpref.layer_norm(), bpref.linear(8), bpref.tanh()))
network = bpref.serial(bpref.linear(8), bpref.scan(block, 3), bpref.remat(bpref.linear(3)))
objective = bpref.as_function(bpref.objective(network, bpref.square()))
batch = jax.random.normal(jax.random.key(0), (16, 5)), jax.random.normal(jax.random.key(1), (16, 3))
params = bpref.objective(network, bpref.square()).init(jax.random.key(2), batch)
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def mean(params, batch):
    return jax.lax.pmean(objective(params, batch), "data")


def shared(f):
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P(), P("data")), out_specs=P()))


expected = jax.jit(jax.grad(objective))(params, batch)
for came in (shared(jax.grad(mean))(params, batch), jax.grad(shared(mean))(params, batch)):
    apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), came, expected)
    assert max(jax.tree.leaves(apart)) < 1e-6, apart
print("the gradient of the whole batch")
"""


def test_the_gradient_of_params_is_the_sum_over_the_devices():
    """Taken inside of `shard_map` and of it as a whole; XLA's number of devices is set before JAX starts."""
    flag = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    ran = subprocess.run([sys.executable, "-c", FOUR_DEVICES], env=os.environ | flag, capture_output=True, text=True)
    assert ran.stdout == "the gradient of the whole batch\n", ran.stderr


def test_forward_mode_is_refused_by_name_of_what_it_met():
    with pytest.raises(TypeError, match="can't apply forward-mode autodiff"):
        jax.jvp(lambda x: bpref.as_function(bpref.tanh())((), x), (jnp.ones(2),), (jnp.ones(2),))
