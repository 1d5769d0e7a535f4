"""Every example runs, a cell after the other, and what it says of itself holds: its last cells assert that."""

from pathlib import Path

import jax
import pytest

jupytext = pytest.importorskip("jupytext", reason="needs the extra `docs`")

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs_as_a_notebook_does(file, capsys):
    cells = [cell.source for cell in jupytext.read(file).cells if cell.cell_type == "code"]
    assert len(cells) >= 3
    assert any(line.startswith("assert ") for cell in cells for line in cell.splitlines())
    names = {"__name__": "__main__"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as in a user's own process
        for cell in cells:
            exec(compile(cell, str(file), "exec"), names)


def test_there_are_examples():
    assert {"derive_and_check", "pallas_kernel", "import_a_formula"} <= {file.stem for file in EXAMPLES}
