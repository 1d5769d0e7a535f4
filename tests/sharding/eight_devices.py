"""What is true on eight devices, as JSON: a program, since XLA counts devices when it starts."""

import json
from functools import cache

import jax
import jax.numpy as jnp

import bpref
from bpref.compose import objective
from bpref.layer import backpropagate
from bpref.models.gpt import GptConfig, gpt_objective
from bpref.models.mixture import MixtureConfig, mixture_objective
from bpref.naming import flat_names
from bpref.train.network import fully_connected

KEY = jax.random.key(0)


def ids(V, *shape):
    text = jax.random.randint(KEY, shape, 0, V)
    return text, jnp.roll(text, -1, 1)


MODELS = {
    "gpt": (gpt_objective(GptConfig(16, 16, 2, 2, 16, 8, tied=True), remat=True), ids(16, 8, 8)),
    "mixture": (mixture_objective(MixtureConfig(16, 8, 1, 2, 8, experts=4)), ids(16, 8, 4)),
    "mlp": (
        objective(fully_connected((16, 8), "tanh", 4), bpref.softmax_cross_entropy()),
        (jax.random.normal(KEY, (16, 8)), jnp.arange(16) % 4),
    ),
}

LAID_OUT = (
    "gpt data=8 fully-sharded",
    "gpt data=4,model=2 fully-sharded",
    "gpt data=4,sequence=2 replicated",
    "mixture data=2,expert=4 tensor",
    "mlp data=8 replicated",
    "mlp data=8 fully-sharded",
    "mlp data=2,model=4 tensor",
)


def in_float64(tree):
    return jax.tree.map(lambda v: v.astype(jnp.float64) if jnp.issubdtype(v.dtype, jnp.floating) else v, tree)


@cache
def on_one_device(model):
    J, x = MODELS[model]
    x = in_float64(x)
    params = in_float64(J.init(KEY, x))
    return params, x, jax.jit(lambda params, x: backpropagate(J, params, x)[:2])(params, x)


def apart(came, expected):
    errors = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), *jax.device_get((came, expected)))
    return max(jax.tree.leaves(errors))


def beside_one_device(case):
    """How far J and the gradient are from those on one device, and which cotangents lie otherwise than their params."""
    model, mesh, name = case.split()
    params, x, expected = on_one_device(model)
    J = MODELS[model][0]
    layout = bpref.layout_of(name, bpref.mesh_of(mesh), J, x)
    batch = jax.tree.map(lambda v: jax.device_put(v, layout.of_batch(v)), x)
    sweep = jax.jit(lambda params, x: backpropagate(bpref.laid_out(J, layout), params, x)[:2])
    came = sweep(jax.device_put(params, layout.shardings), batch)
    lie = flat_names(jax.tree.map(lambda d, s: d.sharding.is_equivalent_to(s, d.ndim), came[1], layout.shardings))
    return {"apart": apart(came, expected), "elsewhere": [array for array, as_param in lie.items() if not as_param]}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({case: beside_one_device(case) for case in LAID_OUT}))
