"""The checker against the whole corpus: it rejects every wrong derivation in the right place, and no right one."""

import jax
import numpy as np
import pytest

import bpref
from bpref.corpus import DERIVATIONS
from tests.conftest import SEED

OTHERWISE = {("cholesky", "folded into the lower triangle"): "factor"} if jax.__version_info__ >= (0, 11) else {}
"""From 0.11 on JAX hands a triangle on to where the matrix is made symmetric: one path is missing, one is doubled."""


@pytest.mark.parametrize("derivation", DERIVATIONS.values(), ids=DERIVATIONS)
def test_every_wrong_derivation_is_rejected_and_the_right_one_accepted(derivation):
    args = [jax.numpy.asarray(v) for v in derivation.make_args(np.random.default_rng(SEED), np.float32)]
    right = bpref.check(derivation.forward, *args, backward=derivation.backward, key=SEED)
    assert right.ok, str(right)
    for wrong in derivation.wrong:
        report = bpref.check(derivation.forward, *args, backward=wrong.backward, key=SEED)
        accused = {v.where.split(".")[0].split("[")[0] for v in report.verdicts if v.verdict != "ok"}
        assert accused == set(wrong.where), f"{wrong.name}\n{report}"
        kinds = {f.kind for f in report.findings} - {"kink"}
        kind = OTHERWISE.get((derivation.name, wrong.name), wrong.kind)
        assert "the search for a cause failed" not in str(report)
        assert {kind} <= kinds <= {kind, "sparse", "unexplained"}, f"{wrong.name}\n{report}"
