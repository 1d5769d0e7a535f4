"""The `bpref` command: its subcommands, and the exit codes they share."""

from typing import Annotated

import typer
from typer.exceptions import TyperException

import bpref
from bpref.cli.audit import EXAMPLE as AUDIT_EXAMPLE
from bpref.cli.audit import audit
from bpref.cli.check import EXAMPLE as CHECK_EXAMPLE
from bpref.cli.check import check
from bpref.cli.cite import cite
from bpref.cli.compile import EXAMPLE as COMPILE_EXAMPLE
from bpref.cli.compile import compile
from bpref.cli.ending import INTERRUPTED, WRONG_USE, say
from bpref.cli.errors import Ended, UsageError
from bpref.cli.exercise import EXAMPLE as EXERCISE_EXAMPLE
from bpref.cli.exercise import exercise
from bpref.cli.explain import explain
from bpref.cli.grade import EXAMPLE as GRADE_EXAMPLE
from bpref.cli.grade import grade
from bpref.cli.plot import EXAMPLE as PLOT_EXAMPLE
from bpref.cli.plot import plot
from bpref.cli.predict import EXAMPLE as PREDICT_EXAMPLE
from bpref.cli.predict import predict
from bpref.cli.rules import rules
from bpref.cli.sample import EXAMPLE as SAMPLE_EXAMPLE
from bpref.cli.sample import sample
from bpref.cli.tasks import JUDGE_EXAMPLE, TASKS_EXAMPLE, judge, tasks
from bpref.cli.train import EXAMPLE as TRAIN_EXAMPLE
from bpref.cli.train import train
from bpref.cli.verify import verify

app = typer.Typer(
    name="bpref",
    help="Back-propagation derived by hand, verified against automatic differentiation.",
    epilog='Examples: bpref check norms:rms_norm --args "f32[16,32] f32[32]" | bpref train digits --epochs 20',
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(is_asked: bool) -> None:
    """Print the version and end, if it is asked for."""
    if is_asked:
        print(f"bpref {bpref.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version.")
    ] = False,
) -> None:
    """What stands before a command."""


app.command(epilog=CHECK_EXAMPLE)(check)
app.command(epilog=AUDIT_EXAMPLE)(audit)
app.command(epilog=GRADE_EXAMPLE)(grade)
app.command(epilog="Example: bpref verify linear gelu --seed 7 --json figures.json")(verify)
app.command(epilog=COMPILE_EXAMPLE)(compile)
app.command(epilog="Example: bpref explain linear")(explain)
app.command(epilog="Example: bpref cite gru")(cite)
app.command(epilog=EXERCISE_EXAMPLE)(exercise)
app.command(epilog="Example: bpref rules --kind loss")(rules)
app.command(epilog=TRAIN_EXAMPLE)(train)
app.command(epilog=SAMPLE_EXAMPLE)(sample)
app.command(epilog=PREDICT_EXAMPLE)(predict)
app.command(epilog=PLOT_EXAMPLE)(plot)
app.command(epilog=TASKS_EXAMPLE)(tasks)
app.command(epilog=JUDGE_EXAMPLE)(judge)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 1 something was found wrong, 2 wrong use,
    3 it cannot be told whether it is right, 130 interrupted. What else a process may end with is in `ending`.
    """
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
        if code == INTERRUPTED:
            say("interrupted")
        return code
    except Ended as ended:
        say(str(ended))
        return ended.code
    except (UsageError, TyperException) as error:
        say(error.format_message() if isinstance(error, TyperException) else str(error))
        return WRONG_USE
