"""Pipelines with their loss on meshes of simulated devices, beside one device: prints what it finds.

XLA counts devices when it starts: `test_pipeline_objective` runs this in a process of its own.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import bpref
from bpref.devices.program_text import traffic
from bpref.layer import Layer
from tests.rules.on_eight_devices import apart, drawn

BLOCK = bpref.residual(bpref.serial(bpref.layer_norm(), bpref.linear(32), bpref.gelu(), bpref.linear(8)))
LOSS = bpref.objective(bpref.linear(5), bpref.softmax_cross_entropy())
LAYERS = 8
LIES = P("stage"), P()


def on_mesh(f: Callable[..., Any], devices: int, check_vma: bool = True) -> Any:
    """f of params and a batch, its J alike on all devices and dparams like params."""
    mesh = jax.make_mesh((devices,), ("stage",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    given, gives = (LIES, (P(), P())), (P(), LIES, (P(), P()))
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=given, out_specs=gives, check_vma=check_vma))


def sweep(J: Layer, devices: int, check_vma: bool = True) -> Any:
    return on_mesh(partial(bpref.backpropagate, J), devices, check_vma)


def forward(J: Layer, devices: int) -> Any:
    return on_mesh(lambda params, x: (J.forward(params, x)[0], params, x), devices)


def batch(M: int) -> tuple[Any, Any]:
    return drawn(0, 16 * M, 8), jnp.arange(16 * M) % 5


def compiled(program: Any, params: Any, M: int) -> Any:
    return program.lower(params, batch(M)).compile()


def crosses(program: Any) -> dict[str, int]:
    return dict(traffic(program.as_text() or "").collectives)


def temp(J: Layer, params: Any, M: int) -> int:
    return compiled(sweep(J, 4), params, M).memory_analysis().temp_size_in_bytes


def staged(schedule: str, M: int) -> Layer:
    return bpref.pipeline_objective(BLOCK, LOSS, LAYERS, "stage", M, schedule)


def found() -> dict[str, Any]:
    """By schedule and number of devices the error and what crosses; temp memory for M = 4 P and 8 P, in caches."""
    whole = bpref.objective(bpref.scan(BLOCK, LAYERS), LOSS)
    params = whole.init(jax.random.key(1), batch(1))
    of_devices = {}
    for schedule in ("1f1b", "zero-bubble"):
        for devices, M, check in ((4, 6, True), (8, 3, False)):
            expected = bpref.backpropagate(whole, params, batch(M))
            both = compiled(sweep(staged(schedule, M), devices, check), params, M)
            error = apart(both(params, batch(M)), expected)
            of_devices[f"{schedule}, {devices}"] = M, error, crosses(both)
    of_stage = jax.tree.map(lambda v: v[: LAYERS // 4], params[0])
    caches = jax.eval_shape(bpref.scan(BLOCK, LAYERS // 4).forward, of_stage, batch(1)[0])[1]
    cache = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(caches))
    gpipe = bpref.objective(bpref.pipeline(BLOCK, LAYERS, "stage", 16), LOSS)
    memory = {name: [temp(staged(name, M), params, M) for M in (16, 32)] for name in ("1f1b", "zero-bubble")}
    memory["gpipe"] = [temp(gpipe, params, 16)]
    up = crosses(compiled(forward(staged("1f1b", 6), 4), params, 6))
    return {
        "devices": of_devices,
        "forward": up,
        "memory": {name: [v / cache for v in of] for name, of in memory.items()},
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps(found()))
