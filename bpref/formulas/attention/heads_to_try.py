"""What the rules of attention are tried with: the heads, what is never empty, and the sizes of their cases."""

from bpref.formulas.attention.heads import Heads
from bpref.rule import Integer, Real, specs

ACROSS = specs(Heads, Real("B T N D", -2.0, 2.0), Real("B S K D", -2.0, 2.0), Real("B S K E", -2.0, 2.0))
"""Queries of one sequence, keys and values of another."""

NEVER_EMPTY = ("T", "N", "D", "S", "K", "E")

GROUPED = {"N": 4, "K": 2}
"""Two heads of queries to each of keys, `fixed`."""

TIMED = {"B": 1, "T": 512, "N": 8, "D": 64, "S": 512, "K": 8, "E": 64}

WITHIN = specs(Heads, *(Real(axes, -2.0, 2.0) for axes in ("B T N D", "B T K D", "B T K E")))
"""All of one sequence."""

SHORT_KEYS = WITHIN._replace(k=Real("B T K D", -0.8, 0.8))
"""The same, with keys that a state is not thrown about by, to which they write what it lacks."""

GATES = Real("B T K D", -2.0, 0.0, points=(0.0, -30.0, 0.0, -200.0))
"""The logarithms of what remains of each feature, of all and of next to nothing too."""

STATE = Real("B K D E", -1.0, 1.0)

TWO = {"B": 2, "N": 2, "K": 2}
TWO_GROUPED = {"B": 2, "N": 4, "K": 2}
"""Of attention with a state, `fixed`."""

TIMED_WITH_STATE = {"B": 1, "T": 512, "N": 4, "K": 4, "D": 32, "E": 32}


def packed(heads: Heads) -> Heads:
    """The heads of two sequences or more."""
    return heads._replace(q_segments=Integer("B T", 0, 2))
