"""What is true on eight devices, as JSON: a program, since XLA counts devices when it starts."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from bpref.compose import objective
from bpref.devices.program_text import traffic
from bpref.layer import backpropagate
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig
from bpref.models.mixture import MixtureConfig, mixture_objective
from bpref.naming import flat_names
from bpref.sharding.mesh import mesh_of
from bpref.train import loop
from bpref.train.divided import Division
from bpref.train.keeping.checkpoint import Checkpoints
from bpref.train.loop import Visit, begun
from bpref.train.network import fully_connected
from bpref.train.start import start

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)
TABLE = DRAW.normal(size=(32, 8)), np.arange(32) % 8


def ids(V, *shape):
    text = jax.random.randint(KEY, shape, 0, V)
    return text, jnp.roll(text, -1, 1)


MODELS = {
    "gpt": (gpt_objective(GptConfig(16, 16, 2, 2, 16, 8, tied=True), remat=True), ids(16, 8, 8)),
    "mixture": (mixture_objective(MixtureConfig(16, 8, 1, 2, 8, experts=4)), ids(16, 8, 4)),
    "mlp": (
        objective(fully_connected((16, 8), "tanh", 8), bpref.softmax_cross_entropy()),
        (jax.random.normal(KEY, (16, 8)), jnp.arange(16) % 8),
    ),
}

LAID_OUT = (
    "gpt data=8 fully-sharded",
    "gpt data=4,model=2 fully-sharded",
    "gpt data=4,sequence=2 replicated",
    "mixture data=2,expert=4 tensor",
    "mlp data=8 replicated",
    "mlp data=2,model=4 tensor",
)


def in_float64(tree):
    return jax.tree.map(lambda v: v.astype(jnp.float64) if jnp.issubdtype(v.dtype, jnp.floating) else v, tree)


@cache
def on_one_device(model):
    J, x = MODELS[model]
    x = in_float64(x)
    params = in_float64(jax.jit(J.init)(KEY, x))
    compiled = jax.jit(lambda params, x: backpropagate(J, params, x)[:2]).lower(params, x).compile()
    return params, x, compiled(params, x), bytes_of(compiled)


def bytes_of(compiled):
    """Of parameters, the batch and gradients, on one device."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes


def apart(came, expected):
    errors = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), *jax.device_get((came, expected)))
    return max(jax.tree.leaves(errors))


def beside_one_device(case):
    """How far J and the gradient are from those on one device, and which cotangents lie otherwise than their params."""
    model, mesh, name = case.split()
    params, x, expected, whole = on_one_device(model)
    J = MODELS[model][0]
    layout = bpref.layout_of(name, bpref.mesh_of(mesh), J, x)
    batch = jax.tree.map(lambda v: jax.device_put(v, layout.of_batch(v)), x)
    sweep = jax.jit(lambda params, x: backpropagate(bpref.laid_out(J, layout), params, x)[:2])
    placed = jax.device_put(params, layout.shardings)
    compiled = sweep.lower(placed, batch).compile()
    came = compiled(placed, batch)
    lie = flat_names(jax.tree.map(lambda d, s: d.sharding.is_equivalent_to(s, d.ndim), came[1], layout.shardings))
    return {
        "apart": apart(came, expected),
        "elsewhere": [array for array, as_param in lie.items() if not as_param],
        "share": bytes_of(compiled) / whole,
        "sent": traffic(compiled.as_text()).sent,
        "bytes": {array: v.nbytes for array, v in flat_names(params).items()},
    }


MESHES = {"8": "data=8", "4": "data=4"}


def begun_on(devices, data=TABLE, **options):
    mesh = devices and mesh_of(MESHES[devices], jax.devices()[: 4 if devices == "4" else 8])
    division = Division(mesh, "fully-sharded") if devices else None
    network = fully_connected((16, 8), "tanh", 8)
    J = objective(body=network, head=bpref.softmax_cross_entropy())
    return start(J, optax.adam(0.01), data, batch_size=8, division=division, **options)


def trained(begin, since=None, visits=(), test=TABLE):
    """The parameters, and J of the data as it is looked at, batch by batch."""
    fitted = loop.run(begin, test, epochs=2, since=since, visits=visits)
    return fitted.params, np.float32(fitted.history[-1].test_loss)


def training(directory):
    """Runs of 8 steps over all devices, one that goes on from the checkpoint of step 5 over as many or others."""
    begin, checkpoints = begun_on("8"), Checkpoints(Path(directory))
    whole = trained(begin, visits=[Visit(checkpoints.save, 5)])
    checkpoints.wait()
    files = [path.name for path in (Path(directory) / "5").glob("*params.body.0.W/*")]

    def resumed(devices):
        begin = begun_on(devices)
        return apart(trained(begin, Checkpoints(Path(directory)).last(begun(begin), print)), whole)

    def on_disk():
        """Of a file, in windows of two steps."""
        np.save(Path(directory) / "X.npy", TABLE[0])
        mapped = np.load(Path(directory) / "X.npy", mmap_mode="r"), TABLE[1]
        begin = begun_on("8", mapped)._replace(window=2)
        return apart(trained(begin, test=mapped), whole)

    arrays = jax.tree.leaves(begin.state.updated)
    return {
        "on disk": on_disk(),
        "one device": apart(trained(begun_on(None)), whole),
        "update in backward": apart(trained(begun_on("8", update_in_backward=True)), whole),
        "resumed": {devices: resumed(devices) for devices in MESHES},
        "parts of W": sum(not name.startswith(".") for name in files),
        "share": sum(v.addressable_shards[0].data.nbytes for v in arrays) / sum(v.nbytes for v in arrays),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    laid_out = {case: beside_one_device(case) for case in LAID_OUT}
    jax.config.update("jax_enable_x64", False)
    with TemporaryDirectory() as directory:
        print(json.dumps(laid_out | {"training": training(directory)}))
