"""The corpus: what is called right is right, what is called wrong is wrong where it says, and of the kind it says."""

import ast
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import bpref.corpus
from bpref.corpus import DERIVATIONS, Derivation, Wrong
from bpref.verify.numbers.measure import relative_error
from bpref.verify.report import KINDS
from tests.conftest import SEED

HERE = (
    "max_pool", "average_pool", "softmax_cross_entropy", "sigmoid_cross_entropy", "huber", "cosine_similarity",
    "info_nce", "gather", "segment_sum", "cumulative_sum", "cumulative_product", "log_sum_exp", "spectral_filter",
    "solve", "cholesky", "log_determinant", "inverse", "bilinear", "prelu", "variance", "gaussian_kl", "upsample",
    "fused_linear_cross_entropy", "token_cross_entropy", "add_rms_norm", "rotary", "clamped_swiglu",
    "grouped_query_attention", "dropout", "tied_embedding", "distillation", "preference", "router",
    "linear_attention", "causal_convolution",
)  # fmt: skip
"""The functions that are evaluated in this file; the layers have their own."""

WRONG = [pytest.param(name, wrong, id=f"{name}: {wrong.name}") for name in HERE for wrong in DERIVATIONS[name].wrong]


class Evaluated(NamedTuple):
    """The cotangents of one derivation at one point, by parameter name; those of wrong ones by their name, too."""

    truth: dict[str, Any]
    right: dict[str, Any]
    wrong: dict[str, dict[str, Any]]
    wrong_of_doubled: dict[str, dict[str, Any]]


@cache
def evaluate(name: str) -> Evaluated:
    """One compiled program for each derivation."""
    return evaluate_at(DERIVATIONS[name], np.random.default_rng(SEED))


def evaluate_at(d: Derivation, rng: np.random.Generator) -> Evaluated:
    args = dict(zip(names_of(d), d.make_args(rng, np.float64), strict=True))
    floats = {name: v for name, v in args.items() if v.dtype == np.float64}

    def named(cotangents):
        return dict(zip(args, cotangents, strict=True))

    def everything(floats, dy):
        values = tuple(floats.get(name, v) for name, v in args.items())
        (truth,) = jax.vjp(lambda floats: d.forward(*{**args, **floats}.values()), floats)[1](dy)
        dys = (dy, jax.tree.map(lambda v: 2 * v, dy))
        wrong = ({w.name: named(w.backward(values, dy)) for w in d.wrong} for dy in dys)
        return {name: truth.get(name) for name in args}, named(d.backward(values, dy)), *wrong

    with jax.enable_x64(True):
        y = jax.eval_shape(d.forward, *args.values())
        return Evaluated(
            *jax.device_get(jax.jit(everything)(floats, jax.tree.map(lambda v: rng.normal(size=v.shape), y)))
        )


def names_of(d: Derivation) -> list[str]:
    return list(inspect.signature(d.forward).parameters)


def differs(value: Any, truth: Any) -> bool:
    if value is None or truth is None:
        return value is not truth
    return value.shape != truth.shape or value.dtype != truth.dtype or bool(relative_error(value, truth) > 1e-6)


def ratio(value: np.ndarray, truth: np.ndarray) -> float | None:
    """The constant that value is of truth, where it is one."""
    factor = float(np.vdot(truth, value) / np.vdot(truth, truth))
    return factor if np.allclose(value, factor * truth, rtol=1e-9, atol=1e-12 * np.abs(value).max()) else None


def is_of_kind(wrong: Wrong, where: str, found: Evaluated) -> bool:
    """Whether the arrays alone bear the kind out, where one array and its truth can."""
    value, truth = found.wrong[wrong.name][where], found.truth[where]
    rest = {n: v for n, v in found.truth.items() if n != where and v is not None}
    if wrong.kind == "structure":
        return value is None or value.shape != truth.shape
    if wrong.kind == "dtype":
        return value.dtype != truth.dtype and relative_error(value.astype(truth.dtype), truth) < 1e-2
    if wrong.kind == "nonfinite":
        return not np.isfinite(value).all() and np.isfinite(truth).all()
    if wrong.kind == "ignores_dy":
        return found.wrong_of_doubled[wrong.name][where] == pytest.approx(value)
    if wrong.kind in ("nonlinear", "clipped"):
        return ratio(found.wrong_of_doubled[wrong.name][where], value) != pytest.approx(2)
    assert found.wrong_of_doubled[wrong.name][where] == pytest.approx(2 * value)
    constant = ratio(value, truth)
    simple = {"sign": constant == pytest.approx(-1), "zero": not value.any()}
    if wrong.kind in simple:
        return simple[wrong.kind]
    if wrong.kind == "mean_for_sum":
        return constant is not None and constant != pytest.approx(-1)
    if wrong.kind == "factor":
        return constant is None or constant != pytest.approx(-1)  # of one term, or of the whole
    square = truth.ndim > 1 and truth.shape[-1] == truth.shape[-2]
    transposed = square and np.allclose(value, np.swapaxes(truth, -1, -2))
    swapped = any(v.shape == value.shape and np.allclose(v, value) for v in rest.values())
    if wrong.kind in ("transposed", "swapped"):
        return {"transposed": transposed, "swapped": swapped}[wrong.kind]
    few = np.mean(~np.isclose(value, truth, rtol=1e-9, atol=1e-12)) < 0.25
    if wrong.kind == "sparse":
        return few
    shifted = any(is_shifted(value, truth, axis) for axis in range(truth.ndim))
    if wrong.kind == "shifted":
        return shifted
    return constant is None and not (transposed or swapped or few or shifted)


def is_shifted(value: np.ndarray, truth: np.ndarray, axis: int) -> bool:
    """Whether slices along an axis are those of the truth in another order; one at an edge may have got lost."""
    value, truth = np.moveaxis(value, axis, 0), np.moveaxis(truth, axis, 0)
    if len(truth) < 3:
        return False
    found = [any(np.allclose(v, t, rtol=1e-9, atol=1e-12) for t in truth) for v in value]
    return all(found) or all(found[1:]) or all(found[:-1])


@pytest.mark.parametrize("name", HERE)
def test_the_right_derivation_agrees_with_autodiff(name: str):
    found = evaluate(name)
    for where, truth in found.truth.items():
        value = found.right[where]
        assert (value is None) == (truth is None)
        if truth is not None:
            assert (value.shape, value.dtype) == (truth.shape, truth.dtype)
            assert relative_error(value, truth) < 1e-11


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_derivation_is_wrong_where_it_says(name: str, wrong: Wrong):
    found = evaluate(name)
    cotangents = found.wrong[wrong.name]
    assert {n for n, truth in found.truth.items() if differs(cotangents[n], truth)} == set(wrong.where)


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_derivation_is_of_its_kind(name: str, wrong: Wrong):
    for where in wrong.where:
        assert is_of_kind(wrong, where, evaluate(name)), where


def test_a_kind_that_is_not_borne_out_is_found():
    """The test above can fail: given another kind, it does."""
    found = evaluate("solve")
    sign = next(w for w in DERIVATIONS["solve"].wrong if w.kind == "sign")
    others = set(KINDS) & {"factor", "zero", "transposed", "sparse", "shifted", "structure", "dtype", "unexplained"}
    assert len(others) == 8
    assert not [kind for kind in others if is_of_kind(sign._replace(kind=kind), "matrix", found)]


@pytest.mark.parametrize("name", HERE)
def test_arguments_are_numpy_arrays_of_the_dtype_and_repeatable(name: str):
    for dtype in (np.float32, np.float64, jax.numpy.bfloat16):
        first, second = (DERIVATIONS[name].make_args(np.random.default_rng(SEED), dtype) for _ in range(2))
        assert {v.dtype for v in first if v.dtype.kind != "i"} == {np.dtype(dtype)}
        assert all(isinstance(v, np.ndarray) and v.size <= 250 for v in first)
        assert all((a == b).all() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", DERIVATIONS)
def test_what_is_said_of_a_derivation_is_complete(name: str):
    d = DERIVATIONS[name]
    assert d.name == name
    assert len({w.name for w in d.wrong}) == len(d.wrong) >= 2
    for wrong in d.wrong:
        assert wrong.kind in KINDS
        assert wrong.where
        assert set(wrong.where) <= set(names_of(d))
        assert wrong.source


def test_every_file_with_a_derivation_is_in_the_corpus():
    folder = Path(bpref.corpus.__file__).parent
    assigned = {
        path.stem
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DERIVATION"
    }
    assert assigned == set(DERIVATIONS)


def test_the_corpus_is_large():
    assert len(DERIVATIONS) >= 20
    assert sum(len(d.wrong) for d in DERIVATIONS.values()) >= 80
    assert sum(w.kind == "unexplained" for d in DERIVATIONS.values() for w in d.wrong) >= 8
    of_no_derivation = {"imprecise", "kink", "impure", "undefined", "oracle"}
    assert {w.kind for d in DERIVATIONS.values() for w in d.wrong} == set(KINDS) - of_no_derivation


def test_the_readme_counts_the_corpus():
    wrong = sum(len(d.wrong) for d in DERIVATIONS.values())
    said = f"holds {len(DERIVATIONS)} functions with their right derivations and {wrong} wrong ones,"
    assert said in (Path(bpref.corpus.__file__).parents[2] / "README.md").read_text()


def test_import_bpref_does_not_load_the_corpus():
    program = "import sys, bpref; print([m for m in sys.modules if m.startswith('bpref.corpus')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
