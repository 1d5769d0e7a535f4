"""What the site's search finds: words of the prose and of names, but none that stands on every other page.

A browser loads the whole index to search it, so it holds no formulas, no code, and no word that tells no page from the
others. The page of the search drops those words from what it is asked for, since it would find nothing by them.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sphinx.search.en import SearchEnglish

COMMON = 110
"""A word that more pages have than this leads nowhere, unless it is a rule's name."""

UNSEARCHED = "{.no-search}\n"
"""Before a block of Markdown, or a heading with all that stands below it."""

_SYMBOLS = re.compile(r'(<table class="formulas">.*?</table>|<svg\b.*?</svg>|<div class="code-of">.*</div>)', re.DOTALL)
_HIDDEN = re.compile(
    r"{\.no-search}\n## .*?(?=\n(?:{\.no-search}\n)?## |\Z)|{\.no-search}\n.*?(?=\n\n|\Z)"
    r"|````{raw} html\n:class: no-search\n.*?\n````",
    re.DOTALL,
)
_ENDS = re.compile(r"(</(?:caption|d[dt]|h\d|li|p|pre|t[dhr])>)(?=\S)")
_SPACED = r"\1 "


def raw(page: str, is_searched: bool = True) -> str:
    """HTML that Markdown leaves alone; formulas, pictures and code in it are not searched."""
    parts = [part for part in _SYMBOLS.split(page) if part.strip()]
    return "\n".join(_block(part, is_searched and not _SYMBOLS.match(part)) for part in parts)


def _block(part: str, is_searched: bool) -> str:
    """The index reads HTML without its tags: what stands in two cells are two words."""
    hidden = "" if is_searched else ":class: no-search\n\n"
    return f"````{{raw}} html\n{hidden}{_ENDS.sub(_SPACED, part)}\n````"


class Words(SearchEnglish):
    """English without `html_search_options["common"]`; a word is one of them however it is spelled."""

    def __init__(self, options: dict[str, Any]):
        super().__init__(options)
        self.stopwords = self.stopwords | set(options.get("common", ()))

    def word_filter(self, word: str) -> bool:
        return super().word_filter(word.lower())


def common(pages: Iterable[str], names: Iterable[str]) -> list[str]:
    """Such words, and their stems, among those of the pages that are searched."""
    language, forms, pages_with = SearchEnglish({}), {}, Counter()
    for page in pages:
        words = {word.lower() for word in language.split(re.sub(r"<[^<]+?>", " ", _HIDDEN.sub("", page)))}
        stems = {word: language.stem(word).lower() for word in words}
        pages_with.update(set(stems.values()))
        for word, stem in stems.items():
            forms.setdefault(stem, set()).add(word)
    many = {stem for stem, n in pages_with.items() if n > COMMON} - {language.stem(name).lower() for name in names}
    return sorted({form for stem in many for form in (stem, *forms[stem])})


def setup(app: Any) -> dict[str, bool]:
    app.add_search_language(Words)
    return {"parallel_read_safe": True}
