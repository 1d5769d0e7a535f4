"""Norms of every example's gradient, the clipped one, and curvature, beside a plain backward and JAX's autodiff.

    python -m benchmarks.bench_signals [--json FILE] [--seconds 10] [--work MLP GPT]

Each figure is a ratio hand / other, of times with the quartiles, and of the memory that XLA allocates beside the
inputs, temporary and for outputs; below 1 is better. All of JAX are jitted and compute J's forward as well. `vmap`
differentiates the same forward, or the plain form, for each example alone; it gives the norms, or the clipped sum.
Kronecker factors are of all linear layers and embeddings, beside `grad` in what is added to their outputs; the diagonal
of the Gauss-Newton matrix, exact for the MLP and of one random column for the GPT of leaves, beside `vjp`: in what is
added to the outputs of the MLP's linear layers, or in the params for each example, as many at once as is fastest.
Other libraries stand beside these where they are installed: `pip install opacus backpack-for-pytorch jax-privacy
kfac-jax`. A JSON file is added to.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from benchmarks.curvature import (
    KEY,
    diagonal,
    diagonal_by_autodiff,
    diagonal_of_rows_by_autodiff,
    factors,
    factors_by_autodiff,
)
from benchmarks.paired import Ratio, beside_each, least_time, repetitions
from benchmarks.signal_rivals import rivals
from benchmarks.signal_works import WORK

BOUND = 0.01


class Program(NamedTuple):
    memory: int | None
    run: Callable[[], Any]
    output: Any


def compiled(f: Callable[..., Any], *args: Any) -> Program:
    program = jax.jit(f).lower(*args).compile()
    memory = program.memory_analysis()

    def run():
        jax.block_until_ready(program(*args))

    return Program(memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else 0, run, program(*args))


def programs(name: str) -> tuple[dict[str, Program], list[tuple[str, str, Program]]]:
    """Ours by signal, the plain backward last; and the rivals: the signal, whose it is, and what it computes."""
    work = WORK[name]()
    J, params = work.J, work.J.init(jax.random.key(0), work.x)
    x = jax.tree.map(jnp.asarray, work.x)
    measuring = bpref.map_leaves(bpref.per_example_norms, J)
    ours = {
        "norms": compiled(lambda p, x: bpref.squared_norms(bpref.backpropagate(measuring, p, x)[1]), params, x),
        "clipped": compiled(lambda p, x: bpref.clipped_gradient(J, p, x, BOUND).dparams, params, x),
    }
    forms = {"vmap": lambda p, x: J.forward(p, x)[0]} | ({} if work.plain is None else {"vmap, plain": work.plain})
    others = [(signal, form, program) for form, f in forms.items() for signal, program in each_alone(f, params, x)]
    if J.parts[1].root is not None:
        n, drawn = len(jax.tree.leaves(x)[0]), name != "MLP"
        kind = "Gauss-Newton diagonal, drawn" if drawn else "Gauss-Newton diagonal"
        ours[kind] = compiled(diagonal(J, drawn), params, x)
        if name != "LeNet":
            ours["Kronecker factors"] = compiled(factors(J), params, x)
            others.append(("Kronecker factors", "grad", compiled(factors_by_autodiff(J, params, x), params, x)))
        vjps = [compiled(diagonal_by_autodiff(J, drawn, at_once), params, x) for at_once in sorted({1, 8, n})]
        if not drawn:
            vjps.append(compiled(diagonal_of_rows_by_autodiff(J, params, x), params, x))
        if work.layered:
            ours["Kronecker factors, drawn"] = compiled(factors(J, KEY), params, x)
        others.append((kind, "vjp", min(vjps, key=seconds_of)))
    others += [
        (signal, library, Program(None, run, run())) for signal, library, run in rivals(name, work, params, BOUND)
    ]
    ours["plain"] = compiled(lambda p, x: bpref.backpropagate(J, p, x)[:2], params, x)
    return ours, [other for other in others if other[0] in ours]


def each_alone(J: Callable[[Any, Any], Any], params: Any, x: Any) -> Iterator[tuple[str, Program]]:
    """By `vmap` of `grad`: each example's share in the mean alone."""
    n = len(jax.tree.leaves(x)[0])

    def each(params, x):
        def alone(x):
            own = jax.tree.map(lambda v: v[None], x)
            return jax.grad(lambda p: J(p, own) / n)(params)

        gradients = jax.vmap(alone)(x)
        return gradients, sum(jnp.sum(g**2, range(1, g.ndim)) for g in jax.tree.leaves(gradients))

    def clipped(params, x):
        gradients, squares = each(params, x)
        share = BOUND / jnp.maximum(jnp.sqrt(squares), BOUND)
        return jax.tree.map(lambda g: jnp.tensordot(share, g, 1), gradients)

    yield "norms", compiled(lambda p, x: each(p, x)[1], params, x)
    yield "clipped", compiled(clipped, params, x)


def seconds_of(program: Program) -> float:
    return least_time(program.run, 2)


def require_alike(signal: str, ours: Any, theirs: Any) -> None:
    """What is drawn differs; else the arrays are the same, in some order and layout: together they are as long."""
    if signal == "Kronecker factors, drawn" or (signal.endswith("drawn") and isinstance(theirs, list)):
        return
    a, b = ([np.asarray(v) for v in jax.tree.leaves(tree)] for tree in (ours, theirs))
    if isinstance(theirs, list):
        a, b = ([np.linalg.norm([np.linalg.norm(v) for v in arrays])] for arrays in (a, b))
    for u, v in zip(a, b, strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-5 * float(np.abs(v).max()))


def measure(name: str, seconds: float) -> list[dict[str, Any]]:
    ours, others = programs(name)
    rows = []
    for signal, own in ours.items():
        beside = [("plain", ours["plain"]), *((whose, p) for of, whose, p in others if of == signal)]
        if signal == "plain":
            continue
        for _, other in beside[1:]:
            require_alike(signal, own.output, other.output)
        slowest = max((own, *(p for _, p in beside)), key=seconds_of)
        rounds = repetitions(slowest.run, seconds / len(beside), most=60)
        ratios = beside_each([own.run, *(p.run for _, p in beside)], rounds)
        for (whose, other), ratio in zip(beside, ratios, strict=True):
            row = {"work": name, "signal": signal, "rival": whose, "time": ratio._asdict()}
            if own.memory is not None and other.memory is not None:
                row |= {"memory": own.memory / other.memory, "other_bytes": other.memory}
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    lines = ["| work | signal | beside | time | memory |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        time = Ratio(**row["time"])
        memory = f"{row['memory']:.2f} of {row['other_bytes'] / 1e6:.1f} MB" if "memory" in row else ""
        of = f"{time} of {1e3 * time.other_seconds:.1f} ms", memory
        lines.append(f"| {' | '.join([row['work'], row['signal'], row['rival'], *of])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to measure each pair")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    given = parser.parse_args()
    rows = json.loads(given.json.read_text())["rows"] if given.json and given.json.exists() else []
    for name in given.work:
        rows = [row for row in rows if row["work"] != name] + measure(name, given.seconds)
    rows.sort(key=lambda row: list(WORK).index(row["work"]))
    print(table(rows))
    if given.json:
        machine = f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}"
        given.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
