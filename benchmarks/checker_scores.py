"""What the trials of gradient checkers come to: how many were judged right, and which were not.

A wrong derivation is detected where it is rejected, also by an exception, such as JAX's own on a cotangent of the wrong
shape; but of `bpref.check` a report is asked for, and an exception is a miss.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks.checker_trials import Trial
from benchmarks.checkers import BPREF
from bpref.corpus import DERIVATIONS, Wrong

UNEXPLAINED = "unexplained"
COMPATIBLE = {"sparse", UNEXPLAINED}
"""Kinds that name no cause: one that is found beside the expected kind, or beside `unexplained`, contradicts nothing.

A wrong gate of a recurrent cell leaves `dx` unexplained, and `dW` wrong in the columns of that gate alone."""


class Count(NamedTuple):
    """How many of how many, and what they are not, by name."""

    good: int = 0
    of: int = 0
    bad: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.of:
            return ""
        percent = 100 * self.good / self.of
        shown = "100%" if self.good == self.of else f"{min(percent, 99.9):.1f}%"
        return f"{shown} of {self.of:,}"


def count(trials: Iterable[Trial], is_good: Callable[[Trial], bool], say: Callable[[Trial], str] = str) -> Count:
    judged = [(t, is_good(t)) for t in trials]
    return Count(sum(good for _, good in judged), len(judged), tuple(say(t) for t, good in judged if not good))


def detected(t: Trial) -> bool:
    return not t.answer.accepted and not (t.checker == BPREF and t.answer.raised)


def accepted(t: Trial) -> bool:
    return t.answer.accepted


def wrong_of(t: Trial) -> Wrong:
    return next(w for w in DERIVATIONS[t.derivation].wrong if w.name == t.case)


def expects_a_kind(t: Trial) -> bool:
    return wrong_of(t).kind != UNEXPLAINED


def names_the_arguments(t: Trial) -> bool:
    """The arguments accused are the wrong ones, all of them and no other."""
    return set(t.answer.accused) == set(wrong_of(t).where)


def names_the_kind(t: Trial) -> bool:
    """Some argument shows the kind that is expected, and none a kind that contradicts it."""
    kinds = frozenset().union(*t.answer.accused.values())
    kind = wrong_of(t).kind
    return kind in kinds and kinds <= {kind} | COMPATIBLE


def names_the_kind_everywhere(t: Trial) -> bool:
    """Every argument accused shows the kind that is expected, and no other."""
    return bool(t.answer.accused) and all(kinds == {wrong_of(t).kind} for kinds in t.answer.accused.values())


def does_not_guess(t: Trial) -> bool:
    """Of what no pattern explains, no cause is named: the rule of `names_the_kind`, with `unexplained` expected."""
    return not t.answer.accused or names_the_kind(t)


def diagnosis_of(t: Trial) -> str:
    """What was said, for a list of those that are not as expected; the same for every seed that agrees."""
    wrong = wrong_of(t)
    found = "; ".join(f"{where}: {', '.join(sorted(kinds))}" for where, kinds in t.answer.accused.items())
    return f"{t.derivation}, {t.case}, {t.dtype}: expected {', '.join(wrong.where)}: {wrong.kind}; found {found}"


def diagnoses(trials: list[Trial]) -> dict[str, Count]:
    """How good the answers of `bpref.check` to wrong derivations are, beyond being no."""
    told = [t for t in trials if t.checker == BPREF]
    explained = [t for t in told if expects_a_kind(t)]
    others = [t for t in told if not expects_a_kind(t)]
    return {
        "right arguments named": count(told, names_the_arguments, diagnosis_of),
        "right kind": count(explained, names_the_kind, diagnosis_of),
        "right kind, in every argument": count(explained, names_the_kind_everywhere, diagnosis_of),
        "no diagnosis where there is none": count(others, does_not_guess, diagnosis_of),
    }


def repeated(lines: Iterable[str]) -> list[str]:
    """Each line once, with how often it came."""
    return [f"{line}{f' ({n} times)' if n > 1 else ''}" for line, n in Counter(lines).items()]
