"""`bpref grade`: how much a project's own acceptance criterion would let through."""

from typing import Annotated

import typer

from bpref.cli.errors import blaming_the_input
from bpref.cli.loading import blaming, function
from bpref.cli.reports import deliver_text, require_writable, stdout_for_json, waiting
from bpref.corpus.criteria import Criterion, criterion_named
from bpref.corpus.grade import grade as grade_criterion

EXAMPLE = (
    'Examples: bpref grade --criterion "allclose(rtol=1e-2, atol=1e-2)" | bpref grade --criterion tests/close.py:ok'
)


def grade(
    criterion: Annotated[
        str,
        typer.Option(
            help='"allclose(rtol=1e-2, atol=1e-2)", "fraction(0.99, rtol=1e-2, atol=1e-2)", "cosine(0.99)", '
            '"max_abs(1e-2)"; or MODULE:FUNCTION or FILE.py:FUNCTION, (got, expected) -> bool.'
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many trials each derivation has.")] = 3,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write it there; - for stdout.")
    ] = None,
) -> int:
    """Test your tests: how many known wrong derivations an acceptance criterion lets through.

    The wrong and the right derivations of bpref.corpus, in float32, with cotangents of size 1, 0.01 and 0.001; five
    random draws must all pass. Exit code 0 if it ran, 2 wrong use.
    """
    require_writable(json_file)
    with stdout_for_json(json_file):
        asked: str | Criterion = criterion
        if ":" in criterion:
            asked = function(criterion, "--criterion").value
        else:
            with blaming_the_input():
                criterion_named(criterion)
        with blaming(criterion), waiting("grading"):
            report = grade_criterion(asked, seeds)._replace(criterion=criterion)
    deliver_text(report, json_file)
    return 0
