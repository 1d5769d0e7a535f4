"""The guide: the sections of the README, and what contributors and users of other versions read."""

import re
from pathlib import Path

from docs import architecture, examples

ROOT = Path(__file__).parents[1]
SECTIONS = {
    "Is my gradient right?": "check",
    "Train it": "train",
    "Compile it for a TPU or a GPU, without one": "compile",
    "From one CPU to many devices": "devices",
    "From one CPU to one GPU, a TPU pod and a Slurm cluster": "hosts",
    "Ten lines": "ten_lines",
    "A language model": "language_model",
    "The idea": "idea",
    "Figures": "figures",
}
"""The README's sections that are pages here, in the guide's order."""

FILES = {
    "audits": "benchmarks/audits.md",
    "compiled": "benchmarks/compiled.md",
    "contributing": "CONTRIBUTING.md",
    "changes": "CHANGELOG.md",
}
"""Files that are pages as they are."""


CHAPTERS = ("migrate", "signals")
"""Pages of `docs/chapters` that are written by hand; their programs are run by a test."""


def pages() -> dict[str, str]:
    """The guide's pages."""
    found = sections((ROOT / "README.md").read_text(encoding="utf-8"))
    of_readme = {name: f"# {title}\n{found[title]}" for title, name in SECTIONS.items()}
    of_files = {name: _without_links((ROOT / file).read_text(encoding="utf-8")) for name, file in FILES.items()}
    by_hand = {name: (ROOT / f"docs/chapters/{name}.md").read_text(encoding="utf-8") for name in CHAPTERS}
    in_order = of_readme | by_hand | examples.pages() | {"architecture": architecture.page()} | of_files
    tree = "\n".join(["```{toctree}", ":maxdepth: 1", "", *in_order, "```"])
    return {f"guide/{name}": text for name, text in in_order.items()} | {"guide/index": f"# The guide\n\n{tree}\n"}


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level, its links to files of the repository taken off."""
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    marked = "".join(b if b.startswith("```") else re.sub(r"^## ", "\0", b, flags=re.MULTILINE) for b in blocks)
    found = (part.partition("\n") for part in marked.split("\0")[1:])
    return {title: _without_links(body) for title, _, body in found}


def _without_links(text: str) -> str:
    """Links to files of the repository become their text."""
    without_comments = re.sub(r"<!--.*?-->\n?", "", text)
    return re.sub(r"\[((?:[^\[\]]|`[^`]*`)+)\]\((?!https?:)[^)]+\)", r"\1", without_comments)
