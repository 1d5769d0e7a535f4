"""A derivation's docstring, read into sections of paragraphs, items and formulas, and written as HTML."""

import html
import re
from collections.abc import Callable
from typing import NamedTuple

from docs.formula import Untranslatable, to_tex
from docs.katex import BadTex, typeset
from docs.prose import to_html
from docs.symbols import symbol

Link = Callable[[str], str | None]

HEADINGS = {
    "Forward": "Forward",
    "Differential": "Differential and adjoint",
    "Cached": "What is cached",
    "Numerical care": "Numerical care",
    "Kink": "Kinks",
    "Kinks": "Kinks",
    "Ties": "Ties",
    "How": "How",
}
"""The words that a section's first sentence begins with, and what stands over it."""


class Section(NamedTuple):
    """What stands under one heading: paragraphs, items and blocks of indented lines, in order."""

    title: str
    parts: list[tuple[str, list[str]]]


class Cell(NamedTuple):
    """A stretch of an indented line, as HTML.

    Attributes:
      kind: "math", "words", or "plain", which is a whole line as it is written.
      left: of a formula, what stands before its sign.
      right: what stands behind it, the sign with it; all of anything else.
      names: what the formula defines.
    """

    kind: str
    right: str
    left: str = ""
    names: tuple[str, ...] = ()


def sections(docstring: str) -> tuple[str, list[Section]]:
    """What a derivation is about, and its sections."""
    head, *rest = parts(docstring)
    question = " ".join(head[1])
    found = [Section("", [])]
    for kind, lines in rest:
        opening = re.match(rf"({'|'.join(sorted(HEADINGS, key=len, reverse=True))})\b([:.,]?) ?", lines[0])
        if kind == "paragraph" and opening and not found[-1].title.startswith(opening.group(1)):
            word, mark = opening.groups()
            left = lines[0][opening.end() :] if mark else lines[0]
            found.append(Section(HEADINGS[word], []))
            lines = [_capitalised(left), *lines[1:]]
        if any(lines):
            found[-1].parts.append((kind, [line for line in lines if line]))
    return question, [section for section in found if section.parts]


def _capitalised(sentence: str) -> str:
    """With a capital letter, unless it begins with a symbol."""
    word = re.match(r"a |[a-z]*", sentence)
    is_symbol = word is None or symbol(word.group()) is not None
    return sentence if is_symbol else sentence[:1].upper() + sentence[1:]


def parts(docstring: str) -> list[tuple[str, list[str]]]:
    """Paragraphs, items and indented blocks, each as its lines."""
    found: list[tuple[str, list[str]]] = []
    fresh = True
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        kind = "block" if indent >= 4 else "item" if line.startswith("- ") else "more" if indent else "paragraph"
        if not line.strip():
            fresh = True
            continue
        if fresh or kind == "item" or ((kind, found[-1][0]) != ("more", "item") and kind != found[-1][0]):
            found.append((kind, []))
        found[-1][1].append(line if kind == "block" else line.strip().removeprefix("- "))
        fresh = False
    return found


def to_page(section: Section, link: Link) -> str:
    """A section as HTML without blank lines; what is indented below an item belongs to it."""
    out, in_item = [], False
    for kind, lines in section.parts:
        if in_item and kind == "paragraph":
            out.append("</li></ul>")
        if kind == "item":
            out.append("</li>" if in_item else "<ul>")
        in_item = kind == "item" or (in_item and kind != "paragraph")
        if kind == "block":
            out.append(formulas(lines, link))
        else:
            out.append(f"{'<li>' if kind == 'item' else ''}<p>{to_html(' '.join(lines), link)}</p>")
    return "\n".join([*out, *(["</li></ul>"] if in_item else [])])


def formulas(lines: list[str], link: Link) -> str:
    """A block of indented lines: a table of formulas, or as it is, where it holds none."""
    rows = [cells(line, link) for line in whole(lines)]
    if not any(cell.kind == "math" for row in rows for cell in row):
        margin = min(len(line) - len(line.lstrip()) for line in lines)
        return f"<pre>{html.escape(chr(10).join(line[margin:] for line in lines), quote=False)}</pre>"
    return f'<div class="wide"><table class="formulas">{"".join(map(_row, rows))}</table></div>'


def whole(lines: list[str]) -> list[str]:
    """The lines, each that leaves a bracket open with the next one behind it."""
    found: list[str] = []
    for line in lines:
        if found and found[-1].count("(") > found[-1].count(")"):
            found[-1] += f" {line.strip()}"
        else:
            found.append(line)
    return found


def cells(line: str, link: Link = lambda name: None) -> list[Cell]:
    """The stretches of a line; all of it as it is, where one of its formulas is not understood."""
    written = [" ".join(cell.split()) for cell in re.split(r"\s{2,}(?!\s|=|<-|\+=)", line.strip())]
    try:
        return [_cell(cell, link) for cell in written]
    except (Untranslatable, BadTex):
        return [Cell("plain", html.escape(line.strip(), quote=False))]


_DEFINES = re.compile(r"\s(?:=|<-|\+=|<=|>=)\s")
_CONTINUES = re.compile(r"(?:[-+=] |<-)\S")
_DEFINED = re.compile(r"(d?[A-Za-z]+?)(?:_|\[|'|\d|,| |$)")


def _cell(written: str, link: Link) -> Cell:
    continues = _CONTINUES.match(written)
    if written.endswith(":") or (not _DEFINES.search(written) and not continues):
        return Cell("words", to_html(written, link))
    left, right = ("", written) if continues else _sides(written)
    if not left:
        return Cell("math", _math(right))
    names = tuple(found.group(1) for part in left.split(", ") if (found := _DEFINED.match(part)))
    return Cell("math", _math(right), _math(left), names)


def _math(written: str) -> str:
    return typeset(r"\displaystyle {}" + to_tex(written.rstrip(".")), spoken=written)


def _sides(written: str) -> tuple[str, str]:
    """A formula's two sides, the sign with the second; no first one where a bracket is open at the sign."""
    sign = _DEFINES.search(written)
    left = written[: sign.start()] if sign else ""
    is_open = any(left.count(a) != left.count(b) for a, b in ("()", "[]", "{}"))
    return ("", written) if is_open or len(left) > 60 else (left, written[len(left) + 1 :])


def _row(row: list[Cell]) -> str:
    if row[0].kind == "plain":
        return f'<tr><td colspan="3"><pre>{row[0].right}</pre></td></tr>'
    maths = [i for i, cell in enumerate(row) if cell.kind == "math"]
    if not maths:
        return f'<tr><td></td><td colspan="2" class="words">{" &emsp; ".join(cell.right for cell in row)}</td></tr>'
    first, last = maths[0], maths[-1]
    names = " ".join(dict.fromkeys(name for cell in row for name in cell.names))
    labels = "".join(f'<span class="label">{cell.right}</span> ' for cell in row[:first])
    also = (
        f'<span class="{"also" if cell.kind == "math" else "label"}">{cell.left}{cell.right}</span>'
        for cell in row[first + 1 : last + 1]
    )
    notes = " &ensp; ".join(cell.right for cell in row[last + 1 :])
    return (
        f'<tr data-names="{names}"><td class="left">{labels}{row[first].left}</td>'
        f'<td class="right">{" ".join([row[first].right, *also])}</td><td class="note">{notes}</td></tr>'
    )
