"""`bpref tasks` and `bpref judge`: rules as problems for somebody else to solve, and the verdict on a solution."""

from pathlib import Path
from typing import Annotated

import typer

from bpref.cli.errors import UsageError, blaming_the_input
from bpref.cli.reports import EXIT_CODES, deliver_text, require_writable, stdout_for_json, waiting
from bpref.nearest import meant, require_known
from bpref.rule import Rule
from bpref.rules import RULES, other_names
from bpref.tasks.judge import NO_DERIVATION
from bpref.tasks.judge import judge as judge_solution
from bpref.tasks.source import NotAlone
from bpref.tasks.writing import ABOUT, write_task
from bpref.train.keeping.begun import json_object
from bpref.verify.options import seed_of

TASKS_EXAMPLE = "Example: bpref tasks --out problems linear rms_norm"
JUDGE_EXAMPLE = "Example: bpref judge problems/linear problems/linear/solution.py --json -"
FRAMEWORKS = ("jax", "torch")


def tasks(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the folders are made, one for each rule.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Rules. [default: all]")] = None,
    framework: Annotated[str, typer.Option(metavar="jax|torch", help="Whose arrays a solution takes.")] = "jax",
) -> int:
    """Write rules as tasks: the naive forward, shapes and dtypes, a solution to fill in; no backward."""
    if framework not in FRAMEWORKS:
        raise UsageError(f"--framework {framework}: expected one of {', '.join(FRAMEWORKS)}")
    with blaming_the_input():
        chosen = list(dict.fromkeys(meant("rule", name, RULES, other_names()) for name in names or RULES))
        with waiting("writing"):
            left_out = [name for name in chosen if not _is_written(out / name, name, framework, bool(names))]
    count = len(chosen) - len(left_out)
    print(f"{count} task{'s' * (count != 1)} in {out}")
    if left_out:
        print(f"left out, since they are made of other layers: {', '.join(left_out)}")
    return 0


def _is_written(folder: Path, name: str, framework: str, is_asked_for: bool) -> bool:
    try:
        write_task(folder, RULES[name], framework)
    except NotAlone as error:
        if is_asked_for:
            raise UsageError(f"there is no task for {name}: {error}") from error
        return False
    return True


def judge(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A folder that `bpref tasks` made, or a rule's name.")],
    solution: Annotated[Path, typer.Argument(metavar="SOLUTION.py", help="Defines backward(args, dy).")],
    seconds: Annotated[float, typer.Option(min=0.1, help="What one answer may take, its compilation too.")] = 60.0,
    gigabytes: Annotated[float, typer.Option(min=1.0, help="The address space of the solution's process.")] = 16.0,
    allow_autodiff: Annotated[
        bool, typer.Option("--allow-autodiff", help="Take cotangents that JAX or PyTorch has differentiated.")
    ] = False,
    key: Annotated[int | None, typer.Option(min=0, help="The seed of shapes and values. [default: a new one]")] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the verdict there; - for stdout.")
    ] = None,
) -> int:
    """Judge a solution; exit code 0 right, 1 wrong, imprecise or no derivation, 2 wrong use, 3 cannot tell.

    It runs in a process of its own, which is given inputs alone. Fresh shapes and values are drawn for every judgement;
    memory and time of a right one stand beside those of autodiff of the naive forward.
    """
    require_writable(json_file)
    rule, framework = _asked(task)
    if not solution.is_file():
        raise UsageError(f"{solution} is a directory, no file" if solution.is_dir() else f"there is no file {solution}")
    with stdout_for_json(json_file), waiting("judging"):
        judgement = judge_solution(rule, solution, seed_of("--key", key), seconds, gigabytes, framework, allow_autodiff)
    deliver_text(judgement, json_file)
    return 1 if judgement.verdict == NO_DERIVATION else EXIT_CODES[judgement.verdict]


def _asked(task: str) -> tuple[Rule, str]:
    """The rule that a task is made of, and the framework of its solution."""
    about = Path(task) / ABOUT
    with blaming_the_input():
        if not about.is_file():
            if Path(task).is_dir():
                raise UsageError(f"{task} is no task: there is no {ABOUT} in it")
            if Path(task).is_file():
                raise UsageError(f"{task} is a file, expected a folder that `bpref tasks` made, or a rule's name")
            return RULES[meant("rule", task, RULES, other_names())], "jax"
        try:
            written = json_object(about.read_bytes())
        except ValueError as error:
            raise UsageError(f"{about} is no JSON: {error}") from error
        if not isinstance(written.get("rule"), str):
            raise UsageError(f"{about} names no rule")
        framework = str(written.get("framework", "jax"))
        require_known("framework", framework, FRAMEWORKS)
        return RULES[meant("rule", written["rule"], RULES)], framework
