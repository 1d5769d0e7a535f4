"""A step of training every model: by hand, beside autodiff of the same forward, of a plain form, and other libraries.

    python -m benchmarks.bench_models [NAME ...] [--front] [--compile] [--growth] [--seconds 10] [--json FILE]
        [--plot FILE]

A step is J, its gradient and optax's Adam, jitted where it is JAX's. Each figure is a ratio hand / rival, below 1 is
better: of times, in one process and in turn, with the quartiles; and of the memory that XLA allocates beside inputs and
outputs. The front is gpt under every policy of `jax.checkpoint`. `--compile` is the time to trace and lower, and to
compile; `--growth` gpt by hand, the width, depth, batch or length doubled four times. The share is of the products that
the model needs at least, in the time that they take in a product of matrices of 1,024, measured in
turn as well. A JSON file is added to.
"""

import argparse
import itertools
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from benchmarks import plain_models
from benchmarks.contest import OWN, compiled
from benchmarks.library_models import ADAM, stepping
from benchmarks.model_works import DEEP, RNG, WORK, Work, gpt_config, tokens
from benchmarks.models_plot import plot
from benchmarks.paired import Ratio, beside_each, least_time, paired, repetitions
from benchmarks.sequence_blocks import POLICIES
from bpref.models.gpt import gpt_objective
from bpref.models.gpt_config import GptConfig

PRODUCT = 1024
"""The matrices whose product says what the machine can do are so wide."""


def cost(y: Any) -> Any:
    """J, of what an objective gives: one with state gives it too."""
    return y[0] if isinstance(y, tuple) else y


def hand_step(objective: bpref.Layer) -> Callable[..., Any]:
    def step(params, state, x):
        y, dparams, _ = bpref.backpropagate(objective, params, x)
        updates, state = ADAM.update(dparams, state, params)
        return cost(y), optax.apply_updates(params, updates), state

    return step


def losses(work: Work) -> dict[str, Callable[..., Any]]:
    """J of every form for autodiff: of our own forward first."""
    return {OWN: lambda params, x: cost(work.objective.forward(params, x)[0]), **work.forms}


class Program(NamedTuple):
    """A step, compiled: the bytes beside inputs and outputs, a call of it that waits, and J of the first."""

    temp: int | None
    run: Callable[[], Any]
    J: float


def program(step: Callable[..., Any], arguments: tuple[Any, ...]) -> Program:
    """Params and the optimiser's state are donated and taken further, as in training: no output is room for `temp`."""
    executable = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    memory = executable.memory_analysis()
    held, x = jax.tree.map(jnp.array, arguments[:2]), jax.tree.map(jnp.asarray, arguments[2])

    def run():
        nonlocal held
        J, *held = executable(*held, x)
        return jax.block_until_ready(J)

    return Program(memory.temp_size_in_bytes if memory else 0, run, float(run()))


def programs(work: Work) -> dict[str, Program]:
    """By hand first, then autodiff of the own forward, then all others."""
    given = work.params, ADAM.init(work.params), work.x
    made = {"by hand": program(hand_step(work.objective), given)}
    made |= {name: program(stepping(J), given) for name, J in losses(work).items()}
    for name, program_ in made.items():
        np.testing.assert_allclose(program_.J, made["by hand"].J, rtol=1e-3, err_msg=name)
    made |= {name: program(*make()) for name, make in work.jitted.items()}
    for name, make in work.steps.items():
        run = make()
        made[name] = Program(None, run, run())
    return made


def product() -> Program:
    """The product of two square matrices."""
    A = jnp.asarray(RNG.normal(size=(PRODUCT, PRODUCT)), jnp.float32)
    return Program(None, compiled(lambda A: A @ A, (A,)).run, 0.0)


def measure(name: str, seconds: float) -> list[dict[str, Any]]:
    work = WORK[name]()
    made = programs(work)
    if work.products:
        made["product"] = product()
    hand, *others = made.values()
    rounds = min(repetitions(p.run, seconds, least=7) for p in made.values())
    times = beside_each([p.run for p in (hand, *others)], rounds, warm=2)
    rows = []
    for (rival, other), ratio in zip(list(made.items())[1:], times, strict=True):
        row = {"work": name, "rival": rival, "time": ratio._asdict(), "temp": (hand.temp, other.temp)}
        if rival == "product" and work.products:
            row["share"] = work.products / PRODUCT**3 / ratio.median
        rows.append(row)
    return rows


def front(seconds: float) -> list[dict[str, Any]]:
    """gpt by hand, kept and recomputed, and by autodiff of three forwards under every policy.

    J and its gradient, without the optimiser, whose room could be the backward's.
    """
    c = gpt_config()
    x = tokens(c.vocabulary, 4, c.context)
    params = gpt_objective(c).init(jax.random.key(0), x)
    sweeps = {("by hand", how): by_hand(gpt_objective(c, **own)) for how, own in HOW.items()}
    for policy in ("none", *POLICIES):
        forms = {
            "own forward": own_under(c, POLICIES.get(policy)),
            "plain form": plain_models.gpt(c, plain_models.all_logits, POLICIES.get(policy)),
            "plain, jax.nn's": plain_models.gpt(c, plain_models.of_jax, POLICIES.get(policy)),
        }
        sweeps |= {(name, policy): jax.value_and_grad(J) for name, J in forms.items()}
    made = {name: compiled(f, (params, x)) for name, f in sweeps.items()}
    hand, *others = made.values()
    Js = [float(p.run()[0]) for p in made.values()]
    np.testing.assert_allclose(Js, Js[0], rtol=1e-4)
    rounds = min(repetitions(p.run, seconds, least=7) for p in made.values())
    times = beside_each([hand.run, *(p.run for p in others)], rounds, warm=1)
    one = Ratio(1.0, 1.0, 1.0, times[0].hand_seconds, times[0].hand_seconds)
    return [
        {"form": form, "policy": policy, "temp": p.temp, "time": ratio._asdict()}
        for ((form, policy), p), ratio in zip(made.items(), [one, *times], strict=True)
    ]


HOW: dict[str, Any] = {"kept": {}, "remat": {"remat": True}, "remat, tiles": {"remat": True, "mlp_tile": 64}}
"""What of gpt's caches is kept by hand."""


def by_hand(objective: bpref.Layer) -> Callable[[Any, Any], Any]:
    return lambda params, x: bpref.backpropagate(objective, params, x)[:2]


def own_under(c: GptConfig, policy: Any) -> Callable[[Any, Any], Any]:
    """Our forward with each block under a policy of `jax.checkpoint`."""
    block = bpref.transformer_block(c.heads, c.hidden, c.kv_heads, eps=c.eps, rope=c.rope)
    head = bpref.fused_linear_cross_entropy(c.vocabulary)
    norm, embed = bpref.rms_norm(c.eps), bpref.embedding(c.vocabulary, c.width)

    def J(params, x):
        ids, labels = x
        body = params["body"]

        def one(h, p):
            return block.forward(p, h)[0], None

        h = embed.forward(body["embed"], ids)[0]
        h, _ = jax.lax.scan(jax.checkpoint(one, policy=policy) if policy else one, h, body["blocks"])
        return head.forward(params["head"], (norm.forward(body["norm"], h)[0], labels))[0]

    return J


def compiling(name: str, seconds: float) -> list[dict[str, Any]]:
    """J and its gradient alone, which is what is derived, and a step, whose optimiser is the same for all."""
    work = DEEP[name]()

    def gradient(params, x):
        y, dparams, _ = bpref.backpropagate(work.objective, params, x)
        return cost(y), dparams

    of_gradient = {form: jax.value_and_grad(J) for form, J in losses(work).items()}
    of_step = {form: stepping(J) for form, J in losses(work).items()}
    given = work.params, ADAM.init(work.params), work.x
    return [
        *_compiling(f"{name}: J and its gradient", gradient, of_gradient, (work.params, work.x), seconds),
        *_compiling(f"{name}: a step", hand_step(work.objective), of_step, given, seconds),
    ]


def _compiling(
    name: str, by_hand: Callable, rivals: dict[str, Callable], given: tuple, seconds: float
) -> list[dict[str, Any]]:
    def lowering(f):
        return lambda: jax.jit(lambda *given: f(*given)).lower(*given)

    hand, rows = lowering(by_hand), []
    for rival, f in rivals.items():
        other = lowering(f)
        trace = paired(hand, other, repetitions(other, seconds, most=9, least=3))
        lowered = [(hand(), other()) for _ in range(3)]
        ours, theirs = (iter(programs) for programs in zip(*lowered, strict=True))
        compile_ = paired(lambda it=ours: next(it).compile(), lambda it=theirs: next(it).compile(), pairs=3, warm=0)
        rows.append({"work": name, "rival": rival, "lower": trace._asdict(), "compile": compile_._asdict()})
    return rows


GROWN = ("width", "depth", "batch", "length")
SMALLEST = {"width": 64, "depth": 2, "batch": 1, "length": 64}


def grown(size: str, doublings: int = 4) -> list[dict[str, Any]]:
    """gpt by hand, from small to 2 ** doublings as large in one of its sizes: bytes, and the least of times in turn."""
    steps = {}
    for times in (1 << i for i in range(doublings + 1)):
        sizes = SMALLEST | {size: times * SMALLEST[size]}
        c = gpt_config(256, sizes["width"], sizes["depth"], sizes["length"])
        x, J = tokens(c.vocabulary, sizes["batch"], c.context), gpt_objective(c)
        params = J.init(jax.random.key(0), x)
        steps[times] = program(hand_step(J), (params, ADAM.init(params), x))
    seconds = [[least_time(step.run, 2) for step in steps.values()] for _ in range(8)]
    return [
        {"times": times, "temp": step.temp, "seconds": min(of_step)}
        for (times, step), *of_step in zip(steps.items(), *seconds, strict=True)
    ]


def row_of(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def headed(*names: str) -> list[str]:
    return [row_of(*names), "| --- " * len(names) + "|"]


def tables(figures: dict[str, Any]) -> str:
    """What was written, in Markdown."""
    lines = headed("step of training", "beside", "time", "temp memory")
    shares = []
    for row in figures.get("steps", []):
        ratio, (hand, other) = Ratio(**row["time"]), row["temp"]
        if row["rival"] == "product":
            shares.append(f"{row['work']} {row['share']:.2f}")
            continue
        memory = "" if other is None else f"{hand / max(other, 1):.2f} of {other / 1e6:.1f} MB"
        lines.append(row_of(row["work"], row["rival"], f"{ratio} of {1e3 * ratio.other_seconds:.0f} ms", memory))
    if shares:
        lines += ["", f"Share of the machine's fastest product of matrices: {', '.join(shares)}."]
    if figures.get("front"):
        lines += ["", *headed("gpt", "`jax.checkpoint`", "temp MB", "time / by hand, kept")]
        for row in figures["front"]:
            lines.append(row_of(row["form"], row["policy"], f"{row['temp'] / 1e6:.0f}", _inverse(Ratio(**row["time"]))))
    if figures.get("compile"):
        lines += ["", *headed("to compile", "beside", "trace + lower", "compile")]
        for row in figures["compile"]:
            both = (f"{(r := Ratio(**row[k]))} of {r.other_seconds:.1f} s" for k in ("lower", "compile"))
            lines.append(row_of(row["work"], row["rival"], *both))
    if figures.get("growth"):
        lines += ["", *headed("gpt by hand, doubled in", "temp memory grows by", "time grows by")]
        for size, points in figures["growth"].items():
            ratios = (
                ", ".join(f"{b[field] / a[field]:.1f}" for a, b in itertools.pairwise(points))
                for field in ("temp", "seconds")
            )
            lines.append(row_of(size, *ratios))
    return "\n".join(lines)


def short(figures: dict[str, Any]) -> str:
    """Of gpt's front, of each form, the fastest policy and that of the least memory."""
    lines = headed("gpt", "fastest", "its temp memory", "least temp memory", "its time")
    for form in dict.fromkeys(row["form"] for row in figures["front"]):
        rows = [row for row in figures["front"] if row["form"] == form]
        fast = max(rows, key=lambda row: row["time"]["median"])
        least = min(rows, key=lambda row: row["temp"])
        times = (f"{1 / row['time']['median']:.2f}, {row['policy']}" for row in (fast, least))
        memory = (f"{row['temp'] / 1e6:.0f} MB" for row in (fast, least))
        (of_fast, of_least), (at_fast, at_least) = times, memory
        lines.append(row_of(form, of_fast, at_fast, at_least, of_least))
    return "\n".join(lines)


def _inverse(time: Ratio) -> str:
    """Rival / hand."""
    return f"{1 / time.median:.2f} ({1 / time.high:.2f}-{1 / time.low:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(WORK)}; all if none is given")
    parser.add_argument("--front", action="store_true", help="gpt under every policy of jax.checkpoint, and no steps")
    parser.add_argument("--compile", action="store_true", help="the time to compile, and no steps")
    parser.add_argument("--growth", action="store_true", help="gpt in growing sizes, and no steps")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each program is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to it")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the front and the growth there")
    given = parser.parse_args()
    figures: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    figures["machine"] = f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}"
    if given.front:
        figures["front"] = front(given.seconds)
    if given.compile:
        figures["compile"] = [row for name in DEEP for row in compiling(name, given.seconds)]
    if given.growth:
        figures["growth"] = {size: grown(size) for size in GROWN}
    of_parts = given.front or given.compile or given.growth or given.plot
    for name in given.names or ([] if of_parts else WORK):
        others = [row for row in figures.get("steps", []) if row["work"] != name]
        figures["steps"] = sorted(others + measure(name, given.seconds), key=lambda row: list(WORK).index(row["work"]))
        jax.clear_caches()
    print(tables(figures))
    if given.plot:
        plot(figures, given.plot)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
