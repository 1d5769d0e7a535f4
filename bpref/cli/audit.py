"""`bpref audit`: every custom derivative rule inside a function, held against its own primal."""

from typing import Annotated

import typer

from bpref.cli.check import Arguments, JsonFile, Key, Target, arguments, as_wide_as, target_named
from bpref.cli.loading import blaming, require_fitting
from bpref.cli.reports import deliver, require_writable, stdout_for_json, waiting
from bpref.verify.audit import audit as audit_rules
from bpref.verify.options import seed_of

EXAMPLE = (
    'Examples: bpref audit model:loss --args "f32[32,784] i32[32]<10" | bpref audit jax.nn:relu --args "f32[16]" | '
    "bpref audit model:loss --args model:make_args --json audit.json"
)


def audit(
    target: Target,
    args: Arguments,
    drive: Annotated[bool, typer.Option("--drive", help="Check rules that did not run too, at drawn values.")] = False,
    cross_check: Annotated[bool, typer.Option(help="Hold the oracle itself against finite differences.")] = True,
    key: Key = None,
    json_file: JsonFile = None,
) -> int:
    """Check every custom_vjp and custom_jvp rule that a function runs.

    Exit code 0 all right, 1 one is wrong or imprecise, 2 wrong use, 3 cannot tell, one did not run, or there is none.

    Rules are found in the function and in all that it calls, in loops and branches too, and are checked at the values
    that flow into them.
    """
    require_writable(json_file)
    with stdout_for_json(json_file):
        fun = target_named(target)
        key = seed_of("--key", key)
        values = arguments(args, fun.module, key)
        require_fitting(target, fun.value, values)
        with as_wide_as(args), blaming(target), waiting("auditing"):
            report = audit_rules(fun.value, *values, key=key, drive=drive, cross_check=cross_check)
    return deliver(report, json_file)
