"""What the chips of a TPU send each other for a gradient, by hand, by autodiff, and where nothing says how it lies.

    python -m benchmarks.bench_devices --json FILE [--only "gpt, fully sharded" ...]

Nothing is run, and no chip is needed: the compiler's program is read. Autodiff is of the same forward, which gathers
parameters where it uses them; "unsaid" is the gradient by hand of parameters that lie so, with no layer told, as GSPMD
propagates it. The large ones take minutes; of them each block's input alone is kept.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import lax

from bpref.devices.bounds import at_least, in_words
from bpref.devices.compiling import Compiled, compile_for, devices_of
from bpref.devices.divided import on_mesh
from bpref.devices.works import MODELS, Settings, of_objective
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


def unsaid(case: Case) -> Compiled:
    """By hand, with parameters, batch and gradients that lie as the layout says, and no word on anything in between."""
    J, x = MODELS[case.model](case.settings, len(devices_of(case.target)))
    layout = layout_of(case.layout, mesh_of(case.mesh, devices_of(case.target)), J, x)
    work = of_objective(J, x, case.settings.dtype)

    def placed(v: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)

    def sweep(params: Any, x: Any) -> Any:
        value, dparams = work.by_hand(params, x, ())
        return value, lax.with_sharding_constraint(dparams, layout.shardings)

    params = jax.tree.map(placed, work.arguments[0], layout.shardings)
    return compile_for(case.target, sweep, params, jax.tree.map(lambda v: placed(v, layout.of_batch(v)), x))


def measured(case: Case) -> dict[str, Any]:
    """By form, what the compiler says; in words where it does not fit."""
    both = on_mesh(case.model, case.target, case.mesh, case.layout, case.settings)
    forms = {"by hand": both.hand, "autodiff": both.autodiff}
    if case.also_unsaid:
        forms["unsaid"] = unsaid(case)
    return {form: v._asdict() if isinstance(v, Compiled) else v for form, v in forms.items()}


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
