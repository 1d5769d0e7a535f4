"""A step of training every model: by hand, beside autodiff of the same forward, of a plain form, and other libraries.

    python -m benchmarks.bench_models [NAME ...] [--front] [--compile] [--seconds 10] [--json FILE]

A step is J, its gradient and optax's Adam, jitted where it is JAX's. Each figure is a ratio hand / rival, below 1 is
better: of times, in one process and in turn, with the quartiles; and of the memory that XLA allocates beside inputs and
outputs. The front is gpt under every policy of `jax.checkpoint`. `--compile` is the time to trace and lower, and to
compile. The share is of the products that the model needs at least, in the time that this machine's fastest product of
matrices would take, measured in turn as well. A JSON file is added to.
"""

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpref
from benchmarks import library_models, plain_models
from benchmarks.contest import OWN
from benchmarks.library_models import ADAM, Jitted, stepping
from benchmarks.paired import Ratio, beside_each, paired, repetitions
from benchmarks.sequence_blocks import POLICIES
from bpref.models.gpt import GptConfig, gpt_objective
from bpref.models.mixture import MixtureConfig, mixture_objective
from bpref.models.text import text_model

RNG = np.random.default_rng(0)
PRODUCT = 1024
"""The matrices whose product says what the machine can do are so wide."""


class Work(NamedTuple):
    """A model and all that it is compared with.

    Attributes:
      objective, params, x: what is trained, and on what.
      forms: `(params, x) -> J` on the same params, by name: autodiff of each is a rival.
      jitted: other libraries' steps in JAX.
      steps: steps that are called as they are.
      products: multiplications that a step needs at least, where they are counted.
    """

    objective: bpref.Layer
    params: Any
    x: Any
    forms: Mapping[str, Callable[[Any, Any], Any]]
    jitted: Mapping[str, Callable[[], Jitted]] = {}
    steps: Mapping[str, Callable[[], Callable[[], Any]]] = {}
    products: float | None = None


def mlp(depth: int = 8, width: int = 512, examples: int = 256) -> Work:
    widths = [width] * (depth + 1)
    hidden = [layer for n in widths[1:-1] for layer in (bpref.linear(n), bpref.tanh())]
    J = bpref.objective(bpref.serial(*hidden, bpref.linear(width)), bpref.softmax_cross_entropy())
    x = RNG.normal(size=(examples, width)).astype(np.float32), RNG.integers(width, size=examples).astype(np.int32)

    def plain(params, x):
        A, labels = x
        for p in params[0][:-1:2]:
            A = jnp.tanh(A @ p.W.T + p.b)
        last = params[0][-1]
        return optax.softmax_cross_entropy_with_integer_labels(A @ last.W.T + last.b, labels).mean()

    return Work(
        J,
        J.init(jax.random.key(0), x),
        x,
        {"plain form": plain},
        {"Flax NNX": partial(library_models.nnx_mlp, widths, x), "Equinox": partial(library_models.eqx_mlp, widths, x)},
        {
            "PyTorch eager": partial(library_models.torch_mlp, widths, x),
            "PyTorch compiled": partial(library_models.torch_mlp, widths, x, compiles=True),
        },
        products=examples * width**2 * (3 * depth - 1),
    )


def tokens(vocabulary: int, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and those that follow."""
    text = RNG.integers(vocabulary, size=(B, T + 1)).astype(np.int32)
    return text[:, :-1], text[:, 1:]


def gpt_config(vocabulary: int = 8192, width: int = 256, depth: int = 8, T: int = 256) -> GptConfig:
    return GptConfig(vocabulary, width, depth, width // 64 or 1, 8 * width // 3 // 8 * 8, T)


def gpt(config: GptConfig | None = None, B: int = 4) -> Work:
    c = config or gpt_config()
    x = tokens(c.vocabulary, B, c.context)
    J = gpt_objective(c)
    params = J.init(jax.random.key(0), x)
    forms = {
        "plain form": plain_models.gpt(c),
        "plain form, jax.nn.dot_product_attention": plain_models.gpt(c, plain_models.of_jax),
    }
    return Work(
        J,
        params,
        x,
        forms,
        {"Flax NNX": partial(library_models.nnx_gpt, c, x), "Equinox": partial(library_models.eqx_gpt, c, x)},
        {
            "PyTorch eager": partial(library_models.torch_gpt, c, params, x),
            "PyTorch compiled": partial(library_models.torch_gpt, c, params, x, compiles=True),
        },
        products=of_gpt(c, B),
    )


def of_gpt(c: GptConfig, B: int) -> float:
    """Three times those of the forward; half of the T x T logits are not seen."""
    of_block = 4 * c.width**2 + 3 * c.width * c.hidden + c.context * c.width
    return 3 * B * c.context * (c.depth * of_block + c.vocabulary * c.width)


def mixture(B: int = 4, T: int = 128, width: int = 128) -> Work:
    c = MixtureConfig(vocabulary=512, width=width, depth=2, heads=4, hidden=2 * width, experts=8, window=None)
    x, J = tokens(c.vocabulary, B, T), mixture_objective(c)
    return Work(J, J.init(jax.random.key(0), x), x, {"every expert on every token": plain_models.mixture(c)})


def text(name: str, block: Callable[[Any, Any], Any], B: int = 8, T: int = 128, width: int = 128) -> Work:
    x, J = tokens(256, B, T), text_model(name, 256, T, width, depth=2, heads=4).objective
    return Work(J, J.init(jax.random.key(0), x), x, {"plain form": plain_models.of_blocks(block)})


def images(network: bpref.Layer, logits: Callable[[Any, Any], Any], shape: tuple[int, ...], classes: int = 10) -> Work:
    """A network of images; one with state has it beside x."""
    J = bpref.objective(network, bpref.softmax_cross_entropy())
    data = RNG.normal(size=shape).astype(np.float32), RNG.integers(classes, size=shape[0]).astype(np.int32)
    params, state = bpref.begin(J, jax.random.key(0), data)
    has_state = bool(jax.tree.leaves(state))

    def plain(params, x):
        inputs, labels = x.x if has_state else x
        return optax.softmax_cross_entropy_with_integer_labels(logits(params[0], inputs), labels).mean()

    return Work(J, params, bpref.With(data, state) if has_state else data, {"plain form": plain})


WORK: dict[str, Callable[[], Work]] = {
    "mlp": mlp,
    "lenet": lambda: images(bpref.lenet(), plain_models.lenet, (64, 28, 28, 1)),
    "resnet": lambda: images(
        bpref.resnet((2, 2, 2), 10, 16, small=True), partial(plain_models.resnet, small=True), (32, 16, 16, 3)
    ),
    "lstm": lambda: text("lstm", plain_models.lstm_block),
    "mamba": lambda: text("mamba", plain_models.mamba),
    "mixture": mixture,
    "gpt": gpt,
}


def cost(y: Any) -> Any:
    """J, of what an objective gives: one with state gives it too."""
    return y[0] if isinstance(y, tuple) else y


def hand_step(objective: bpref.Layer) -> Callable[..., Any]:
    def step(params, state, x):
        y, dparams, _ = bpref.backpropagate(objective, params, x)
        updates, state = ADAM.update(dparams, state, params)
        return cost(y), optax.apply_updates(params, updates), state

    return step


def own_step(objective: bpref.Layer, policy: Any = None) -> Callable[..., Any]:
    return stepping(lambda params, x: cost(objective.forward(params, x)[0]))


class Program(NamedTuple):
    """A step, compiled: the bytes beside inputs and outputs, a call of it that waits, and J of the first."""

    temp: int | None
    run: Callable[[], Any]
    J: float


def program(step: Callable[..., Any], arguments: tuple[Any, ...]) -> Program:
    """Params and the optimiser's state are donated and taken further, as in training: no output is room for `temp`."""
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    held, x = jax.tree.map(jnp.array, arguments[:2]), jax.tree.map(jnp.asarray, arguments[2])

    def run():
        nonlocal held
        J, *held = compiled(*held, x)
        return jax.block_until_ready(J)

    return Program(memory.temp_size_in_bytes if memory else 0, run, float(run()))


def programs(work: Work) -> dict[str, Program]:
    """By hand first, then autodiff of the own forward, then all others."""
    given = work.params, ADAM.init(work.params), work.x
    made = {"by hand": program(hand_step(work.objective), given), OWN: program(own_step(work.objective), given)}
    made |= {name: program(stepping(J), given) for name, J in work.forms.items()}
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
    compiled = jax.jit(lambda A: A @ A).lower(A).compile()
    return Program(None, lambda: jax.block_until_ready(compiled(A)), 0.0)


def measure(name: str, seconds: float) -> list[dict[str, Any]]:
    work = WORK[name]()
    made = programs(work)
    if work.products:
        made["product"] = product()
    hand, *others = made.values()
    rounds = min(repetitions(p.run, seconds, least=7) for p in made.values())
    times = beside_each([p.run for p in (hand, *others)], rounds, warm=2)
    rows = []
    for (rival, other), time in zip(list(made.items())[1:], times, strict=True):
        row = {"work": name, "rival": rival, "time": time._asdict(), "temp": (hand.temp, other.temp)}
        if rival == "product":
            row["share"] = work.products / PRODUCT**3 / time.median
        rows.append(row)
    return rows


def front(seconds: float) -> list[dict[str, Any]]:
    """gpt by hand, kept and recomputed, and by autodiff of three forwards under every policy."""
    c = gpt_config()
    x = tokens(c.vocabulary, 4, c.context)
    J = gpt_objective(c)
    given = (params := J.init(jax.random.key(0), x)), ADAM.init(params), x
    made = {
        ("by hand", "kept"): program(hand_step(J), given),
        ("by hand", "remat"): program(hand_step(gpt_objective(c, remat=True)), given),
    }
    for policy in ("none", *POLICIES):
        own = own_step(J) if policy == "none" else stepping(own_under(c, POLICIES[policy]))
        made["own forward", policy] = program(own, given)
        for name, attention in (("plain form", plain_models.all_logits), ("plain, jax.nn's", plain_models.of_jax)):
            form = plain_models.gpt(c, attention, POLICIES.get(policy))
            made[name, policy] = program(stepping(form), given)
    hand, *others = made.values()
    np.testing.assert_allclose([p.J for p in others], hand.J, rtol=1e-4)
    rounds = min(repetitions(p.run, seconds, least=7) for p in made.values())
    times = beside_each([hand.run, *(p.run for p in others)], rounds, warm=1)
    one = Ratio(1.0, 1.0, 1.0, times[0].hand_seconds, times[0].hand_seconds)
    return [
        {"form": form, "policy": policy, "temp": p.temp, "time": time._asdict()}
        for ((form, policy), p), time in zip(made.items(), [one, *times], strict=True)
    ]


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
        h, _ = jax.lax.scan(jax.checkpoint(one, policy=policy), h, body["blocks"])
        return head.forward(params["head"], (norm.forward(body["norm"], h)[0], labels))[0]

    return J


DEEP = {"mlp of 64 layers": lambda: mlp(64, 128, 128), "gpt of 24 blocks, unrolled": lambda: unrolled(24)}


def unrolled(depth: int) -> Work:
    """A GPT whose blocks are no scan."""
    c = gpt_config(512, 64, depth, 64)
    x = tokens(c.vocabulary, 2, c.context)
    block = bpref.transformer_block(c.heads, c.hidden, eps=c.eps)
    body = bpref.serial(
        embed=bpref.embedding(c.vocabulary, c.width), blocks=bpref.serial(*[block] * depth), norm=bpref.rms_norm(c.eps)
    )
    J = bpref.objective(body=body, head=bpref.fused_linear_cross_entropy(c.vocabulary))

    def plain(params, x):
        ids, labels = x
        body = params["body"]
        h = body["embed"].W[ids]
        for p in body["blocks"]:
            h = plain_models.gated(p.mlp, plain_models.attended(c, p.attention, h, plain_models.all_logits), c.eps)
        h = plain_models.rms_norm(body["norm"].scale, h, c.eps)
        return plain_models.cross_entropy(h, params["head"].W, labels)

    return Work(J, J.init(jax.random.key(0), x), x, {"plain form": plain})


def compiling(name: str) -> list[dict[str, Any]]:
    work = DEEP[name]()
    given = work.params, ADAM.init(work.params), work.x

    def lowering(step):
        return lambda: jax.jit(lambda *given: step(*given)).lower(*given)

    hand = lowering(hand_step(work.objective))
    rivals = {OWN: own_step(work.objective)} | {form: stepping(J) for form, J in work.forms.items()}
    rows = []
    for rival, step in rivals.items():
        other = lowering(step)
        trace = paired(hand, other, pairs=9)
        lowered = [(hand(), other()) for _ in range(4)]
        ours, theirs = (iter(programs) for programs in zip(*lowered, strict=True))
        compile_ = paired(lambda it=ours: next(it).compile(), lambda it=theirs: next(it).compile(), pairs=3)
        rows.append({"work": name, "rival": rival, "lower": trace._asdict(), "compile": compile_._asdict()})
    return rows


def row_of(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def headed(*names: str) -> list[str]:
    return [row_of(*names), "| --- " * len(names) + "|"]


def tables(figures: dict[str, Any]) -> str:
    """What was written, in Markdown."""
    lines = headed("step of training", "beside", "time", "temp memory")
    shares = []
    for row in figures.get("steps", []):
        time, (hand, other) = Ratio(**row["time"]), row["temp"]
        if row["rival"] == "product":
            shares.append(f"{row['work']} {row['share']:.2f}")
            continue
        memory = "" if other is None else f"{hand / max(other, 1):.2f} of {other / 1e6:.1f} MB"
        lines.append(row_of(row["work"], row["rival"], f"{time} of {1e3 * time.other_seconds:.0f} ms", memory))
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
    return "\n".join(lines)


def _inverse(time: Ratio) -> str:
    """Rival / hand."""
    return f"{1 / time.median:.2f} ({1 / time.high:.2f}-{1 / time.low:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(WORK)}; all if none is given")
    parser.add_argument("--front", action="store_true", help="gpt under every policy of jax.checkpoint, and no steps")
    parser.add_argument("--compile", action="store_true", help="the time to compile, and no steps")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each program is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to it")
    given = parser.parse_args()
    figures: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    figures["machine"] = f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}"
    if given.front:
        figures["front"] = front(given.seconds)
    if given.compile:
        figures["compile"] = [row for name in DEEP for row in compiling(name)]
    for name in given.names or ([] if given.front or given.compile else WORK):
        others = [row for row in figures.get("steps", []) if row["work"] != name]
        figures["steps"] = sorted(others + measure(name, given.seconds), key=lambda row: list(WORK).index(row["work"]))
        jax.clear_caches()
    print(tables(figures))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
