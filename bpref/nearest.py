"""Choosing by name: what there is, or an error that says which names are near the one that was asked for."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Up to `most` of the known names that look like `name`, the likeliest first; all of them if none does."""
    known = list(known)
    by_lower = {k.lower(): k for k in reversed(known)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=0.5)
    return [by_lower[k] for k in near] or known


def require_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raise `ValueError` unless `name` is one of `known`; the message gives the nearest names."""
    known = list(known)
    if name not in known:
        names = nearest(name, known)
        some = "there is" if len(names) == len(known) else "the nearest are" if len(names) > 1 else "the nearest is"
        raise ValueError(f"unknown {what} {name!r}; {some} {', '.join(names)}")
