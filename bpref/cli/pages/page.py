"""A page that stands by itself: nothing in it is loaded from elsewhere, light or dark as the reader has it."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bpref.cli import writing
from bpref.cli.errors import UsageError

HtmlFile = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it there too, as a page.")]
Open = Annotated[bool, typer.Option("--open", help="Show the page in the browser.")]

STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid #8884; }
pre { overflow-x: auto; margin: 0.3rem 0; }
td pre { margin: 0; white-space: pre-wrap; }
img { max-width: 100%; background: #fff; }
.verdict { font-weight: 600; white-space: nowrap; }
.ok { color: light-dark(#117733, #66cc88); }
.wrong { color: light-dark(#b00020, #ff8a80); }
.imprecise { color: light-dark(#8a5a00, #ffcc66); }
.cannot.tell, .not.run { color: light-dark(#7b1fa2, #d8a0ff); }
.bar { display: block; height: 0.5rem; background: light-dark(#3366aa, #7799dd); border-radius: 0.2rem; }
.bar.beside { background: #8888; }
.heat { display: block; max-width: 100%; overflow: visible; font-size: 0.85rem; fill: currentColor; }
.heat .frame { fill: none; stroke: #8888; }
.heat .error { fill: light-dark(#b00020, #ff8a80); }
.heat .uneven { font-weight: 600; }
.fine { opacity: 0.75; font-size: 0.9rem; }
"""


def require_page(option: str, file: Path | None, show: bool) -> None:
    """Raise `UsageError`, before anything is computed, where no page can be written, or there is none to show."""
    if file is not None:
        writing.require_writable(option, file)
    elif show:
        raise UsageError(f"--open shows the page of {option} FILE, which is not given")


def write_page(option: str, file: Path | None, page: str, show: bool) -> None:
    """Write the page where one is asked for, and show it where that is."""
    if file is not None:
        writing.write(option, file, page)
        if show:
            import webbrowser

            webbrowser.open(file.absolute().as_uri())


def document(title: str, body: str) -> str:
    """The whole page: `title` is text, `body` HTML."""
    title = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{body}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def word(verdict: str) -> str:
    """A verdict in its colour."""
    return f'<span class="verdict {verdict}">{verdict}</span>'


def picture(png: bytes, said: str) -> str:
    """A picture inside of the page, with what it shows in words."""
    return f'<img alt="{html.escape(said)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
