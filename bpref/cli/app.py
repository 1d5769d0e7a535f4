"""The `bpref` command: its subcommands, and the exit codes they share."""

import sys

import typer
from typer.exceptions import TyperException

from bpref.cli.audit import EXAMPLE as AUDIT_EXAMPLE
from bpref.cli.audit import audit
from bpref.cli.check import EXAMPLE as CHECK_EXAMPLE
from bpref.cli.check import check
from bpref.cli.errors import Interrupted, UsageError
from bpref.cli.explain import explain
from bpref.cli.rules import rules
from bpref.cli.train import EXAMPLE as TRAIN_EXAMPLE
from bpref.cli.train import train
from bpref.cli.verify import verify

INTERRUPTED = 130

app = typer.Typer(
    name="bpref",
    help="Back-propagation derived by hand, verified against automatic differentiation.",
    epilog='Examples: bpref check norms:rms_norm --args "f32[16,32] f32[32]" | bpref train digits --epochs 20',
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


app.command(epilog=CHECK_EXAMPLE)(check)
app.command(epilog=AUDIT_EXAMPLE)(audit)
app.command(epilog="Example: bpref verify linear gelu --seed 7 --json figures.json")(verify)
app.command(epilog="Example: bpref explain linear")(explain)
app.command(epilog="Example: bpref rules --kind loss")(rules)
app.command(epilog=TRAIN_EXAMPLE)(train)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 1 something was found wrong, 2 wrong use,
    3 it cannot be told whether it is right, 130 interrupted.
    """
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
        if code == INTERRUPTED:
            print("bpref: interrupted", file=sys.stderr)
        return code
    except Interrupted as interrupted:
        print(f"bpref: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except (UsageError, TyperException) as error:
        message = error.format_message() if isinstance(error, TyperException) else str(error)
        print(f"bpref: {message}", file=sys.stderr)
        return 2
