"""`bpref check`: is somebody's hand-derived gradient right?"""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer

from bpref.cli.errors import UsageError
from bpref.cli.loading import Named, blaming, function, made_arguments, named, require_fitting
from bpref.cli.pages.check import page
from bpref.cli.pages.page import HtmlFile, Open, require_page, write_page
from bpref.cli.reports import deliver, require_writable, stdout_for_json, waiting
from bpref.layer import Layer
from bpref.nearest import require_known
from bpref.verify.check import check as check_gradient
from bpref.verify.numbers.points import generator
from bpref.verify.options import seed_of
from bpref.verify.searching.search import search as search_for_a_failure
from bpref.verify.searching.specs import DTYPES, WIDE, ArraySpec, parse_specs, parse_templates
from bpref.verify.torch_front import as_tensors, is_written_in_torch

INTEGERS = 1000
"""The stream of random numbers that integers with a bound are drawn from; no check draws from it."""

EXAMPLE = (
    'Examples: bpref check norms:rms_norm --args "f32[16,32] f32[32]" | '
    "bpref check kernels.py:silu --args kernels:make_args --backward silu_backward --reference jax.nn:silu | "
    'bpref check norms:rms_norm --args "f32|bf16[N,d] f32[d]" --search 30'
)

Target = Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="What to check; FILE.py:FUNCTION too.")]
Arguments = Annotated[
    str,
    typer.Option(
        "--args",
        help='Shapes, such as "f32[16,32] f32[32]"; "i32[8]<100", integers below 100; constants, such as '
        "\"0.1 true none 'mean' (2, 2)\"; or MODULE:FUNCTION that makes the tuple.",
    ),
]
JsonFile = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the report there; - for stdout.")]
Key = Annotated[int | None, typer.Option(min=0, help="The seed of all random values. [default: a new one]")]


def check(
    target: Target,
    args: Arguments,
    backward: Annotated[
        str | None, typer.Option(metavar="[MODULE:]NAME", help="(args, dy) -> cotangents, if there is no custom_vjp.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="[MODULE:]NAME", help="What the oracle differentiates instead.")
    ] = None,
    search: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Look for a failing case so long; --args then names sizes: f32[N,d]."),
    ] = None,
    dtypes: Annotated[
        str | None, typer.Option(help="Measure the precision in these, such as f32,bf16. [default: those of --args]")
    ] = None,
    framework: Annotated[
        str | None, typer.Option(metavar="torch|jax", help="Whose arrays it takes. [default: found out]")
    ] = None,
    cross_check: Annotated[
        bool | None,
        typer.Option(help="Hold the oracle itself against finite differences. [default: in a search]"),
    ] = None,
    key: Key = None,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
    show: Open = False,
) -> int:
    """Check a hand-derived gradient; exit code 0 right, 1 wrong or imprecise, 2 wrong use, 3 cannot tell.

    MODULE:FUNCTION names a custom_vjp or custom_jvp function, a function that contains such rules, a Layer; PyTorch's
    Function.apply or a function that calls one; or, with --backward, any function. The current directory is looked in
    first, and its src/.
    """
    require_writable(json_file)
    require_page("--html", html_file, show)
    if search is not None and not search > 0:
        raise UsageError(f"--search {search:g}: expected seconds, more than 0")
    if search is not None and dtypes is not None:
        raise UsageError("--dtypes goes with a single check; for --search write them into --args: f32|bf16[N,d]")
    working = None if dtypes is None else parse_dtypes(dtypes)
    with stdout_for_json(json_file):
        fun = target_named(target)
        key = seed_of("--key", key)
        values = arguments(args, fun.module, key, is_search=search is not None)
        require_fitting(target, fun.value, values)
        if search is not None and is_of_torch(fun.value, framework) != is_written_in_torch(fun.value):
            raise UsageError(
                f"--framework {framework}: a search finds out by itself, and {target} does not look like it"
            )
        if is_of_torch(fun.value, framework):
            values = as_tensors(values) if search is None else values
        hand: dict[str, Any] = {
            name: function(text, f"--{name}", fun.module).value
            for name, text in (("reference", reference), ("backward", backward))
            if text is not None
        }
        if cross_check is not None:
            hand["cross_check"] = cross_check
        with as_wide_as(args), blaming(target):
            if search is None:
                with waiting("checking"):
                    report = check_gradient(fun.value, *values, **hand, key=key, dtypes=working)
            else:
                with waiting(f"searching, for {search:g} s at most"):
                    specs = values if names_a_function(args) else args
                    report = search_for_a_failure(fun.value, specs, **hand, seconds=search, key=key)
    write_page("--html", html_file, page(report), show)
    return deliver(report, json_file)


def is_of_torch(fun: object, framework: str | None) -> bool:
    """Whether it takes tensors: as `--framework` says, else as the file that it stands in looks."""
    if framework is None:
        return is_written_in_torch(fun)
    try:
        require_known("framework", framework, ("torch", "jax"))
    except ValueError as error:
        raise UsageError(f"--framework: {error}") from error
    return framework == "torch"


def target_named(text: str) -> Named:
    """What is to be checked: something that can be called, or a `Layer`."""
    found = named(text)
    return found if isinstance(found.value, Layer) else function(text)


def arguments(text: str, home: str, key: int, is_search: bool = False) -> tuple:
    """`--args`: specifications and constants, templates of them for a search, or what the function that it names
    returns.
    """
    if names_a_function(text):
        return made_arguments(text, home)
    try:
        return parse_templates(text) if is_search else parse_specs(text, generator(key, INTEGERS))
    except ValueError as error:
        raise UsageError(f"--args: {error}") from error


def parse_dtypes(text: str) -> list[jnp.dtype]:
    """`f32,bf16` as dtypes."""
    names = text.replace(",", " ").replace("|", " ").split()
    try:
        for name in names:
            require_known("dtype", name, [name] if name in DTYPES.values() else DTYPES)
    except ValueError as error:
        raise UsageError(f"--dtypes: {error}") from error
    dtypes = [jnp.dtype(DTYPES.get(name, name)) for name in names]
    odd = next((name for name, d in zip(names, dtypes, strict=True) if not jnp.issubdtype(d, jnp.floating)), None)
    if odd or not names:
        raise UsageError(f"--dtypes: {text!r}: expected floating-point dtypes, such as f32,bf16")
    return dtypes


def names_a_function(text: str) -> bool:
    """Whether `--args` names what makes the arguments: it has a colon that stands in no quotes."""
    return ":" in re.sub(r"""'[^']*'|"[^"]*\"""", "", text)


def as_wide_as(text: str) -> AbstractContextManager:
    """A context in which arrays of the dtypes in `--args` stay what they are: with x64 for float64 and its like."""
    specs = () if names_a_function(text) else parse_templates(text)
    dtypes = {dtype for spec in specs if isinstance(spec, ArraySpec) for dtype in spec.dtypes}
    return jax.enable_x64(True) if dtypes.intersection(WIDE) else nullcontext()
