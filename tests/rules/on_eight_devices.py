"""Collective rules in `jax.shard_map` on a mesh of eight devices, beside the rules of one device: prints what it finds.

XLA counts devices when it starts: `test_collective` runs this in a process of its own.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import bpref
from bpref.devices.program_text import traffic
from bpref.layer import Layer, no_params
from bpref.verify import oracle

README = Path(__file__).parents[2] / "README.md"

FOUND: dict[str, Any] = {}


def mesh() -> Mesh:
    return jax.make_mesh((4, 2), ("model", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def drawn(i: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(i), shape)


def drawn_like(i: int, tree: Any) -> Any:
    return jax.tree.map(lambda v: drawn(i, *v.shape), tree)


def apart(came: Any, expected: Any) -> float:
    """The largest error of any array, relative to the array's largest element."""
    came, expected = jax.device_get((came, expected))
    errors = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), came, expected)
    return max(jax.tree.leaves(errors))


def compare(name: str, layer: Layer, whole: Layer, params: Any, x: Any, specs: tuple[Any, Any, Any]) -> None:
    """The layer's y, dparams and dx beside those of the whole, and the collectives of the forward and of both ways.

    By the layer's own backward inside of shard_map, with and without JAX's types, and through the bridge outside of it.
    """
    of_params, of_x, of_y = specs

    def mapped(f, given, gives, check_vma=True):
        return jax.jit(jax.shard_map(f, mesh=mesh(), in_specs=given, out_specs=gives, check_vma=check_vma))

    def J(function):
        def f(params, x):
            y = function(params, x)
            return sum(jax.tree.leaves(jax.tree.map(lambda v, d: jnp.vdot(v, d), y, dy)))

        return f

    y, cache = whole.forward(params, x)
    dy = drawn_like(9, y)
    expected = y, *whole.backward(params, cache, dy)
    errors = {}
    for check in (True, False):
        sweep = mapped(partial(bpref.backpropagate, layer), (of_params, of_x, of_y), (of_y, of_params, of_x), check)
        errors[f"inside, {check}"] = apart(sweep(params, x, dy), expected)
    function = mapped(bpref.as_function(layer), (of_params, of_x), of_y)
    errors["outside"] = apart(jax.jit(oracle.gradient(J(function)))(params, x), expected[1:])
    forward = mapped(lambda *of: layer.forward(*of)[0], (of_params, of_x), of_y)
    programs = forward.lower(params, x), sweep.lower(params, x, dy)
    FOUND[name] = errors, *(dict(traffic(p.compile().as_text() or "").collectives) for p in programs)


def with_no_params(layer: Layer) -> Layer:
    """Attention, whose params are all `None`, with `()`."""

    def forward(params, x):
        return layer.forward(bpref.AttentionParams(), x)

    def backward(params, cache, dy):
        return (), layer.backward(bpref.AttentionParams(), cache, dy)[1]

    return Layer(no_params, forward, backward, layer.name)


def linear() -> None:
    rows, columns = P("model"), P(None, "model")
    x, whole = drawn(0, 6, 8, 12), bpref.linear(16)
    params = drawn_like(1, whole.init(jax.random.key(0), x))
    for parallel in (False, True):
        kind = "sequence parallel" if parallel else "parallel"
        split, of_features = P(None, "model") if parallel else P(), P(None, None, "model")
        column = bpref.column_parallel_linear(4, "model", sequence_parallel=parallel)
        compare(f"column, {kind}", column, whole, params, x, (params._replace(W=rows, b=rows), split, of_features))
        row = bpref.row_parallel_linear(16, "model", sequence_parallel=parallel)
        compare(f"row, {kind}", row, whole, params, x, (params._replace(W=columns, b=P()), of_features, split))


def vocabulary() -> None:
    logits, target = drawn(0, 5, 6, 12), jnp.arange(30).reshape(5, 6) % 13 - 1
    own = bpref.vocabulary_parallel_cross_entropy("model", ignored=-1, z_loss=1e-2)
    whole = bpref.softmax_cross_entropy(ignored=-1, z_loss=1e-2)
    compare("vocabulary", own, whole, (), (logits, target), ((), (P(None, None, "model"), P()), P()))


def attention() -> None:
    x = bpref.Heads(*(drawn(i, 2, 12, heads, 8) for i, heads in enumerate((4, 2, 2))))
    of_T = P(None, "model")
    for causal in (False, True):
        own, whole = bpref.ring_attention("model", causal), bpref.blockwise_attention(causal)
        compare(f"ring, {'causal' if causal else 'all'}", own, with_no_params(whole), (), x, ((), of_T, of_T))


def of_joined(layer: Layer) -> Layer:
    """A layer of four blocks on one device as one of the blocks joined, as shard_map has them."""

    def blocks(tree):
        return jax.tree.map(lambda v: v.reshape(4, -1, *v.shape[1:]), tree)

    def joined(tree):
        return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), tree)

    def forward(params, x):
        y, cache = layer.forward(params, blocks(x))
        return joined(y), cache

    def backward(params, cache, dy):
        return (), joined(layer.backward(params, cache, blocks(dy))[1])

    return Layer(no_params, forward, backward, layer.name)


def experts() -> None:
    """Two on each device, each of which takes two tokens of another: some are dropped."""
    split, chosen = P("model"), jnp.arange(40).reshape(20, 2) * 7 % 8
    for name, x in (
        ("expert_dispatch", (drawn(0, 20, 6), chosen)),
        ("expert_combine", (drawn(0, 8, 8, 6), chosen, drawn(1, 20, 2))),
    ):
        own, whole = (getattr(bpref, name)(2, 2, axis) for axis in ("model", 4))
        compare(name, own, of_joined(whole), (), x, ((), split, split))


def stages() -> None:
    """Of eight layers two on each device, for three parts of the batch."""
    block = bpref.residual(bpref.serial(bpref.layer_norm(), bpref.linear(6), bpref.tanh()))
    whole, x = bpref.scan(block, 8), drawn(0, 12, 6)
    params = drawn_like(1, whole.init(jax.random.key(0), x))
    compare("pipeline", bpref.pipeline(block, 8, "model", 3), whole, params, x, (P("model"), P(), P()))


def of_the_readme() -> None:
    """Its program, as it stands there, beside the same network on one device."""
    (program,) = re.findall(r"^```python\n([^`]*shard_map[^`]*)^```$", README.read_text(), re.M)
    names: dict[str, Any] = {}
    exec(program, names)
    whole = bpref.serial(bpref.linear(128), bpref.gelu(), bpref.linear(32))
    x = drawn(0, 16, 32)
    params = whole.init(jax.random.key(1), x)
    y, dparams, _ = bpref.backpropagate(whole, params, x, jnp.ones((16, 32)))
    text = names["sweep"].lower(params, x).compile().as_text()
    FOUND["README"] = apart(names["sweep"](params, x), (y, dparams)), dict(traffic(text).collectives)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for comparison in (linear, vocabulary, attention, experts, stages, of_the_readme):
        comparison()
    print(json.dumps(FOUND))
