"""check at kinks, at ties and at awkward values: what is right in any way is not accused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.corpus import DERIVATIONS
from tests.verify.written import kinds, rms_norm, rule


@pytest.mark.parametrize(("slope", "right"), [(0.0, True), (0.5, True), (1.0, True), (-0.1, False), (1.5, False)])
def test_any_subgradient_is_accepted_at_a_kink(slope, right):
    f = rule(
        lambda x: jnp.maximum(x, 0.0),
        lambda args, dy: (jnp.where(args[0] == 0, slope, (args[0] > 0).astype(dy.dtype)) * dy,),
    )
    report = bpref.check(f, np.array([-1.0, 0.0, 2.0, 0.0], np.float32))
    assert report.ok == right
    assert {k for _, k in kinds(report)} <= {"kink"} if right else "kink" not in {k for _, k in kinds(report)}


def tied_maximum(share):
    def backward(args, dy):
        ties = (args[0] == args[0].max(-1, keepdims=True)).astype(dy.dtype)
        return (share(ties) * dy[..., None],)

    return rule(lambda x: x.max(-1), backward)


def test_ties_may_be_broken_in_any_way_that_gives_all_of_the_cotangent():
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], np.float32)
    first = tied_maximum(lambda ties: jnp.where(jnp.cumsum(ties, -1) == 1, ties, 0.0))
    assert bpref.check(tied_maximum(lambda ties: ties / ties.sum(-1, keepdims=True)), x).ok
    assert bpref.check(first, x).ok
    assert not bpref.check(tied_maximum(lambda ties: jnp.where(ties.sum(-1, keepdims=True) > 1, 0.0, ties)), x).ok
    assert not bpref.check(tied_maximum(lambda ties: ties), x).ok


def test_ties_are_right_whatever_the_key():
    first = tied_maximum(lambda ties: jnp.where(jnp.cumsum(ties, -1) == 1, ties, 0.0))
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], np.float32)
    assert [key for key in range(20) if not bpref.check(first, x, key=key).ok] == []


def test_a_smooth_function_whose_formula_has_a_kink():
    """log(1 + exp(x)) as max(x, 0) + log1p(exp(-|x|)): smooth at 0, where autodiff of max alone says 1/2."""

    def loss(x):
        return jnp.where(x > 0, x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))

    right = rule(loss, lambda args, dy: (dy * jax.nn.sigmoid(args[0]),))
    assert bpref.check(right, np.array([0.0, 1.0, -1.0, 0.0], np.float32)).ok


AWKWARD = {
    "singular": ("inverse", [np.ones((2, 2))]),
    "nothing but zeros": ("cosine_similarity", [np.zeros((1, 1)), np.zeros((1, 1))]),
    "overflow": ("gaussian_kl", [np.zeros((1, 1)), np.full((1, 1), 2e18)]),
    "a kink that cancels": ("sigmoid_cross_entropy", [np.zeros((1, 5)), np.zeros((1, 5))]),
    "underflow": ("softmax", [np.array([[0, 0, 0, 0, -2000.0]])]),
    "a gradient of zero": ("attention", [np.zeros((1, 2, 1)), np.ones((1, 2, 1)), np.array([[[0.3], [-1.2]]])]),
}


@pytest.mark.parametrize(("name", "values"), AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("key", [0, 11])
def test_a_right_derivation_is_not_accused_at_awkward_values(name, values, key):
    derivation = DERIVATIONS[name]
    args = [v.astype(np.float32) for v in values]
    report = bpref.check(derivation.forward, *args, backward=derivation.backward, key=key)
    assert report.verdict == ("cannot tell" if name in ("gaussian_kl", "inverse", "cosine_similarity") else "ok"), str(
        report
    )


def test_total_cancellation_is_not_accused():
    """RMS norm of one feature: its gradient is 1e-43 of the terms that it is the difference of."""
    f, x, g = rms_norm(), np.array([[2e18]], np.float32), np.zeros(1, np.float32)
    assert {bpref.check(f, x, g, key=key).verdict for key in range(8)} <= {"ok", "cannot tell"}


def test_infinite_everywhere_says_nothing():
    f = rule(jnp.exp, lambda args, dy: (3 * dy * jnp.exp(args[0]),))
    assert bpref.check(f, np.full(3, 1000.0, np.float32), key=1).verdict == "cannot tell"
