"""Runs of `bpref train` as a page: their curves, what each was begun with, its epochs, its layers' gradients."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bpref.cli.pages.page import document, picture, table
from bpref.train.keeping.begun import Json, begun_with, score_of
from bpref.train.keeping.record import PLOT, rows_of


def page_of(run: Path) -> str:
    """The page of one run that has come to its end."""
    return page({run.name: (begun_with(run), rows_of(run))}, score_of(run), (run / PLOT).read_bytes())


def page(runs: Mapping[str, tuple[Json, Sequence[Json]]], score: str, png: bytes) -> str:
    """The page of runs by name: of each, what it was begun with and the lines of its metrics."""
    said = f"loss, {score} and gradient norms of {', '.join(runs)} over their epochs"
    parts = [picture(png, said), *(_run(name, begun, rows, score) for name, (begun, rows) in runs.items())]
    return document(", ".join(runs), "\n".join(parts) + "\n")


def _run(name: str, begun: Json, rows: Sequence[Json], score: str) -> str:
    epochs = ("epoch", "training loss", "test loss", score, "seconds")
    shown = ([_cell(row.get(key)) for key in COLUMNS] for row in rows)
    norms = ([f"<code>{html.escape(layer)}</code>", _cell(v)] for layer, v in rows[-1]["gradient_norm"].items())
    settings = ([f"<code>{html.escape(key)}</code>", _setting(v)] for key, v in begun.items())
    return "\n".join(
        [
            f"<h2>{html.escape(name)}</h2>",
            table(epochs, shown),
            "<h3>Gradient norms in the last epoch, by layer</h3>",
            table(("layer", "norm"), norms),
            f"<details><summary>What it was begun with</summary>{table(('setting', 'value'), settings)}</details>",
        ]
    )


COLUMNS = ("epoch", "train_loss", "test_loss", "test_score", "seconds")


def _cell(v: float | None) -> str:
    return "" if v is None else f"{v:.4g}"


def _setting(v: object) -> str:
    text = v if isinstance(v, str) else json.dumps(v)
    return f"<code>{html.escape(text if len(text) <= LONGEST else text[:LONGEST] + ' ...')}</code>"


LONGEST = 200
