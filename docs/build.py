"""Builds the site: python -m docs.build [RULE ...]

Pages are written to docs/_pages and the site to docs/_site, which any static server, or a browser from the file itself,
shows. With names of rules only theirs are written, and no rule else: the quick way to see a change. The programs of the
pages are run meanwhile, in a process of their own. A program that raises, or a page that is too heavy, is named, and
the exit code is 1.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

from bpref.rules import RULES
from docs import katex, pages, search, weight

HERE = Path(__file__).parent
PAGES, SITE = HERE / "_pages", HERE / "_site"


def write(written: dict[str, str], into: Path) -> None:
    """The pages as files; what is as it was keeps its date, and what is no page any more goes."""
    for name, text in written.items():
        file = into / f"{name}.md"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for file in into.rglob("*.md"):
        if str(file.relative_to(into).with_suffix("")) not in written:
            file.unlink()


def build(written: dict[str, str], source: Path, site: Path) -> int:
    """Pages to HTML; 0 where nothing was to be warned of."""
    write(written, source / "pages")
    shutil.copytree(katex.DIST / "fonts", source / "katex/katex/fonts", dirs_exist_ok=True, ignore=_not_woff2)
    shutil.copy(katex.DIST / "katex.min.css", source / "katex/katex")
    found = {
        "html_static_path": [str(HERE / "static"), str(source / "katex")],
        "html_search_options": {"common": search.common(written.values(), RULES)},
    }
    app = Sphinx(source / "pages", HERE, site, source / "doctrees", "html", found, status=None, warningiserror=True)
    app.build()
    return app.statuscode


def _not_woff2(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".woff2")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.build", description="Build the site of the book.")
    parser.add_argument("rules", nargs="*", metavar="RULE", help="only the pages of these")
    parser.add_argument("--site", type=Path, default=SITE, help="where the site goes")
    options = parser.parse_args()
    katex.install()
    rules = pages.chosen(options.rules)
    with subprocess.Popen([sys.executable, "-m", "docs.snippets", *rules]) as running:
        code = build(pages.written(options.rules or None), PAGES, options.site)
    print(f"{options.site / 'index.html'}")
    for line in (heavy := weight.too_heavy(options.site)):
        print(line, file=sys.stderr)
    return code or running.returncode or bool(heavy)


if __name__ == "__main__":
    sys.exit(main())
