"""The memory of a step of training: the update in the backward, beside the whole gradient and optax.

    python -m benchmarks.bench_updates [--json FILE] [--work ...]

Nothing runs: the figures are what XLA's plan of the compiled program needs, in MB. Parameters and the optimiser's state
are donated on all sides, so that outputs take the place of arguments; `temp` comes on top. The whole gradient is
made by hand, or by `jax.value_and_grad` of the same forward. Clipping is by the global norm; micro-batches are added up
by `update_by_sweeps` and by `optax.MultiSteps`.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig

HERE = Path(__file__).parent
ADAM = optax.adam(1e-3)
CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), ADAM)
K = 4
STEPS = {"adam": (None, 1), "adam, clipped": (1.0, 1), f"adam, clipped, {K} micro-batches": (1.0, K)}
"""The bound and the number of micro-batches."""

SIDES = ("in the backward", "by hand", "autodiff")
KINDS = ("temp", "argument", "output")


def mlp() -> tuple[bpref.Layer, Any]:
    """8 layers of 1,024, 64 examples."""
    hidden = [layer for _ in range(7) for layer in (bpref.linear(1024), bpref.relu())]
    J = bpref.objective(bpref.serial(*hidden, bpref.linear(1024)), bpref.square("batch_mean"))
    return J, (np.zeros((64, 1024), np.float32), np.zeros((64, 1024), np.float32))


def gpt() -> tuple[bpref.Layer, Any]:
    """8 scanned blocks of 256 features, recomputed; 4 sequences of 256 tokens of 2,048, the fused loss."""
    config = GptConfig(vocabulary=2048, width=256, depth=8, heads=4, hidden=1024, context=256, gated=False)
    tokens = np.zeros((4, 256), np.int32)
    return gpt_objective(config, remat=True), (tokens, tokens)


WORK = {"MLP of 8 x 1,024": mlp, "GPT of 8 blocks, scanned": gpt}


def planned(f: Callable[..., Any], donated: Any, x: Any) -> dict[str, int]:
    memory = jax.jit(f, donate_argnums=0).lower(donated, x).compile().memory_analysis()
    return {kind: getattr(memory, f"{kind}_size_in_bytes") for kind in KINDS}


def whole(sweep: Callable[..., Any], bound: float | None, k: int) -> tuple[Any, Callable[..., Any]]:
    """The optimiser, and the step as it is usually written: the gradient by `sweep(params, x)`, then its update."""
    clipped = ADAM if bound is None else CLIPPED
    optimizer: Any = clipped if k == 1 else optax.MultiSteps(clipped, k)

    def one(carry, x):
        params, state = carry
        value, gradient = sweep(params, x)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    def step(carry, x):
        if k == 1:
            return one(carry, x)
        return jax.lax.scan(one, carry, jax.tree.map(lambda v: v.reshape(k, -1, *v.shape[1:]), x))

    return optimizer, step


def gradients(J: bpref.Layer) -> dict[str, Callable[..., Any]]:
    """`(params, x) -> (J, gradient)`, by hand and by autodiff."""
    return {
        "by hand": lambda params, x: bpref.backpropagate(J, params, x)[:2],
        "autodiff": jax.value_and_grad(lambda params, x: J.forward(params, x)[0]),
    }


def measure(name: str) -> list[dict[str, Any]]:
    J, x = WORK[name]()
    x = jax.tree.map(jnp.asarray, x)
    updated = jax.eval_shape(
        lambda key: bpref.map_leaves(bpref.update_in_backward(ADAM), J).init(key, x), jax.random.key(0)
    )
    params = bpref.params_of(updated)
    rows = []
    for step, (bound, k) in STEPS.items():

        def hand(updated, x, bound=bound, k=k):
            return bpref.update_by_sweeps(J, ADAM, updated, x, bound, k)[:2]

        row = {"work": name, "step": step, "params": sum(4 * p.size for p in jax.tree.leaves(params))}
        row["in the backward"] = planned(hand, updated, x)
        for side, sweep in gradients(J).items():
            optimizer, of_rival = whole(sweep, bound, k)
            row[side] = planned(of_rival, (params, jax.eval_shape(optimizer.init, params)), x)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    headers = ("work", "params", "step", *(f"{kind}, {' / '.join(SIDES)}" for kind in KINDS))
    lines = [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|"]
    for row in rows:
        of = (" / ".join(f"{row[side][kind] / 1e6:.1f}" for side in SIDES) for kind in KINDS)
        size = f"{row['params'] / 1e6:.1f}"
        lines.append(f"| {' | '.join([row['work'], size, row['step'], *of])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    given = parser.parse_args()
    rows = [row for name in given.work for row in measure(name)]
    print(table(rows))
    if given.json:
        machine = f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}"
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
