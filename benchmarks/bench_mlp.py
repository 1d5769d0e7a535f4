"""The hand-derived train step of an MLP beside `jax.value_and_grad` + optax, NumPy and PyTorch.

    python benchmarks/bench_mlp.py [--json FILE] [--shapes 3x64,4x256] [--seconds 4]

Each row is one network, depth x width, and each figure the ratio hand / other: below 1 is better. Both steps of
the first comparison compute the same loss and the same SGD update, jitted, with donated parameters.
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
import optax
from paired import Ratio, paired, repetitions

import bpref

SHAPES = ("3x64", "4x256", "8x1024", "64x128")
EXAMPLES, ALPHA = 128, 1e-3


class Problem(NamedTuple):
    """The data and the parameters of one network: `widths` n[0] ... n[L], tanh inside, one linear output."""

    widths: list[int]
    W: list[np.ndarray]
    b: list[np.ndarray]
    X: np.ndarray
    y: np.ndarray


def problem(depth: int, width: int) -> Problem:
    rng = np.random.default_rng(0)
    widths = [width] * depth + [1]
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    W = [(rng.normal(size=(n, m)) / m**0.5).astype(np.float32) for m, n in pairs]
    b = [np.zeros(n, np.float32) for _, n in pairs]
    X, y = rng.normal(size=(EXAMPLES, width)), rng.normal(size=(EXAMPLES, 1))
    return Problem(widths, W, b, X.astype(np.float32), y.astype(np.float32))


Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def by_hand(p: Problem) -> tuple[Step, Any]:
    """The layers of bpref, their backward sweep, and optax's SGD."""
    layers = [layer for n in p.widths[1:-1] for layer in (bpref.linear(n), bpref.tanh())]
    objective = bpref.objective(bpref.serial(*layers, bpref.linear(1)), bpref.square())
    optimizer = optax.sgd(ALPHA)
    params = objective.init(jax.random.key(0), (p.X, p.y))

    def step(params, X, y):
        J, dparams, _ = bpref.backpropagate(objective, params, (X, y))
        return optax.apply_updates(params, optimizer.update(dparams, optimizer.init(params))[0]), J

    own = iter(zip(p.W, p.b, strict=True))
    linear = type(params[0][0])
    return step, jax.tree.map(lambda _: linear(*next(own)), params, is_leaf=lambda v: isinstance(v, linear))


def updating(p: Problem) -> tuple[Step, Any]:
    """The same, each layer updated as soon as its gradient is there."""
    layers = [layer for n in p.widths[1:-1] for layer in (bpref.linear(n), bpref.tanh())]
    objective = bpref.objective(bpref.serial(*layers, bpref.linear(1)), bpref.square())
    objective = bpref.map_leaves(bpref.update_in_backward(optax.sgd(ALPHA)), objective)

    def step(params, X, y):
        J, updated, _ = bpref.backpropagate(objective, params, (X, y))
        return updated, J

    return step, objective.init(jax.random.key(0), (p.X, p.y))


def by_autodiff(p: Problem) -> tuple[Step, Any]:
    """What a user of JAX writes: the loss, `jax.value_and_grad`, optax's SGD."""
    optimizer = optax.sgd(ALPHA)

    def loss(params, X, y):
        A = X
        for W, b in params[:-1]:
            A = jnp.tanh(A @ W.T + b)
        W, b = params[-1]
        return jnp.mean(optax.l2_loss(A @ W.T + b, y))

    def step(params, X, y):
        J, gradient = jax.value_and_grad(loss)(params, X, y)
        return optax.apply_updates(params, optimizer.update(gradient, optimizer.init(params))[0]), J

    return step, list(zip(p.W, p.b, strict=True))


def in_numpy(p: Problem) -> Callable[[], Any]:
    W, b = [w.copy() for w in p.W], [v.copy() for v in p.b]

    def step():
        A = [p.X]
        for l in range(len(W)):
            Z = A[-1] @ W[l].T + b[l]
            A.append(np.tanh(Z) if l < len(W) - 1 else Z)
        dA = (A[-1] - p.y) / len(p.y)
        for l in reversed(range(len(W))):
            dZ = dA * (1 - A[l + 1] ** 2) if l < len(W) - 1 else dA
            dA = dZ @ W[l]
            W[l] -= ALPHA * (dZ.T @ A[l])
            b[l] -= ALPHA * dZ.sum(0)
        return A[-1]

    return step


def in_torch(p: Problem) -> Callable[[], Any] | None:
    """PyTorch's eager step on the same device, or None where PyTorch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return None
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    layers: list[Any] = []
    for W, b in zip(p.W, p.b, strict=True):
        linear = torch.nn.Linear(W.shape[1], W.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(W), torch.tensor(b)
        layers += [linear, torch.nn.Tanh()]
    network = torch.nn.Sequential(*layers[:-1]).to(device)
    optimizer = torch.optim.SGD(network.parameters(), ALPHA)
    X, y = torch.tensor(p.X, device=device), torch.tensor(p.y, device=device)

    def step():
        optimizer.zero_grad()
        (((network(X) - y) ** 2).sum() / 2 / len(y)).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


class Row(NamedTuple):
    """One comparison: the ratios hand / other; tracing, compiling and memory are those of compiled programs alone."""

    shape: str
    other: str
    step: Ratio
    trace: Ratio | None = None
    compile: Ratio | None = None
    temp_bytes: tuple[int, int] | None = None


def compare(shape: str, seconds: float) -> list[Row]:
    depth, width = map(int, shape.split("x"))
    p = problem(depth, width)
    steps = {"hand": by_hand(p), "updating": updating(p), "autodiff": by_autodiff(p)}
    X, y = jnp.asarray(p.X), jnp.asarray(p.y)

    def lowered(which):
        step, params = steps[which]
        fresh = jax.jit(lambda params, X, y: step(params, X, y), donate_argnums=0)
        return fresh.trace(params, X, y).lower()

    def compiled_fresh(which):
        program = lowered(which)
        return lambda: program.compile()

    def running(which):
        program, params = lowered(which).compile(), jax.tree.map(jnp.array, steps[which][1])
        state = [params]

        def run():
            state[0], J = program(state[0], X, y)
            return J

        return program, run

    programs = {which: running(which) for which in steps}
    rows = []
    for hand, other in (("hand", "autodiff"), ("updating", "autodiff")):
        temp = tuple(programs[w][0].memory_analysis().temp_size_in_bytes for w in (hand, other))
        step = paired(programs[hand][1], programs[other][1], repetitions(programs[other][1], seconds), warm=5)
        trace = paired(lambda h=hand: lowered(h) and None, lambda o=other: lowered(o) and None, pairs=15, warm=2)
        compiling = paired(lambda h=hand: compiled_fresh(h)() and None, lambda o=other: compiled_fresh(o)() and None, 3)
        rows.append(Row(shape, f"{hand} / jax.value_and_grad", step, trace, compiling, (temp[0], temp[1])))
    for name, run in (("NumPy", in_numpy(p)), ("PyTorch eager", in_torch(p))):
        if run is not None:
            step = paired(programs["hand"][1], run, repetitions(run, seconds), warm=3)
            rows.append(Row(shape, f"hand / {name}", step))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="networks as depth x width, separated by commas")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each pair of steps is timed for")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {EXAMPLES} examples, ratios: median (quartiles)")
    print(f"{'network':8} {'':32} {'step':>18} {'trace + lower':>18} {'with compile':>18}   temp memory")
    rows = []
    for shape in arguments.shapes.split(","):
        for row in compare(shape, arguments.seconds):
            temp = f"{row.temp_bytes[0] / row.temp_bytes[1]:.2f} of {row.temp_bytes[1]:,} B" if row.temp_bytes else ""
            print(f"{row.shape:8} {row.other:32} {row.step!s:>18} {row.trace or ''!s:>18} {row.compile or ''!s:>18}   {temp}")
            rows.append(row)
    if arguments.json:
        machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
        figures = [
            {k: v._asdict() if isinstance(v, Ratio) else v for k, v in row._asdict().items()} for row in rows
        ]
        arguments.json.write_text(json.dumps({"machine": machine, "rows": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
