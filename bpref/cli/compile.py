"""`bpref compile`: what rules and models take on a TPU or a GPU that is not there, as its compiler says."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from bpref.cli.errors import UsageError, blaming_the_input
from bpref.cli.writing import require_writable, write
from bpref.devices.bounds import at_least, in_words
from bpref.devices.compiling import Compiled, devices_of
from bpref.devices.divided import on_mesh
from bpref.devices.targets import CARDS, EXTRAS, TPUS, target
from bpref.devices.works import GPTS, MODEL, MODELS, SMALL, USUAL, Beside, Settings, beside, known
from bpref.dtypes import floating_dtype
from bpref.nearest import require_known
from bpref.rules import ON_ONE_DEVICE, RULES
from bpref.sharding.layout import LAYOUTS
from bpref.sharding.mesh import mesh_of

EXAMPLE = "Examples: bpref compile gpt --for tpu-v5e --remat | bpref compile ctc crf --for h100 --json figures.json"

HEADERS = ("by hand / by autodiff of the same forward", "temp memory", "bytes accessed", "flops", "cycles")
WIDTHS = (30, 30, 6, 6)


def compile(
    for_: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="TARGET",
            help=f"One of {', '.join([*TPUS, *CARDS])}: one chip; or many, as tpu-v5p:4x4x4, h100:8, h100:2x8 (hosts "
            "by cards), the examples divided among them.",
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Rules and models, such as ctc, gpt, resnet50, llama-2-7b. [default: all small ones]",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="A model's examples, on each chip. [default: by model]")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Of the sequences of a model of text.")] = None,
    remat: Annotated[
        bool, typer.Option("--remat", help="By hand, keep each block's input alone: gpt and mixture.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of parameters and inputs: float32 or bfloat16.")] = "float32",
    implementation: Annotated[
        str, typer.Option(help="By hand, of attention and loss of gpt on one TPU: xla, or pallas, kernels.")
    ] = "xla",
    mesh: Annotated[
        str | None, typer.Option(help="How a model's devices lie, such as data=16 or data=8,model=2. [default: data]")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Of parameters there: replicated, fully-sharded or tensor. [default: replicated]")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Add the figures to those there.")
    ] = None,
) -> int:
    """Compile forward and backward for a TPU or a GPU, neither of which is needed: by hand, and by autodiff.

    Bytes are of one chip: what the compiler allocates beside inputs and outputs, and what the program reads from and
    writes to the chip's memory, a loop's as often as it runs. Flops are those of the program as it was written, cycles
    the compiler's estimate, where it gives one. Below 1 is better by hand.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing is run, and no device of this machine is to be taken
    with blaming_the_input():
        chosen = list(dict.fromkeys(map(known, names or [*ON_ONE_DEVICE, *SMALL])))
        narrow = str(np.dtype(floating_dtype("compile", "dtype", dtype)))
        require_known("implementation", implementation, ("xla", "pallas"))
        given = Settings(batch, length, remat, narrow, implementation)
        if implementation != USUAL.implementation and (for_ not in TPUS or not set(chosen) <= set(GPTS)):
            raise UsageError(f"--implementation {implementation} is of gpt and its published shapes, on one TPU")
        require_models(chosen, {"batch": batch, "length": length, "remat": remat or None, "mesh": mesh})
        if layout is not None and mesh is None:
            raise UsageError("--layout goes with --mesh, how the devices lie")
        divided = None if mesh is None else (mesh, layout or LAYOUTS[0])
        if divided is not None and json_file is not None:
            raise UsageError("--json keeps no figures of a --mesh; leave one of them out")
        try:
            platform = target(for_).platform
            if mesh is not None:
                mesh_of(mesh, devices_of(for_))
        except ImportError as error:
            raise UsageError(str(error)) from error
    if json_file is not None:
        require_writable("--json", json_file)
    compiler = EXTRAS[platform][1]
    machine = {"target": for_, "jax": version("jax"), "compiler": f"{compiler} {version(compiler)}"}
    print(f"{for_}, jax {machine['jax']}, {machine['compiler']}\n\n{line(HEADERS)}", flush=True)
    rows: dict[str, Beside] = {}
    others = plain_rows(json_file, machine, given) if json_file is not None else {}
    for name in chosen:
        with blaming_the_input():
            rows[name] = beside(name, for_, given) if divided is None else on_mesh(name, for_, *divided, given)
        for text in lines(name, rows[name]):
            print(text, flush=True)
        hand = rows[name].hand
        if divided is not None and isinstance(hand, Compiled):
            times = at_least(for_, hand, len(devices_of(for_)))
            print(f"  by hand, at the chip's peaks: {in_words(times) or 'not known'}", flush=True)
        jax.clear_caches()
        if json_file is not None:
            write("--json", json_file, as_json(machine, given, others | plain(rows)))
    if len(rows) > 1:
        print(f"\n{summary(rows)}")
    return 0


def require_models(chosen: list[str], options: dict[str, object]) -> None:
    """Raise for a setting of models where none is compiled."""
    if not any(name in MODELS for name in chosen):
        for option, value in options.items():
            if value is not None:
                raise UsageError(f"--{option} goes with a model, such as {', '.join(SMALL)}")


def lines(name: str, row: Beside) -> Iterator[str]:
    """A row of the table, what both programs send between chips, and what does not fit."""
    title = f"{name} ({row.size})" if row.kind == MODEL and row.size else name
    hand, autodiff = row.hand, row.autodiff
    if isinstance(hand, Compiled) and isinstance(autodiff, Compiled):
        temp, accessed, flops, cycles = (
            (getattr(hand, k), getattr(autodiff, k)) for k in ("temp", "accessed", "flops", "cycles")
        )
        yield line((title, of_bytes(temp), of_bytes(accessed), ratio(flops), ratio(cycles)))
    else:
        yield line((title, of_bytes((getattr(hand, "temp", None), getattr(autodiff, "temp", None)))))
    for how, v in (("by hand", hand), ("by autodiff", autodiff)):
        if isinstance(v, str):
            yield f"  {how}: {v}"
        elif v.collectives:
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(v.collectives.items()))
            yield f"  {how}: {kinds}; {v.sent / 1e6:,.2f} MB sent by each device"


def line(cells: tuple[str, ...]) -> str:
    first, *others = cells
    padded = (f"{cell:>{width}}" for cell, width in zip(others, WIDTHS, strict=False))
    return "  ".join([f"{first:44}", *padded]).rstrip()


def of_bytes(both: tuple[float | None, float | None]) -> str:
    """`3.1 MB / 163.2 MB 0.02`; where one does not fit, no ratio."""
    texts = " / ".join("-" if v is None else f"{v / 1e6:,.2f} MB" for v in both)
    return texts if None in both else f"{texts} {ratio(both):>5}"


def ratio(both: tuple[float | None, float | None]) -> str:
    hand, autodiff = both
    if hand is None or not autodiff:
        return "1.00" if hand == autodiff == 0 else ""
    return f"{hand / autodiff:.2f}"


def summary(rows: dict[str, Beside]) -> str:
    """Geometric means over what fits on both sides, and needs any."""
    whole = [
        (r.hand, r.autodiff) for r in rows.values() if isinstance(r.hand, Compiled) and isinstance(r.autodiff, Compiled)
    ]
    said = []
    for field, called in (("temp", "temp memory"), ("accessed", "bytes accessed"), ("cycles", "cycles")):
        both = [(getattr(h, field), getattr(a, field)) for h, a in whole]
        logs = [np.log(h / a) for h, a in both if h and a]
        if logs:
            said.append(f"{called} {np.exp(np.mean(logs)):.2f} (of {len(logs)} where both need any)")
    return f"{len(rows)} compiled; geometric means, by hand / by autodiff: {', '.join(said)}"


def plain(rows: dict[str, Beside]) -> dict[str, dict[str, object]]:
    """As JSON has them."""
    as_dicts = {name: row._asdict() for name, row in rows.items()}
    for row in as_dicts.values():
        row |= {side: v._asdict() if isinstance(v := row[side], Compiled) else v for side in ("hand", "autodiff")}
    return as_dicts


def plain_rows(file: Path, machine: dict[str, str], settings: Settings) -> dict[str, dict[str, object]]:
    """Those of an earlier run of the same compiler with the same settings."""
    try:
        found = json.loads(file.read_text())
        were = USUAL._asdict() | found["settings"]
        return found["rows"] if [found["machine"], were] == [machine, settings._asdict()] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def as_json(machine: dict[str, str], settings: Settings, rows: dict[str, dict[str, object]]) -> str:
    """One row a line, in the order of the catalogue."""
    ordered = {name: rows[name] for name in [*RULES, *MODELS] if name in rows}
    of_rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in ordered.items())
    before = f'{{"machine": {json.dumps(machine)},\n"settings": {json.dumps(settings._asdict())},\n"rows": {{'
    return f"{before}\n{of_rows}\n}}}}\n"
