"""Sphinx's settings: the furo theme, Markdown, and KaTeX run while building."""

import bpref

project = "bpref"
author = "The bpref developers"
release = bpref.__version__
html_title = "bpref: the book of derivations"

extensions = ["myst_parser", "docs.katex", "docs.search"]
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
language = "en"

html_theme = "furo"
html_css_files = ["katex/katex.min.css", "book.css"]
html_js_files = ["book.js"]
html_favicon = "static/icon.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_math_renderer = "built"
exclude_patterns: list[str] = []
