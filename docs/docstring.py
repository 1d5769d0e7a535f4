"""A public docstring as HTML: its text, then Args, Attributes, Returns, Raises and examples."""

import html
import inspect
import re
import textwrap
from typing import Any

from docs.derivation import Link
from docs.prose import to_html

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Example|Examples|Source|Sources):$")


def to_page(documented: Any, link: Link) -> str:
    """The docstring of a function or class."""
    out, title, lines = [], "", []
    for line in [*(inspect.getdoc(documented) or "").splitlines(), None]:
        heading = _SECTION.match(line) if line is not None else None
        if heading or line is None or (title and line[:1].strip()):
            out.append(_section(title, lines, link))
            title, lines = (heading.group(1) if heading else ""), []
        if line is not None and not heading:
            lines.append(line)
    return "\n".join(part for part in out if part)


def _section(title: str, lines: list[str], link: Link) -> str:
    text = textwrap.dedent("\n".join(lines)).strip()
    if not text.strip():
        return ""
    if title in ("Args", "Attributes", "Raises"):
        return f'<p class="rubric">{title}</p><dl class="fields">{"".join(_fields(text, link))}</dl>'
    heading = f'<p class="rubric">{title}</p>' if title else ""
    return heading + "\n".join(_paragraph(part, link) for part in re.split(r"\n\s*\n", text))


def _paragraph(text: str, link: Link) -> str:
    if text.startswith((">>>", "    ")) or re.search(r"^ {4}", text, re.MULTILINE):
        return f"<pre>{html.escape(text, quote=False)}</pre>"
    return f"<p>{to_html(text, link)}</p>"


def _fields(text: str, link: Link) -> list[str]:
    """`name: what it is`, its further lines indented."""
    entries = re.split(r"\n(?=\S)", text)
    found = (re.match(r"([\w., *`]+?):\s(.*)", entry, re.DOTALL) for entry in entries)
    return [
        f"<dt><code>{html.escape(field.group(1))}</code></dt><dd>{to_html(field.group(2), link)}</dd>"
        if field
        else f"<dd>{to_html(entry, link)}</dd>"
        for field, entry in zip(found, entries, strict=True)
    ]
