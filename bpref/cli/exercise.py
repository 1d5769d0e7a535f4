"""`bpref exercise`: a derivation whose backward is missing, for a reader to write and `bpref check` to judge."""

from pathlib import Path
from typing import Annotated

import typer

from bpref.cli.errors import UsageError, blaming_the_input
from bpref.cli.writing import require_writable, write
from bpref.nearest import meant
from bpref.rules import RULES, other_names
from bpref.tasks.exercise import exercise as written
from bpref.tasks.source import NotAlone

EXAMPLE = "Example: bpref exercise layer_norm"


def exercise(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A rule, such as linear or gelu.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.py", help="Where it is written. [default: NAME_exercise.py]")
    ] = None,
) -> int:
    """Write a rule as an exercise: the forward's derivation and code, and a backward to fill in."""
    with blaming_the_input():
        rule = RULES[meant("rule", name, RULES, other_names())]
    file = out or Path(f"{rule.name}_exercise.py")
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UsageError(f"--out {file}: expected the name of a Python file")
    if file.exists():
        raise UsageError(f"{file} is there already; it stays as it is")
    require_writable("--out", file)
    try:
        text = written(rule)
    except NotAlone as error:
        raise UsageError(f"there is no exercise for {rule.name}: {error}") from error
    write("--out", file, text.replace("{file}", str(file)))
    print(f"{file}: write its backward, then\n  bpref check {file}:forward --backward backward --args {file}:make_args")
    return 0
