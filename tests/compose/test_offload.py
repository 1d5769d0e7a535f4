"""Caches in the host's memory: the same numbers, moved where there is where to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import bpref
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program


def block(width=4):
    return bpref.residual(bpref.serial(bpref.layer_norm(), bpref.linear(width), bpref.dropout(0.5)))


def network(made):
    """Inside of scan and outside, with keys among the params."""
    return bpref.objective(bpref.serial(made(block()), bpref.scan(made(block()), 3)), bpref.square("batch_mean"))


@pytest.mark.parametrize("run", [lambda f: f, in_one_program], ids=["eager", "jit"])
def test_the_gradient_is_the_same_to_the_last_bit(run):
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    plain, offloaded = network(lambda layer: layer), network(bpref.offload)
    params = in_one_program(plain.init)(jax.random.key(SEED), tuple(x))
    swept = [run(lambda p, x, f=f: bpref.backpropagate(f, p, x))(params, tuple(x)) for f in (plain, offloaded)]
    jax.tree.map(np.testing.assert_array_equal, *swept)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_program_for_an_accelerator_moves_every_array_of_the_caches_there_and_back(platform):
    x = tuple(jnp.ones((2, 5, 4)))
    counts = {}
    for name, made in (("plain", lambda layer: layer), ("offloaded", bpref.offload)):
        J = network(made)
        params = jax.eval_shape(J.init, jax.random.key(SEED), x)
        program = export.export(jax.jit(lambda p, x, J=J: bpref.backpropagate(J, p, x)[1]), platforms=[platform])
        counts[name] = program(params, x).mlir_module().count("annotate_device_placement")
        caches = jax.eval_shape(J.forward, params, x)[1][0]
    assert counts == {"plain": 0, "offloaded": 2 * len(jax.tree.leaves(caches))}


def test_without_such_memory_nothing_is_moved(monkeypatch):
    class Device:
        def addressable_memories(self):
            return ()

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    layer, x = bpref.offload(bpref.linear(3)), jnp.ones((2, 3))
    program = str(jax.make_jaxpr(lambda p: bpref.backpropagate(layer, p, x, x)[1])(layer.init(jax.random.key(0), x)))
    assert "device_put" not in program


def test_remat_that_is_kept_apart_waits_for_its_cotangent_and_is_the_same():
    x = tuple(jax.random.normal(jax.random.key(1), (2, 5, 4)))
    plain, apart = network(lambda layer: layer), network(lambda layer: bpref.remat(layer, apart=True))
    params = in_one_program(plain.init)(jax.random.key(SEED), x)
    swept = [in_one_program(lambda p, x, f=f: bpref.backpropagate(f, p, x))(params, x) for f in (plain, apart)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *swept)
    assert (
        str(jax.make_jaxpr(lambda p, x: bpref.backpropagate(apart, p, x))(params, x)).count("optimization_barrier") == 2
    )


test_bad_calls_are_refused = refusals(
    {
        "TypeError: offload: layer is an int, expected a Layer, one that is made, as by linear(64)": (
            lambda: bpref.offload(3)
        ),
        "remat: apart is 'no', expected True or False": lambda: bpref.remat(bpref.tanh(), apart="no"),
    },
)
