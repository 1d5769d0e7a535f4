"""Choosing by name: what there is, or an error that says which names are near the one that was asked for."""

import difflib
import re
from collections.abc import Iterable, Mapping

MOST = 30
"""How many names a message lists where none is near."""


def folded(name: str) -> str:
    """`name` without what people write in several ways: case, hyphens, underscores and spaces."""
    return re.sub(r"[-_\s]", "", name).lower()


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Up to `most` of the known names that look like `name`, the likeliest first; all of them if none does."""
    known = list(known)
    return _close(name, known, most, 0.5) or known


def require_known(what: str, name: str, known: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raise `ValueError` unless `name` is one of `known`; the message gives what is near, and very near of `others`."""
    known = list(known)
    if name not in known:
        names = nearest(str(name), [*known, *_close(str(name), others, 3, 0.75)])
        if not known or len(known) == len(names) > MOST:
            why = f"none of the {len(known)} is near" if known else "there is none"
            raise ValueError(f"unknown {what} {name!r}; {why}")
        some = "there is" if len(names) == len(known) else "the nearest are" if len(names) > 1 else "the nearest is"
        raise ValueError(f"unknown {what} {name!r}; {some} {', '.join(names)}")


def meant(what: str, name: str, known: Iterable[str], others: Mapping[str, str] | None = None) -> str:
    """The one of `known` that `name` is, however it is written, or stands for in `others`; else as `require_known`."""
    known, others = list(known), others or {}
    if name in known:
        return name
    by_folded = {folded(k): v for k, v in [*others.items(), *((k, k) for k in known)]}
    if folded(name) not in by_folded:
        require_known(what, name, known, others)
    return by_folded[folded(name)]


def _close(name: str, known: Iterable[str], most: int, cutoff: float) -> list[str]:
    by_lower = {k.lower(): k for k in reversed(list(known))}
    return [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=most, cutoff=cutoff)]
