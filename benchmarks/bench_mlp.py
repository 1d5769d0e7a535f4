"""The hand-derived train step of an MLP beside `jax.value_and_grad` + optax, NumPy and PyTorch.

    python -m benchmarks.bench_mlp [--json FILE] [--shapes 3x64,4x256] [--seconds 4]

Each row is one network, depth x width, and each figure the ratio hand / other, median and quartiles: below 1 is
better. All steps compute the same loss and the same SGD update on the same data; those in JAX are jitted, with donated
parameters. `layers` is the composition of bpref's layers with optax's update, `layers, updating` the same with
`update_in_backward`, `the seed` is `bpref.models.mlp` as it stands.
"""

import argparse
import itertools
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from benchmarks.paired import Ratio, paired, repetitions
from bpref.models import mlp

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
    pairs = list(itertools.pairwise(widths))
    W = [(rng.normal(size=(n, m)) / m**0.5).astype(np.float32) for m, n in pairs]
    b = [np.zeros(n, np.float32) for _, n in pairs]
    X, y = rng.normal(size=(EXAMPLES, width)), rng.normal(size=(EXAMPLES, 1))
    return Problem(widths, W, b, X.astype(np.float32), y.astype(np.float32))


Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def network(p: Problem) -> bpref.Layer:
    layers = [layer for n in p.widths[1:-1] for layer in (bpref.linear(n), bpref.tanh())]
    return bpref.objective(bpref.serial(*layers, bpref.linear(1)), bpref.square())


def layers(p: Problem) -> tuple[Step, Any]:
    objective, optimizer = network(p), optax.sgd(ALPHA)
    params = objective.init(jax.random.key(0), (p.X, p.y))
    state = optimizer.init(params)

    def step(params, X, y):
        J, dparams, _ = bpref.backpropagate(objective, params, (X, y))
        return optax.apply_updates(params, optimizer.update(dparams, state)[0]), J

    return step, params


def updating(p: Problem) -> tuple[Step, Any]:
    objective = bpref.map_leaves(bpref.update_in_backward(optax.sgd(ALPHA)), network(p))

    def step(params, X, y):
        J, updated, _ = bpref.backpropagate(objective, params, (X, y))
        return updated, J

    return step, objective.init(jax.random.key(0), (p.X, p.y))


def seed(p: Problem) -> tuple[Step, Any]:
    g = [bpref.tanh()] * (len(p.W) - 1) + [bpref.identity()]

    def step(params, X, y):
        y_hat, kept = mlp.forward(params, X, g)
        return mlp.update(params, mlp.backward(params, kept, y, g), ALPHA), mlp.cost(y_hat, y)

    return step, mlp.Params((None, *p.W), (None, *p.b))


def by_autodiff(p: Problem) -> tuple[Step, Any]:
    """What a user of JAX writes: the loss, `jax.value_and_grad`, optax's SGD."""
    optimizer = optax.sgd(ALPHA)
    state = optimizer.init((p.W, p.b))

    def loss(params, X, y):
        A = X
        for W, b in params[:-1]:
            A = jnp.tanh(A @ W.T + b)
        W, b = params[-1]
        return jnp.mean(optax.l2_loss(A @ W.T + b, y))

    def step(params, X, y):
        J, gradient = jax.value_and_grad(loss)(params, X, y)
        return optax.apply_updates(params, optimizer.update(gradient, state)[0]), J

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
        import torch  # pyright: ignore[reportMissingImports]
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


BY_HAND = {"layers": layers, "layers, updating": updating, "the seed": seed}


class Row(NamedTuple):
    """One comparison, hand / other. What is not compiled has a step time alone; temp_bytes are hand's and other's."""

    shape: str
    hand: str
    other: str
    step: Ratio
    trace_and_lower: Ratio | None = None
    compile: Ratio | None = None
    temp_bytes: tuple[int, int] | None = None

    def __str__(self) -> str:
        """A row of the table that `main` prints."""
        memory = f"{self.temp_bytes[0] / self.temp_bytes[1]:.2f} of {self.temp_bytes[1]:,} B" if self.temp_bytes else ""
        figures = (self.step, self.trace_and_lower or "", self.compile or "", memory)
        return " | ".join(("", self.shape, self.hand, self.other, *map(str, figures), "")).strip()


class Program(NamedTuple):
    """A jitted step: its compiled form, how to lower it afresh, and a call of it on its own donated parameters."""

    lower: Callable[[], Any]
    temp_bytes: int
    run: Callable[[], Any]


def program(step: Step, params: Any, X: Any, y: Any) -> Program:
    def lower():
        return jax.jit(lambda params, X, y: step(params, X, y), donate_argnums=0).trace(params, X, y).lower()

    compiled = lower().compile()
    memory = compiled.memory_analysis()
    state = [jax.tree.map(jnp.array, params)]

    def run():
        state[0], J = compiled(state[0], X, y)
        return J

    return Program(lower, memory.temp_size_in_bytes if memory else 0, run)


def compare(shape: str, seconds: float) -> Iterator[Row]:
    depth, width = map(int, shape.split("x"))
    p = problem(depth, width)
    X, y = jnp.asarray(p.X), jnp.asarray(p.y)
    autodiff = program(*by_autodiff(p), X, y)
    for name, make in BY_HAND.items():
        hand = program(*make(p), X, y)
        step = paired(hand.run, autodiff.run, repetitions(autodiff.run, seconds), warm=5)
        trace = paired(hand.lower, autodiff.lower, pairs=15, warm=2)
        lowered = [(hand.lower(), autodiff.lower()) for _ in range(6)]
        ours, theirs = (iter(programs) for programs in zip(*lowered, strict=True))
        compiling = paired(lambda it=ours: next(it).compile(), lambda it=theirs: next(it).compile(), pairs=5)
        temp = (hand.temp_bytes, autodiff.temp_bytes)
        yield Row(shape, name, "jax.value_and_grad + optax", step, trace, compiling, temp)
    hand = program(*layers(p), X, y)
    for other, run in (("NumPy", in_numpy(p)), ("PyTorch eager", in_torch(p))):
        if run is not None:
            yield Row(shape, "layers", other, paired(hand.run, run, repetitions(run, seconds), warm=3))


HEADER = "| network | by hand | other | step | trace + lower | compile | temp memory |" + "\n" + "| --- " * 7 + "|"


def table(path: Path) -> str:
    """What `main` has written there, in Markdown."""
    rows = [
        Row(**row | {name: Ratio(**row[name]) for name in ("step", "trace_and_lower", "compile") if row[name]})
        for row in json.loads(path.read_text())["rows"]
    ]
    return "\n".join([HEADER, *map(str, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="networks as depth x width, separated by commas")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each pair of steps is timed for")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {EXAMPLES} examples; median (quartiles)\n")
    print(HEADER)
    rows = []
    for shape in arguments.shapes.split(","):
        for row in compare(shape, arguments.seconds):
            print(row, flush=True)
            rows.append(row)
    if arguments.json:
        machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
        figures = [{k: v._asdict() if isinstance(v, Ratio) else v for k, v in row._asdict().items()} for row in rows]
        arguments.json.write_text(json.dumps({"machine": machine, "rows": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
