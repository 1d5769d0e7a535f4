"""What a search needs of Hypothesis, which is an extra: a strategy for its cases, and no traces of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bpref.leftovers import temporary_folder
from bpref.verify.search_draw import Drawn, Layout, Strategy, Template, patterns_of


def draws(template: Template, layout: Layout) -> Any:
    """A Hypothesis strategy for the values of a layout: all of them ordinary, or a few of the leaves special."""
    from hypothesis import strategies as st

    patterns = patterns_of(template, layout)
    several = [i for i, p in enumerate(patterns) if len(p) > 1]

    @st.composite
    def drawn(draw):
        base = draw(st.sampled_from([0, 0, 1]))
        chosen = [p[min(base, len(p) - 1)] for p in patterns]
        for i in draw(st.lists(st.sampled_from(several), max_size=2, unique=True)) if several else ():
            chosen[i] = draw(st.sampled_from(patterns[i]))
        given = tuple(draw(leaf.strategy) for leaf in template.leaves if isinstance(leaf, Strategy))
        return Drawn(tuple(chosen), draw(st.integers(0, 999)), given)

    return drawn()


@contextmanager
def leaving_nothing_behind() -> Iterator[None]:
    """Hypothesis keeps notes in a folder of the current directory; during a search, in one that is removed again."""
    from hypothesis import configuration

    before = getattr(configuration, "__hypothesis_home_directory", None)
    folder, remove = temporary_folder()
    configuration.set_hypothesis_home_dir(folder)
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(before)
        remove()


def require_hypothesis() -> None:
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise ImportError('search draws its cases with Hypothesis; install it: pip install "bpref[search]"') from None
