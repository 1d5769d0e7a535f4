"""What a page makes a browser load: itself, its styles and programs, and the fonts of its formulas."""

import re
from pathlib import Path

MOST_BYTES = 500_000
"""A page is to weigh no more."""

FONTS = ("Main-Regular", "Math-Italic", "Size1-Regular", "Size2-Regular", "Size3-Regular", "Size4-Regular")
"""KaTeX's, of which a page with formulas may need all."""


def of_page(file: Path, site: Path) -> int:
    """In bytes, as they lie on the disk."""
    text = file.read_text(encoding="utf-8")
    loaded = {file.parent / name for name in re.findall(r'(?:href|src)="([^":?]+\.(?:css|js))["?]', text)}
    if 'class="katex' in text:
        loaded |= {site / f"_static/katex/fonts/KaTeX_{name}.woff2" for name in FONTS}
    return sum(path.stat().st_size for path in (file, *loaded))


def too_heavy(site: Path) -> list[str]:
    """A line for each page that weighs more."""
    weights = {file: of_page(file, site) for file in sorted(site.rglob("*.html"))}
    return [f"{file.relative_to(site)} weighs {n:,} bytes" for file, n in weights.items() if n > MOST_BYTES]
