"""Who checks the oracle of a called function? Finite differences of what autodiff was taken of, with their bars."""

import numpy as np

from bpref.verify.cross_check import ELEMENTS, apart
from bpref.verify.host.called import Arrays, Called, widened
from bpref.verify.host.judged import Judged
from bpref.verify.host.oracles import Oracle, numerical
from bpref.verify.host.sampling import cotangent, point
from bpref.verify.numbers import points as fresh
from bpref.verify.report import CANNOT_TELL, Finding, Verdict


def parted(c: Called, oracle: Oracle, key: int) -> list[Finding]:
    """The arguments whose cotangents by autodiff are not what finite differences say, at a few elements of each.

    Nothing is said of a numerical oracle, which is finite differences itself.
    """
    if oracle.in_float64 is None:
        return []
    in_float64, rng = oracle.in_float64, fresh.generator(key, 21)
    leaves = widened(point(c, key, 0), c.differentiable)

    def values(leaves: Arrays) -> Arrays:
        return in_float64(leaves, [])[0]

    dys = [cotangent(values(leaves), rng)]
    (truth,) = in_float64(leaves, dys)[1]
    (found,) = numerical(values, c.differentiable, "it", False, ELEMENTS).cotangents(leaves, dys, rng, 0.0)
    chosen = [(n, name) for n, name in enumerate(c.names) if found.cotangents[n] is not None]
    details = {name: apart(found, n, truth[n], np.zeros(truth[n].shape, bool)) for n, name in chosen}
    return [Finding(name, "oracle", detail) for name, detail in details.items() if detail]


def of_parted(judged: Judged, found: Finding) -> Judged:
    """What is known of an argument whose oracle is wrong: no more than the form of its cotangent."""
    if judged.finding and judged.finding.kind in ("structure", "dtype"):
        return judged
    return Judged(Verdict(found.where, CANNOT_TELL, found.detail, np.inf), found)
