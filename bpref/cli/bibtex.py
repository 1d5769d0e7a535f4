"""BibTeX of a rule: an entry for each source that its `cite` names, and bpref's own, of CITATION.cff.

A preprint is named by its number alone wherever it is cited; papers.tsv has its title and who wrote it.
"""

import csv
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import bpref
import bpref.cli
from bpref.rule import Rule


def entries(rule: Rule) -> list[str]:
    """The entries of the rule's sources, where they are publications, and last bpref's."""
    found = [entry for source in re.split(r";\s+(?![^(]*\))", rule.cite) for entry in _of_source(source)]
    return [*dict.fromkeys(found), of_bpref(rule.name)]


def of_bpref(name: str) -> str:
    """bpref's entry, with the rule that is meant."""
    cff = _citation()
    fields = {
        "title": cff["title"],
        "author": " and ".join(f"{{{author['name']}}}" for author in cff["authors"]),
        "version": cff["version"],
        "year": str(cff["date-released"])[:4],
        "note": f"rule {name}",
    }
    return _entry("software", "bpref", fields)


def _citation() -> dict[str, Any]:
    """CITATION.cff, which lies in the wheel, or beside the package in its repository."""
    shipped = files(bpref) / "CITATION.cff"
    path = shipped if shipped.is_file() else Path(bpref.__file__).parents[1] / "CITATION.cff"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class Paper(NamedTuple):
    """A preprint of the arXiv."""

    title: str
    author: str


@cache
def papers() -> dict[str, Paper]:
    """Those of papers.tsv by their numbers."""
    with (files(bpref.cli) / "papers.tsv").open(encoding="utf-8") as table:
        return {number: Paper(*paper) for number, *paper in csv.reader(table, "excel-tab", quoting=csv.QUOTE_NONE)}


_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_TITLE = re.compile(r"'((?:[^']|'(?=\w))+)'")
_YEAR = re.compile(r"\((?:[A-Za-z]+ )?(\d{4})\)")
_WHAT = re.compile(r"^[a-z][^:']*: (?=\S)|^as in [^:]+: ")


def _of_source(source: str) -> list[str]:
    """Entries of one source: of a title, or of each number of the arXiv; none of what is no publication."""
    what = _WHAT.match(source)
    written = source[what.end() :] if what else source
    title, year, numbers = _TITLE.search(written), _YEAR.search(written), _ARXIV.findall(written)
    if not (title or year or numbers):
        return []
    first = min(found.start() for found in (title, year, _ARXIV.search(written)) if found)
    author, called = _author_and_name(written[:first].strip(" ,("), bool(title or year))
    fields = {
        "title": title.group(1) if title else called,
        "author": _authors(author),
        "year": year.group(1) if year else "",
    }
    note = _note(written[first:], what.group().rstrip(": ") if what else "")
    if not numbers:
        return [_entry("misc", re.split(r"\W", author)[0] + fields["year"], fields | {"note": note})]
    if len(numbers) == 1:
        given = {name: value for name, value in fields.items() if value and (name != "title" or title)}
        return [_entry("misc", f"arXiv{numbers[0]}", _preprint(numbers[0]) | given | {"note": note})]
    return [_entry("misc", f"arXiv{number}", _preprint(number)) for number in numbers]


def _author_and_name(written: str, is_of_people: bool) -> tuple[str, str]:
    """Whose work it is, and what it is called for short: `Grill et al., BYOL`; or that alone: `PaLM`."""
    people, et_al, name = written.partition(" et al.")
    if et_al:
        return people + et_al, name.strip(", ")
    return (written, "") if is_of_people or " and " in written else ("", written)


def _note(written: str, what: str) -> str:
    """What of the source is meant: all but title, year and number."""
    left = _ARXIV.sub("", _YEAR.sub("", _TITLE.sub("", written)))
    return ", ".join(part for part in (what, *(p.strip(" :,") for p in left.split(", "))) if part)


def _authors(written: str) -> str:
    names = re.split(r", | and ", written.removesuffix(" et al."))
    return " and ".join([*names, *(["others"] if written.endswith(" et al.") else [])])


def _preprint(number: str) -> dict[str, str]:
    """The fields of a preprint; it came in the year that its number begins with."""
    paper = papers().get(number, Paper("", ""))
    return {
        "title": paper.title,
        "author": _authors(paper.author),
        "year": f"20{number[:2]}",
        "eprint": number,
        "archiveprefix": "arXiv",
        "url": f"https://arxiv.org/abs/{number}",
    }


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    lines = [f"  {name:{width}} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
