"""`bpref predict`: what a network that was trained on a table says of other rows."""

from pathlib import Path
from typing import Annotated

import typer

from bpref.cli.ending import say
from bpref.cli.errors import UsageError, blaming_the_input

EXAMPLE = (
    "Example: bpref train --data table.csv --target price --out run && "
    "bpref predict run --data new.csv --output prices.csv"
)


def predict(
    run: Annotated[Path, typer.Argument(help="What bpref train --out has left, of a table.")],
    data: Annotated[
        Path, typer.Option(help="The rows: a .csv or .tsv with the columns that were trained on, a .npz or a .npy.")
    ],
    output: Annotated[Path | None, typer.Option(help="A .csv to write. [default: standard output]")] = None,
) -> int:
    """Predict the target of every row, in its own units or by the name of its class, and what each class is given.

    A row of the output for each row of the data, as CSV. Missing values are imputed where the run was trained with
    --missing impute, and else refused.
    """
    from bpref.cli.writing import require_writable, write
    from bpref.train.keeping.load import load
    from bpref.train.predict import as_csv, predictions, rows_of

    with blaming_the_input():
        if output is not None:
            require_writable("--output", output)
            if output.exists() and data.exists() and output.samefile(data):
                raise UsageError(f"--output {output}: it is --data, which would be lost")
        loaded = load(run)
        if "model" in loaded.settings:
            kind = loaded.settings["model"]
            raise UsageError(
                f"{run}: it is of {kind}, no table; bpref predict is for tables, bpref sample for models of "
                "text or images"
            )
        if data.suffix.lower() not in (".csv", ".tsv", ".npz", ".npy"):
            raise UsageError(f"{data}: expected a file that ends in .csv, .tsv, .npz or .npy")
        X, notes = rows_of(loaded.settings["units"], data)
    for note in notes:
        say(note)
    text = as_csv(*predictions(loaded, X))
    if output is None:
        print(text, end="")
    else:
        write("--output", output, text)
        print(f"written: {output}, {len(X)} rows")
    return 0
