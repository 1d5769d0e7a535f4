"""The bridge under `jax.shard_map`: params alike on every device, x another one on each."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

import bpref
from bpref.rule import Case, Rule
from bpref.rules import ON_ONE_DEVICE, RULES
from bpref.verify.oracle import with_cotangents
from bpref.verify.rules.draw import all_of_size, draw
from tests.conftest import SEED
from tests.simulated import on_devices

EVERY_CASE = pytest.mark.parametrize(
    ("rule", "case"), [pytest.param(RULES[n], c, id=f"{n}-{c.name}") for n in ON_ONE_DEVICE for c in RULES[n].cases]
)
MESH = AbstractMesh((4,), ("data",))


@EVERY_CASE
def test_every_value_of_a_sweep_varies_as_it_has_to(rule: Rule, case: Case):
    """A program of types alone: JAX refuses a carry or a cotangent that varies over other devices than it says.

    The rules with collectives are run in `test_collective`: their cases have blocks on one device.
    """
    example = draw(rule, case, all_of_size(case, 3), SEED)
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
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

def mesh(kind):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,))

def apart(came, expected):
    came, expected = jax.device_get((came, expected))
    errors = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), came, expected)
    return max(jax.tree.leaves(errors))

def drawn(i, *shape):
    return jax.random.normal(jax.random.key(i), shape)
"""

SHARD_MAP = """
block = bpref.residual(bpref.serial(bpref.layer_norm(), bpref.linear(8), bpref.tanh()))
network = bpref.serial(bpref.linear(8), bpref.scan(block, 3), bpref.remat(bpref.linear(3)))
layer = bpref.objective(network, bpref.square("batch_mean"))
batch = drawn(0, 16, 5), drawn(1, 16, 3)
params = layer.init(jax.random.key(2), batch)
objective = bpref.as_function(layer)

def mean(params, batch):
    return jax.lax.pmean(objective(params, batch), "data")

def shared(f):
    return jax.jit(jax.shard_map(f, mesh=mesh(AxisType.Auto), in_specs=(P(), P("data")), out_specs=P()))

expected = jax.jit(jax.grad(objective))(params, batch)
print(apart(shared(jax.grad(mean))(params, batch), expected), apart(jax.grad(shared(mean))(params, batch), expected))
"""

EXPLICIT_AXES = """
for layer, x, spec in (
    (bpref.serial(bpref.linear(8), bpref.tanh(), bpref.linear(3)), drawn(0, 16, 5), None),
    (bpref.convolution(4, (3,)), drawn(0, 8, 6, 3), None),
    (bpref.blockwise_attention(), bpref.Heads(*(drawn(i, 4, 16, 2, 8) for i in range(3))), P("data")),
    (bpref.transformer_block(2, 16), drawn(0, 4, 16, 8), P("data")),
):
    params = layer.init(jax.random.key(1), x)
    def gradients(params, x, spec=None):
        function = bpref.as_function(layer, spec)
        return jax.jit(jax.grad(lambda params, x: (function(params, x) ** 2).sum(), (0, 1)))(params, x)
    expected = gradients(params, x)
    with jax.set_mesh(mesh(AxisType.Explicit)) as where:
        dparams, dx = gradients(params, jax.device_put(x, NamedSharding(mesh(AxisType.Explicit), P("data"))), spec)
    assert all(d.sharding.spec[0] == "data" for d in jax.tree.leaves(dx)), dx
    print(apart((dparams, dx), expected))
"""


@pytest.mark.parametrize("program", [SHARD_MAP, EXPLICIT_AXES], ids=["shard_map", "explicit axes"])
def test_gradients_on_four_devices_are_those_of_one(program):
    """Of params that are alike on all devices, and of examples that are on one."""
    apart = [float(v) for v in on_devices(4, "-c", FOUR_DEVICES + program).split()]
    assert len(apart) in (2, 4)
    assert max(apart) < 1e-5


def test_forward_mode_is_refused_by_name_of_what_it_met():
    with pytest.raises(TypeError, match="can't apply forward-mode autodiff"):
        jax.jvp(lambda x: bpref.as_function(bpref.tanh())((), x), (jnp.ones(2),), (jnp.ones(2),))
