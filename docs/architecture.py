"""The house in one picture, drawn from its code: who imports whom, from the ground floor up."""

import ast
import html
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import bpref
from docs import mistakes
from docs.prose import to_html
from docs.search import raw

HOUSE = Path(bpref.__file__).parent
GROUND = "ground"
"""The files that lie in no folder, and `checks`, which they import and which imports them."""

WIDTH, FLOOR, BOX = 720, 88, (112, 40)


class Part(NamedTuple):
    """A folder of the house, or all files that lie in none.

    Attributes:
      about: the first line of its docstring.
      files, lines: how many.
      reads: the parts that it imports from.
    """

    about: str
    files: int
    lines: int
    reads: frozenset[str]


@cache
def parts() -> dict[str, Part]:
    """Every part by name, read off the source."""
    folders = {file.parent.name: file.parent for file in HOUSE.glob("*/__init__.py") if file.parent.name != "checks"}
    ground = [file for file in HOUSE.glob("*.py") if file.name not in DOORS] + [*(HOUSE / "checks").glob("*.py")]
    found = {GROUND: _part(GROUND, ABOUT_THE_GROUND, ground, folders)}
    return found | {
        name: _part(name, _about(folder), folder.rglob("*.py"), folders) for name, folder in folders.items()
    }


DOORS = ("__init__.py", "__main__.py", "pytest_plugin.py")

ABOUT_THE_GROUND = "What a layer, a rule, a cotangent and a path are, and what is refused before anything is computed."


def _about(folder: Path) -> str:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _part(name: str, about: str, files: Iterable[Path], folders: Collection[str]) -> Part:
    texts = [file.read_text(encoding="utf-8") for file in files]
    imported = {m for text in texts for m in _imported(ast.parse(text))}
    reads = {m if m in folders else GROUND for m in imported} - {name}
    return Part(about, len(texts), sum(len(text.splitlines()) for text in texts), frozenset(reads))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("bpref."))


def floors(reads: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """The parts by the longest way down to one that imports nothing, the lowest floor first.

    Raises:
      ValueError: some import each other.
    """
    left, found = dict(reads), []
    while left:
        floor = [name for name in left if not reads[name] & left.keys()]
        if not floor:
            raise ValueError(f"these import each other: {', '.join(left)}")
        found.append(floor)
        left = {name: read for name, read in left.items() if name not in floor}
    return found


def needed(reads: Mapping[str, frozenset[str]]) -> Iterator[tuple[str, str]]:
    """Who imports whom, less what is imported on the way to something else that is."""

    def below(name: str) -> frozenset[str]:
        return reads[name].union(*map(below, reads[name]))

    for name, read in reads.items():
        yield from ((name, other) for other in read if not any(other in below(third) for third in read))


def page() -> str:
    """The picture, and a table of the parts."""
    reads = {name: part.reads for name, part in parts().items()}
    order = [name for floor in floors(reads) for name in floor]
    rows = "".join(_row(name, parts()[name]) for name in order)
    table = raw(mistakes.table(("part", "what lives there", "files", "lines"), rows))
    return "\n\n".join(["# The architecture", ABOUT, raw(to_svg(reads)), table]) + "\n"


ABOUT = """Drawn from the code: each part imports from those that a line leads down to, and from what these import; none
imports upward, which a test holds. `rules` are the derivations, `verify` judges them, and knows none by name."""


def _row(name: str, part: Part) -> str:
    return mistakes.row(f"<code>{name}</code>", to_html(part.about), f"{part.files}", f"{part.lines:,}")


def to_svg(reads: Mapping[str, frozenset[str]]) -> str:
    """Boxes on their floors, and lines down."""
    house = floors(reads)
    wide, tall = BOX
    height = FLOOR * len(house)
    at = {
        name: (WIDTH * (i + 0.5) / len(floor), height - FLOOR * (level + 0.5))
        for level, floor in enumerate(house)
        for i, name in enumerate(floor)
    }
    lines = [
        f'<line x1="{at[a][0]:g}" y1="{at[a][1] + tall / 2:g}" x2="{at[b][0]:g}" y2="{at[b][1] - tall / 2:g}"/>'
        for a, b in needed(reads)
    ]
    boxes = [
        f'<rect x="{x - wide / 2:g}" y="{y - tall / 2:g}" width="{wide}" height="{tall}" rx="6"/>'
        f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle">{html.escape(name)}</text>'
        for name, (x, y) in at.items()
    ]
    said = "; ".join(f"{name} imports {', '.join(sorted(read)) or 'nothing'}" for name, read in reads.items())
    return (
        f'<div class="wide"><svg class="flow" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{html.escape(said)}">{"".join(lines + boxes)}</svg></div>'
    )
