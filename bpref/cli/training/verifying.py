"""The gradient against the oracle, before the first step and, if asked for, at later ones."""

from typing import TYPE_CHECKING

from jaxtyping import PyTree

from bpref.cli.errors import Ended
from bpref.layer import Layer
from bpref.train.loop import Reached, Visit
from bpref.train.start import Start

if TYPE_CHECKING:
    from bpref.verify.checked import LeafReport

LARGEST_ERROR = 1e-9
"""A layer whose gradient is further than this from the oracle's, relatively and in float64, is not trained."""


def require_right(J: Layer, params: PyTree, given: PyTree, where: str) -> None:
    """Raise `Ended` unless every layer's gradient is the oracle's; prints the largest error."""
    from bpref.verify.checked import check_leaves

    reports = check_leaves(J, params, given)
    worst = max(reports, key=badness)
    print(
        f"gradient of {where}, {len(reports)} layers with the loss, in float64: "
        f"largest error against the oracle {worst.error:.1e} ({worst.path})"
    )
    wrong = [report for report in reports if not report.error <= LARGEST_ERROR]
    if wrong:
        places = ", ".join(f"{report.path} ({report.error:.1e})" for report in wrong)
        raise Ended(f"not trained, since the hand-derived gradient is wrong in {places}", 1)


def verifying(J: Layer, begin: Start, every: int) -> Visit:
    """Who looks at the gradient of the next batch after every so many steps."""

    def look(reached: Reached) -> None:
        where = f"the batch after step {reached.step}"
        require_right(J, *begin.at(reached.carry.going, reached.step), where)

    return Visit(look, every)


def badness(report: "LeafReport") -> float:
    """The error, NaN being the worst."""
    return report.error if report.error == report.error else float("inf")
