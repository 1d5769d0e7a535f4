"""What the pages call equal elsewhere is equal: at the input of each rule's program, in the library that is named."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpref.rules import RULES
from docs import arguments, elsewhere, snippets

CALLS = [(name, None, call) for name, calls in elsewhere.ELSEWHERE.items() for call in calls]
CALLS += [(name, ours, call) for name, calls in arguments.ARGUMENTS.items() for ours, call in calls.items()]
NAMES = [f"{name if ours is None else f'{name}({ours})'}, {elsewhere.library(call)}" for name, ours, call in CALLS]


@pytest.mark.parametrize(("name", "ours", "call"), CALLS, ids=NAMES)
def test_a_call_computes_what_the_rule_does(name, ours, call):
    given = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(snippets.use(RULES[name]), given)
        if ours is not None:
            exec(
                f"params = (layer := bpref.{name}({ours})).init(jax.random.key(0), x)\ny = layer.forward(params, x)[0]",
                given,
            )
        x, p = (jax.tree.map(np.asarray, given[of]) for of in ("x", "params"))
        if elsewhere.library(call) == "PyTorch":
            torch = pytest.importorskip("torch")
            x, p = jax.tree.map(lambda v: torch.tensor(v.astype(np.int64) if v.dtype.kind == "i" else v), (x, p))
            names = {"torch": torch, "F": torch.nn.functional}
        else:
            x, p = jax.tree.map(jnp.asarray, (x, p))
            names = {"jax": jax, "jnp": jnp, "optax": optax, "flax": flax}
        y = eval(call, names | {"x": x, "p": p})
        y = tuple(y) if isinstance(y, tuple) else y
    for came, expected in zip(jax.tree.leaves(y), jax.tree.leaves(given["y"]), strict=True):
        np.testing.assert_allclose(np.asarray(came), expected, rtol=1e-4, atol=1e-5)


def test_a_library_is_told_by_what_is_called():
    calls = {"F.relu(x)": "PyTorch", "jax.vmap(optax.losses.huber_loss)(*x)": "Optax", "jax.nn.relu(x)": "JAX"}
    assert {call: elsewhere.library(call) for call in calls} == calls
