"""The examples: programs in the form that Jupytext reads as notebooks, as pages of the guide."""

from collections.abc import Iterator
from pathlib import Path

import jupytext

FOLDER = Path(__file__).parents[1] / "examples"


def pages() -> dict[str, str]:
    """A page for each example, by its name."""
    return {file.stem: page(file) for file in sorted(FOLDER.glob("*.py"))}


def page(file: Path) -> str:
    """Its cells one after the other: text as it is, programs in fences."""
    return "\n\n".join([*_cells(file), AS_A_NOTEBOOK.format(name=file.name)]) + "\n"


AS_A_NOTEBOOK = "As a notebook: `jupytext --to ipynb examples/{name}`."


def _cells(file: Path) -> Iterator[str]:
    for cell in jupytext.read(file).cells:
        yield cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
