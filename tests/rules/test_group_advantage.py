"""What a policy's answers are measured by: the deviation of their group, and a reference where it has a weight."""

import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.rules.test_preference_loss import GRPO, MASK, PPO, TOKENS, sweep

pytestmark = pytest.mark.quick


def test_the_deviation_is_the_populations_or_the_samples():
    """Rewards 0 and 2: deviations 1 and sqrt(2); of a group of one there is none, and A = 0."""
    x = (TOKENS, TOKENS, None, jnp.array([0.0, 2.0]), MASK)
    for ddof, A in ((0, 1), (1, 0.5**0.5)):
        _, (dpi, *_) = sweep(bpref.grpo(kl_weight=0, eps=1e-9, ddof=ddof), x)
        np.testing.assert_allclose(dpi, [[A / 6] * 3, [-A / 6] * 3], rtol=1e-6)
        J, (dpi, *_) = sweep(bpref.grpo(kl_weight=0, ddof=ddof), (*(v[:1] for v in x[:2]), None, x[3][:1], MASK[:1]))
        assert (float(J), np.abs(dpi).max()) == (0, 0)


@pytest.mark.parametrize(("make", "x"), [(bpref.ppo, PPO), (bpref.grpo, GRPO)], ids=["ppo", "grpo"])
def test_a_reference_is_needed_where_it_has_a_weight(make, x):
    without = (TOKENS + 0.5, x[1], None, *x[3:])
    got, wanted = (sweep(make(kl_weight=0), v) for v in (without, (TOKENS + 0.5, *x[1:])))
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(got[1][0], wanted[1][0])
    with pytest.raises(TypeError, match=f"^{make().name}: reference is None, expected an array$"):
        make(kl_weight=0.1).forward((), without)
