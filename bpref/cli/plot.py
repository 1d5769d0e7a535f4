"""`bpref plot`: runs beside each other, those that go on too."""

from os.path import commonpath
from pathlib import Path
from typing import Annotated

import typer

from bpref.cli.errors import UsageError, blaming_the_input
from bpref.cli.pages.page import HtmlFile, Open, require_page, write_page

EXAMPLE = "Example: bpref plot run slower/run --output both.png"


def plot(
    runs: Annotated[list[Path], typer.Argument(help="What bpref train --out leaves, also of runs that go on.")],
    output: Annotated[Path, typer.Option(help="A .png to write.")] = Path("curves.png"),
    html_file: HtmlFile = None,
    show: Open = False,
) -> int:
    """Draw the loss, the test score and the gradient's norms of runs over their epochs.

    The page of --html has the picture, what each run was begun with, its epochs, and its layers' gradients.
    """
    from bpref.cli.pages.runs import page
    from bpref.cli.writing import require_writable
    from bpref.train.keeping.begun import begun_with, score_of
    from bpref.train.keeping.curves import draw
    from bpref.train.keeping.record import rows_of
    from bpref.whole_file import whole_file

    with blaming_the_input():
        if output.suffix != ".png":
            raise UsageError(f"--output {output}: expected a file that ends in .png")
        require_writable("--output", output)
        require_page("--html", html_file, show)
        whole = [run.resolve() for run in runs]
        if twice := [run for run, path in zip(runs, whole, strict=True) if whole.count(path) > 1]:
            raise UsageError(f"{twice[0]} is named twice")
        shared = commonpath([path.parent for path in whole])
        rows = {str(path.relative_to(shared)): rows_of(run) for run, path in zip(runs, whole, strict=True)}
        scores = sorted({score_of(run) for run in runs})
        with whole_file(output) as beside:
            draw(rows, " or ".join(scores), beside)
    began = {name: begun_with(run) for name, run in zip(rows, runs, strict=True)}
    of_runs = {name: (began[name], of_run) for name, of_run in rows.items()}
    write_page("--html", html_file, page(of_runs, " or ".join(scores), output.read_bytes()), show)
    epochs = ", ".join(f"{run} {len(of_run)}" for run, of_run in zip(runs, rows.values(), strict=True))
    print(f"written: {output}, of so many epochs: {epochs}")
    return 0
