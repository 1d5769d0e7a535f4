"""At the values that a search draws no right derivation is accused: zeros, ties, outliers, rows that hardly vary."""

import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from benchmarks.bench_draws import asker, drawn, verdict
from bpref.corpus import DERIVATIONS
from bpref.verify.report import CANNOT_TELL, OK
from tests.conftest import SEED

NAMES = (
    *("softmax", "router", "l2_normalize", "max_pool", "prelu", "cosine_similarity", "linear_attention"),
    *("inverse", "gru_cell"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_derivation_is_not_accused(name):
    derivation, patterns = DERIVATIONS[name], set()
    ask = asker(derivation, "JAX")
    with np.errstate(all="ignore"):
        for what, args in drawn(derivation, "float32", 0):
            patterns |= set(what.split(", "))
            said = verdict(ask, args, 0)
            assert said in (OK, CANNOT_TELL), f"{what}: {said}"
    assert {"zeros", "ties", "half zero", "flat rows", "outlier channels", "huge", "subnormal"} <= patterns


def leaky(x, slope):
    return jnp.where(x > 0, x, slope * x)


@pytest.mark.parametrize(("right", "ok"), [(1, True), (0, True), (0.5, True), (3, False), (-2, False)])
def test_a_kink_of_an_element_that_is_small_beside_others_is_one(right, ok):
    slope = jnp.array([0.25, 1e5], jnp.float32)
    x = jnp.array([0.0, -1.0], jnp.float32)

    def backward(args, dy):
        x, slope = args
        dx = jnp.where(x > 0, 1, jnp.where(x == 0, right + (1 - right) * slope, slope)) * dy
        return dx, jnp.where(x > 0, 0, dy * x)

    report = bpref.check(leaky, x, slope, backward=backward, key=1)
    assert report.ok == ok, str(report)


@pytest.mark.parametrize(("first", "ok"), [(True, True), (False, True), (None, False)])
def test_windows_that_overlap_may_all_take_the_first_of_what_is_tied_or_the_last(first, ok):
    def windows(x):
        return jnp.stack([x[:-2:2], x[1:-1:2], x[2::2]])

    def backward(args, dy):
        """`first` is None: what is tied gets all of dy each."""
        (x,) = args
        w = windows(x)
        place = w.argmax(0) if first else 2 - w[::-1].argmax(0)
        if first is None:
            of_place = jnp.where(w == w.max(0)[None], dy[None], 0)
        else:
            of_place = jnp.where(jnp.arange(3)[:, None] == place[None], dy[None], 0)
        at = 2 * jnp.arange(len(dy))
        return (sum(jnp.zeros_like(x).at[at + i].add(of_place[i]) for i in range(3)),)

    report = bpref.check(lambda x: windows(x).max(0), jnp.zeros(301, jnp.float32), backward=backward, key=1)
    assert report.ok == ok, str(report)


@pytest.mark.parametrize("n", [1, 2, 24, 25])
def test_a_filter_is_right_for_signals_of_odd_length_too(n):
    d = DERIVATIONS["spectral_filter"]
    rng = np.random.default_rng(SEED)
    args = [rng.normal(size=shape).astype(np.float32) for shape in ((3, n), (n // 2 + 1,), (n // 2 + 1,))]
    report = bpref.check(d.forward, *args, backward=d.backward, key=1)
    assert report.ok, str(report)
    with pytest.raises(
        ValueError, match=f"^spectral_filter: real has {n // 2 + 1} frequencies, expected n // 2 . 1, n"
    ):
        d.forward(np.ones((3, n + 2), np.float32), *args[1:])
