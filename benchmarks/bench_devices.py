"""What the chips of a TPU send each other for a gradient, by hand, by autodiff, and where nothing says how it lies.

    python -m benchmarks.bench_devices --json FILE [--only "gpt, fully sharded" ...]

Nothing is run, and no chip is needed: the compiler's program is read. Autodiff is of the same forward, which gathers
parameters where it uses them; "unsaid" is the gradient by hand of parameters that lie so, with no layer told, as GSPMD
propagates it. The large ones take minutes; of them each block's input alone is kept, by autodiff through
`jax.checkpoint`.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import lax

from bpref.devices.bounds import at_least, in_words
from bpref.devices.compiling import Compiled, compile_for, devices_of
from bpref.devices.works import MODELS, Settings, of_objective
from bpref.layer import Layer, map_leaves
from bpref.sharding.laid_out import laid_out
from bpref.sharding.layout import layout_of
from bpref.sharding.mesh import mesh_of


class Case(NamedTuple):
    """A model over a mesh, and whether it is compiled unsaid too."""

    model: str
    target: str
    mesh: str
    layout: str
    settings: Settings = Settings()
    also_unsaid: bool = False


LARGE = Settings(batch=1, length=4096, remat=True, dtype="bfloat16")
CASES = {
    "gpt, replicated": Case("gpt", "tpu-v5e:4x4", "data=16", "replicated"),
    "gpt, fully sharded": Case("gpt", "tpu-v5e:4x4", "data=16", "fully-sharded", also_unsaid=True),
    "Llama 2 7B, fully sharded": Case("llama-2-7b", "tpu-v5e:16x16", "data=256", "fully-sharded", LARGE),
    "Llama 2 70B, fully sharded": Case("llama-2-70b", "tpu-v5p:16x16x16", "data=4096", "fully-sharded", LARGE),
}


def measured(case: Case) -> dict[str, Any]:
    """By form, what the compiler says; in words where it does not fit."""
    J, x = MODELS[case.model](case.settings, len(devices_of(case.target)))
    layout = layout_of(case.layout, mesh_of(case.mesh, devices_of(case.target)), J, x)
    told = of_objective(laid_out(J, layout), x, case.settings.dtype)
    forms = {"by hand": told.by_hand, "autodiff": told.by_autodiff}
    if case.settings.remat:
        again = map_leaves(checkpointed, laid_out(J, layout))
        forms["autodiff"] = of_objective(again, x, case.settings.dtype).by_autodiff
    if case.also_unsaid:
        forms["unsaid"] = of_objective(J, x, case.settings.dtype).by_hand
    given = jax.tree.map(placed, (told.arguments[0], x), (layout.shardings, jax.tree.map(layout.of_batch, x)))

    def compiled(f: Callable[..., Any]) -> Any:
        def sweep(params: Any, x: Any) -> Any:
            value, dparams = f(params, x, ())
            return value, lax.with_sharding_constraint(dparams, layout.shardings)

        try:
            return compile_for(case.target, sweep, *given)._asdict()
        except MemoryError as error:
            return str(error)

    return {form: compiled(f) for form, f in forms.items()}


def placed(v: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)


def checkpointed(leaf: Layer) -> Layer:
    """A block whose forward autodiff runs again, as `jax.checkpoint` has it: inputs alone are kept."""
    if leaf.name != "transformer_block":
        return leaf
    again = jax.checkpoint(lambda params, x: leaf.forward(params, x)[0])
    return leaf._replace(forward=lambda params, x: (again(params, x), ()))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A line for each, bytes of one chip."""
    lines = [
        "| | chips | | sent | temp memory | parameters and gradients | collectives | at the chip's peaks |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (name for name in CASES if name in rows):
        for form, v in rows[name].items():
            target = CASES[name].target
            lines.append(f"| {' | '.join([name, target.removeprefix('tpu-'), form, *cells(target, v)])} |")
    return "\n".join(lines)


def cells(target: str, v: Any) -> list[str]:
    """Those of one form."""
    if isinstance(v, str):
        return ["", "does not fit", "", "", ""]
    chips = math.prod(map(int, target.split(":")[1].split("x")))
    bound = in_words(at_least(target, Compiled(**v), chips))
    sizes = (f"{n / 1e6:,.1f} MB" for n in (v["sent"], v["temp"], v["arguments"] + v["outputs"]))
    return [*sizes, ", ".join(f"{n} {kind}" for kind, n in sorted(v["collectives"].items())), bound]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    for name in arguments.only:
        rows = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        rows[name] = measured(CASES[name])
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(table({name: rows[name]}), flush=True)
