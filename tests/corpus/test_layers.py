"""The first half of the corpus: what is said to be right is right, and what is said to be wrong is wrong as it says."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpref.verify.numbers.measure import relative_error
from bpref.verify.report import KINDS

MODULES = (
    "dense", "convolution", "layer_norm", "rms_norm", "batch_norm", "group_norm", "softmax", "attention", "rnn",
    "gru_cell", "lstm_cell", "embedding", "gelu", "glu", "l2_normalize", "mlp",
)  # fmt: skip
DERIVATIONS = {name: importlib.import_module(f"bpref.corpus.{name}").DERIVATION for name in MODULES}
WRONG = [(d, w) for d in DERIVATIONS.values() for w in d.wrong]
EACH_WRONG = pytest.mark.parametrize(("d", "w"), WRONG, ids=[f"{d.name}-{w.name}" for d, w in WRONG])
EACH = pytest.mark.parametrize("d", DERIVATIONS.values(), ids=DERIVATIONS)

RIGHT, TOLERANCE, DIFFERENT = "right", 1e-11, 1e-6
DY, TWICE, LAST = "dy", "2 dy", "dy in its last row alone"


def names_of(d) -> tuple[str, ...]:
    return tuple(inspect.signature(d.forward).parameters)


def oracle(d, args, dy):
    """The cotangents by autodiff, None for an argument of integers."""
    floats = [i for i, v in enumerate(args) if jnp.issubdtype(v.dtype, jnp.inexact)]

    def of_floats(*values):
        full = list(args)
        for i, v in zip(floats, values, strict=True):
            full[i] = v
        return d.forward(*full)

    found = iter(jax.vjp(of_floats, *(args[i] for i in floats))[1](dy))
    return tuple(next(found) if i in floats else None for i in range(len(args)))


@pytest.fixture(scope="module")
def computed():
    """Cotangents in float64 by derivation: of the oracle, the right and every wrong backward; at three dy."""
    kept = {}

    def compute(d):
        if d.name not in kept:
            kept[d.name] = _compute(d)
        return kept[d.name]

    return compute


def _compute(d):
    with jax.enable_x64(True):
        rng = np.random.default_rng(7)
        args = d.make_args(rng, np.float64)
        y = jax.eval_shape(d.forward, *args)
        dy = jax.tree.map(lambda v: rng.standard_normal(v.shape), y)

        @jax.jit
        def program(args, dy):
            return {
                "oracle": oracle(d, args, dy),
                RIGHT: d.backward(args, dy),
                **{w.name: w.backward(args, dy) for w in d.wrong},
            }

        incoming = {DY: dy, TWICE: jax.tree.map(lambda v: 2 * v, dy), LAST: jax.tree.map(last_row, dy)}
        return {"args": args} | {k: jax.tree.map(np.asarray, program(args, v)) for k, v in incoming.items()}


def last_row(v):
    return v * (np.arange(len(v)) == len(v) - 1).reshape(-1, *[1] * (v.ndim - 1))


def differs(found, truth) -> bool:
    if found is None or truth is None:
        return found is not truth
    if found.shape != truth.shape or found.dtype != truth.dtype:
        return True
    return relative_error(found, truth) > DIFFERENT


def padded(cotangents, n: int) -> tuple:
    return (*cotangents, *[None] * (n - len(cotangents)))


@EACH
def test_the_right_backward_is_the_oracles(d, computed):
    args, found = (computed(d)[k] for k in ("args", DY))
    assert len(found[RIGHT]) == len(args)
    for got, truth in zip(found[RIGHT], found["oracle"], strict=True):
        assert (got is None) == (truth is None)
        if truth is not None:
            assert (got.shape, got.dtype) == (truth.shape, truth.dtype)
            assert relative_error(got, truth) < TOLERANCE


@EACH_WRONG
def test_a_wrong_backward_is_wrong_where_it_says(d, w, computed):
    found = computed(d)[DY]
    truth = found["oracle"]
    got = padded(found[w.name], len(truth))
    wrong = tuple(name for name, a, b in zip(names_of(d), got, truth, strict=True) if differs(a, b))
    assert wrong == w.where


@EACH
def test_names_and_kinds(d):
    assert d.name in MODULES
    assert 3 <= len(d.wrong) <= 6
    assert len({w.name for w in d.wrong}) == len(d.wrong)
    assert {w.kind for w in d.wrong} <= set(KINDS)
    assert all(w.source and set(w.where) <= set(names_of(d)) for w in d.wrong)


def test_there_are_enough_wrong_derivations_of_enough_kinds():
    assert len(WRONG) >= 45
    of_no_derivation, of_losses = {"imprecise", "kink", "impure", "undefined", "oracle"}, {"ignores_dy", "another_dy"}
    assert {w.kind for _, w in WRONG} == set(KINDS) - of_no_derivation - of_losses


@EACH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_right_backward_keeps_the_working_dtype(d, dtype):
    args = d.make_args(np.random.default_rng(3), jnp.dtype(dtype))
    y = jax.eval_shape(d.forward, *args)
    assert {str(v.dtype) for v in jax.tree.leaves(y)} == {dtype}
    found = jax.eval_shape(d.backward, args, y)
    for v, cotangent in zip(args, found, strict=True):
        assert cotangent is None if v.dtype == np.int32 else (cotangent.shape, cotangent.dtype) == (v.shape, v.dtype)


def constant_ratio(found, truth) -> float:
    """The one number that `found` is of `truth`; NaN where there is none."""
    if found.shape != truth.shape:
        return np.nan
    ratio = float((found * truth).sum() / (truth**2).sum())
    return ratio if relative_error(found, ratio * truth) < TOLERANCE else np.nan


def same(a, b) -> bool:
    return a.shape == b.shape and bool(relative_error(a, b) < TOLERANCE)


def is_a_permutation(found, truth) -> bool:
    """What differs is mostly the same numbers, elsewhere: a row that was pushed out at an edge may be lost."""
    moved = np.abs(found - truth) > 1e-9
    shared = np.intersect1d(np.round(found[moved], 9), np.round(truth[moved], 9)).size
    return shared >= 0.7 * np.unique(truth[moved]).size


def is_a_partial_sum(found, truth) -> bool:
    """The axes that are too many sum to the truth. Of one slice in place of a sum, the last test knows."""
    extra = found.ndim - truth.ndim
    return extra == 0 or same(found.sum(tuple(range(extra))), truth)


SEEN = {
    "factor": lambda got, truth, *_: constant_ratio(got, truth) not in (0, 1, -1),  # or of one term
    "sign": lambda got, truth, *_: abs(constant_ratio(got, truth) + 1) < TOLERANCE,
    "zero": lambda got, truth, *_: not got.any() and truth.any(),
    "transposed": lambda got, truth, *_: same(got.T, truth),
    "swapped": lambda got, truth, others, _: any(same(got, v) for v in others),
    "missing_sum": lambda got, truth, *_: is_a_partial_sum(got, truth),
    "mean_for_sum": lambda got, truth, _, sizes: any(
        abs(constant_ratio(got, truth) * n - 1) < TOLERANCE for n in sizes
    ),
    "sparse": lambda got, truth, *_: 0 < (np.abs(got - truth) > 1e-9).mean() <= 0.2,
    "shifted": lambda got, truth, *_: is_a_permutation(got, truth),
    "nonfinite": lambda got, truth, *_: 0 < np.isnan(got).mean() < 0.2 and np.nanmax(np.abs(got - truth)) < 1e-9,
    "dtype": lambda got, truth, *_: got.dtype != truth.dtype and relative_error(got, truth) < 1e-2,
    "structure": lambda got, truth, *_: got is None or got.shape != truth.shape,
}
"""How the arrays show a kind: `(cotangent, truth, the other arguments' truths, the sizes in sight) -> bool`."""

NOT_HOMOGENEOUS = ("nonlinear", "clipped")


@EACH_WRONG
def test_the_arrays_show_the_kind(d, w, computed):
    args, found, at_twice = (computed(d)[k] for k in ("args", DY, TWICE))
    truths = dict(zip(names_of(d), found["oracle"], strict=True))
    got, doubled = (dict(zip(names_of(d), padded(v[w.name], len(args)), strict=True)) for v in (found, at_twice))
    sizes = {n for v in args for n in v.shape} - {1}
    for name in w.where:
        others = [v for other, v in truths.items() if other != name and v is not None]
        if w.kind in SEEN:
            assert SEEN[w.kind](got[name], truths[name], others, sizes)
        if w.kind != "dtype" and got[name] is not None and not np.isnan(got[name]).any():
            assert same(doubled[name], 2 * got[name]) == (w.kind not in NOT_HOMOGENEOUS)


@EACH_WRONG
def test_no_simpler_kind_is_true(d, w, computed):
    """What is called a missing term or unexplained is no multiple, no transpose, no other's cotangent, no NaN."""
    if w.kind not in ("missing_term", "unexplained"):
        return
    found = computed(d)[DY]
    truths = dict(zip(names_of(d), found["oracle"], strict=True))
    got = dict(zip(names_of(d), padded(found[w.name], len(truths)), strict=True))
    for name in w.where:
        truth, value = truths[name], got[name]
        assert value.shape == truth.shape
        assert np.isfinite(value).all()
        assert np.isnan(constant_ratio(value, truth))
        assert not any(same(value, v) for other, v in truths.items() if other != name and v is not None)
        assert truth.ndim != 2 or not same(value.T, truth)
        assert not is_a_permutation(value, truth)


def test_one_slice_in_place_of_a_sum_is_the_truth_of_that_slice(computed):
    (w,) = (w for w in DERIVATIONS["rms_norm"].wrong if "overwritten" in w.name)
    runs = computed(DERIVATIONS["rms_norm"])
    assert same(runs[DY][w.name][1], runs[LAST][RIGHT][1])
    assert w.kind == "missing_sum"
