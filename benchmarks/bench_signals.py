"""Norms of every example's gradient, the clipped one, and curvature, beside a plain backward and JAX's autodiff.

    python -m benchmarks.bench_signals [--json FILE] [--seconds 10] [--work MLP GPT]

Each figure is a ratio hand / other, of times with the quartiles, and of the memory that XLA allocates beside the
inputs, temporary and for outputs; below 1 is better. All are jitted and compute J's forward as well. `vmap(grad)`
differentiates the same forward for each example alone; it gives the norms, or the clipped sum, as it is compared with.
Kronecker factors are of all linear layers and embeddings, beside `grad` in what is added to their outputs; the diagonal
of the Gauss-Newton matrix, exact for the MLP and of one random column for the GPT of leaves, beside `vjp`: in what is
added to the outputs of the MLP's linear layers, or in the params for each example, as many at once as is fastest.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from benchmarks.curvature import (
    diagonal,
    diagonal_by_autodiff,
    diagonal_of_rows_by_autodiff,
    factors,
    factors_by_autodiff,
)
from benchmarks.paired import Ratio, beside_each, least_time, repetitions
from bpref.models.gpt import GptConfig, gpt_objective

BOUND = 0.01
RNG = np.random.default_rng(0)


def mlp() -> tuple[bpref.Layer, Any]:
    """4 layers of 256, 128 examples."""
    hidden = [layer for _ in range(3) for layer in (bpref.linear(256), bpref.tanh())]
    J = bpref.objective(bpref.serial(*hidden, bpref.linear(10)), bpref.softmax_cross_entropy())
    return J, (RNG.normal(size=(128, 256)).astype(np.float32), RNG.integers(10, size=128))


def gpt() -> tuple[bpref.Layer, Any]:
    """2 blocks of 128 features, 8 sequences of 128 tokens of 512, the fused loss."""
    config = GptConfig(vocabulary=512, width=128, depth=2, heads=4, hidden=512, context=128, gated=False)
    tokens = RNG.integers(512, size=(8, 128))
    return gpt_objective(config), (tokens, np.roll(tokens, -1, 1))


def gpt_of_leaves() -> tuple[bpref.Layer, Any]:
    """The same of attention, norms and linear layers as leaves, and of logits made whole."""
    block = bpref.serial(
        attention=bpref.residual(bpref.rms_norm(), bpref.multi_head_attention(4, causal=True, rope=1e4, bias=False)),
        mlp=bpref.residual(
            bpref.rms_norm(), bpref.linear(512, bias=False), bpref.silu(), bpref.linear(128, bias=False)
        ),
    )
    parts = {"embed": bpref.embedding(512, 128), "blocks": bpref.scan(block, 2), "norm": bpref.rms_norm()}
    network = bpref.serial(**parts, head=bpref.linear(512, bias=False))
    tokens = RNG.integers(512, size=(8, 128))
    labels = np.roll(tokens, -1, 1), np.ones(tokens.shape, bool)
    return bpref.objective(network, bpref.sequence_cross_entropy()), (tokens, labels)


WORK = {"MLP": mlp, "GPT": gpt, "GPT of leaves": gpt_of_leaves}


class Program(NamedTuple):
    memory: int
    run: Callable[[], Any]
    output: Any


def compiled(f: Callable[..., Any], *args: Any) -> Program:
    program = jax.jit(f).lower(*args).compile()
    memory = program.memory_analysis()

    def run():
        jax.block_until_ready(program(*args))

    return Program(memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else 0, run, program(*args))


def programs(J: bpref.Layer, x: Any) -> dict[str, Program]:
    params = J.init(jax.random.key(0), x)
    x = jax.tree.map(jnp.asarray, x)
    measuring = bpref.map_leaves(bpref.per_example_norms, J)
    n = len(jax.tree.leaves(x)[0])

    def each(params, x):
        """Each example's share in the mean, by autodiff, and its squared norm."""

        def alone(x):
            own = jax.tree.map(lambda v: v[None], x)
            return jax.grad(lambda p: J.forward(p, own)[0] / n)(params)

        gradients = jax.vmap(alone)(x)
        return gradients, sum(jnp.sum(g**2, range(1, g.ndim)) for g in jax.tree.leaves(gradients))

    def clipped(params, x):
        gradients, squares = each(params, x)
        share = BOUND / jnp.maximum(jnp.sqrt(squares), BOUND)
        return jax.tree.map(lambda g: jnp.tensordot(share, g, 1), gradients)

    ran = {
        "norms": compiled(lambda p, x: bpref.squared_norms(bpref.backpropagate(measuring, p, x)[1]), params, x),
        "clipped": compiled(lambda p, x: bpref.clipped_gradient(J, p, x, BOUND).dparams, params, x),
        "plain": compiled(lambda p, x: bpref.backpropagate(J, p, x)[:2], params, x),
        "vmap, norms": compiled(lambda p, x: each(p, x)[1], params, x),
        "vmap, clipped": compiled(clipped, params, x),
    }
    if J.parts[1].root is None:
        return ran
    drawn = jnp.ndim(x[0]) < 2 or jnp.issubdtype(x[0].dtype, jnp.integer)
    rivals = [compiled(diagonal_by_autodiff(J, drawn, at_once), params, x) for at_once in sorted({1, 8, n})]
    if not drawn:
        rivals.append(compiled(diagonal_of_rows_by_autodiff(J, params, x), params, x))
    return ran | {
        "Kronecker factors": compiled(factors(J), params, x),
        "grad, Kronecker factors": compiled(factors_by_autodiff(J, params, x), params, x),
        "Gauss-Newton diagonal": compiled(diagonal(J, drawn), params, x),
        "vjp, Gauss-Newton diagonal": min(rivals, key=seconds_of),
    }


def seconds_of(program: Program) -> float:
    return least_time(program.run, 2)


def measure(name: str, seconds: float) -> list[dict[str, Any]]:
    ran = programs(*WORK[name]())
    pairs = {name.split(", ")[1]: name for name in ran if ", " in name}
    rows = []
    for ours, rival in pairs.items():
        for a, b in zip(*(jax.tree.leaves(ran[k].output) for k in (ours, rival)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(jnp.abs(b).max()))
        others = ["plain", rival]
        runs = [ran[k].run for k in (ours, *others)]
        rounds = repetitions(max(ran[ours], ran[rival], key=seconds_of).run, seconds / 3, most=60)
        for other, ratio in zip(others, beside_each(runs, rounds), strict=True):
            row = {"work": name, "signal": ours, "rival": other, "time": ratio._asdict()}
            rows.append(row | {"memory": ran[ours].memory / ran[other].memory, "other_bytes": ran[other].memory})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = ["| work | signal | beside | time | memory |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        time = Ratio(**row["time"])
        of = f"{time} of {1e3 * time.other_seconds:.1f} ms", f"{row['memory']:.2f} of {row['other_bytes'] / 1e6:.1f} MB"
        lines.append(f"| {' | '.join([row['work'], row['signal'], row['rival'], *of])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to measure each pair")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    given = parser.parse_args()
    rows = [row for name in given.work for row in measure(name, given.seconds)]
    print(table(rows))
    if given.json:
        machine = f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}"
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
