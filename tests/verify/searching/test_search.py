"""The search: it finds what is wrong only for some shapes, values or hyperparameters, and nothing in what is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import bpref
from bpref.verify.numbers.points import by_zipfs_law
from bpref.verify.report import IMPRECISE, Finding, Report, Verdict
from bpref.verify.searching.layouts import Drawn, Layout, arguments, as_template, is_possible, layouts, patterns_of
from bpref.verify.searching.search import search
from bpref.verify.searching.snippet import snippet
from tests.conftest import SEED

ROOT = Path(bpref.__file__).parents[1]


def mean_square(x):
    return (x**2).mean()


def wrong_for_one_row(args, dy):
    (x,) = args
    return ((2 if x.shape[0] == 1 else 1) * 2 * x * dy / x.size,)


def wrong_unless_square(args, dy):
    (x,) = args
    return (2 * x * dy / x.shape[0] ** 2,)


def embedding(table, ids):
    return table[ids]


def overwriting(args, dy):
    table, ids = args
    return jnp.zeros_like(table).at[ids].set(dy), None


def maximum(x):
    return x.max(-1)


def to_each_of_a_tie(args, dy):
    (x,) = args
    return (jnp.where(x == x.max(-1, keepdims=True), dy[..., None], 0),)


def softplus(x):
    return jnp.logaddexp(x, 0)


def overflowing(args, dy):
    (x,) = args
    return (dy * jnp.exp(x) / (1 + jnp.exp(x)),)


def identity(x):
    return x + 0


def squared_and_divided(args, dy):
    (x,) = args
    return (dy * (x * x + 1) / (x * x + 1),)


def power(x, n):
    return x**n


def wrong_for_the_third(args, dy):
    x, n = args
    return ((2 if n == 3 else n) * x ** (n - 1) * dy, None)


def added(x, b):
    return x + jnp.broadcast_to(b, x.shape)


def not_summed(args, dy):
    return dy, dy


WRONG = {
    "one row": (mean_square, "f32[N,d]", wrong_for_one_row, lambda x: x.shape == (1, 1)),
    "not square": (mean_square, "f32[N,d]", wrong_unless_square, lambda x: x.shape[0] != x.shape[1] and x.size <= 2),
    "repeated indices": (embedding, "f32[V,d] i32[N]<V", overwriting, lambda t, ids: len(set(ids)) < len(ids) <= 3),
    "ties": (maximum, "f32[N,d]", to_each_of_a_tie, lambda x: (x == x.max()).sum() > 1 and x.shape == (1, 2)),
    "large values": (softplus, "f32[N]", overflowing, lambda x: abs(x).max() > 50 and x.size <= 3),
    "huge values": (identity, "f32[N]", squared_and_divided, lambda x: 1e19 < abs(x).max() < np.inf and x.size <= 3),
    "one hyperparameter": (power, ("f32[N]", {1, 2, 3}), wrong_for_the_third, lambda x, n: n == 3 and x.size == 1),
    "broadcasting": (added, "f32[N,d] f32[N|1,d]", not_summed, lambda x, b: b.shape[0] == 1 < x.shape[0]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_only_sometimes_is_found_and_made_small(name):
    fun, specs, backward, is_such = WRONG[name]
    report = search(fun, specs, backward=backward, seconds=30, key=SEED)
    assert report.found
    assert not report.ok
    assert is_such(*report.args), report.args
    assert report.report.findings
    again = bpref.check(fun, *report.args, backward=backward, key=SEED)
    assert str(again) == str(report.report)
    assert (again.verdict == IMPRECISE) == ("values" in name)


def test_nothing_is_found_in_what_is_right():
    def right(args, dy):
        table, ids = args
        return jnp.zeros_like(table).at[ids].add(dy), None

    report = search(embedding, "f32|bf16[V,d] i32[N]<V", backward=right, seconds=30, key=SEED, examples=60)
    assert report.ok
    assert not report.found
    assert report.tried == 60
    assert report.refused == 0
    assert report.raise_if_wrong() is report
    assert str(report).startswith("embedding   no failing case   60 cases in ")


def test_the_same_key_finds_the_same_case_and_the_time_is_kept():
    first, second = (search(maximum, "f32[N,d]", backward=to_each_of_a_tie, seconds=30, key=7) for _ in range(2))
    assert first.snippet == second.snippet
    assert first.tried == second.tried
    none = search(maximum, "f32[N,d]", backward=to_each_of_a_tie, seconds=0, key=7)
    assert (none.tried, none.found, none.ok) == (0, False, False)


def test_the_snippet_runs_by_itself_and_shows_the_same_report(tmp_path):
    report = search(maximum, "f32[N,d]", backward=to_each_of_a_tie, seconds=30, key=SEED)
    program = tmp_path / "again.py"
    program.write_text(report.snippet)
    ran = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.stdout == f"{report.report}\n"
    assert report.snippet in str(report)
    assert json.loads(report.to_json())["report"]["verdict"] == "wrong"
    with pytest.raises(AssertionError, match="WRONG"):
        report.raise_if_wrong()


def test_a_snippet_holds_every_digit_and_says_what_to_fill_in():
    values = np.array([1 / 3, 1e-40, -0.0, np.nan, np.inf], np.float32)
    text = snippet(lambda x: x, (values, np.array(0.1, jnp.bfloat16), 3), None, None, 5)
    written = text.split("report =")[1].split("np.float32)")[0] + "np.float32)"
    again = eval(written[written.index("np.array") :], {"np": np})
    np.testing.assert_array_equal(again.view(np.int32), values.view(np.int32))
    assert "fun = ...  # test_a_snippet_holds_every_digit_and_says_what_to_fill_in.<locals>.<lambda>, test_" in text
    assert "    np.array(0.100098, jnp.bfloat16),\n    3,\n    key=5,\n" in text


def test_a_function_that_takes_nothing_is_said_to_refuse():
    def picky(x):
        raise ValueError(f"expected 64 columns, got {x.shape}")

    report = search(picky, "f32[2]", backward=lambda args, dy: args, seconds=30, key=SEED, examples=5)
    assert (report.tried, report.refused, report.ok, report.found) == (5, 5, False, False)
    assert "nothing could be decided" in str(report)
    assert "the first refusal: CannotCheck: picky raised ValueError: expected 64 columns, got (2,)" in str(report)


def test_a_strategy_and_a_fixed_value_are_arguments_too():
    x = st.sampled_from([np.ones(3, np.float32), np.full(3, 100, np.float32)])
    report = search(softplus, (x,), backward=overflowing, seconds=30, key=SEED)
    assert report.found
    assert report.args[0].max() == 100
    fixed = search(mean_square, (np.ones((1, 2), np.float32),), backward=wrong_for_one_row, seconds=30, key=SEED)
    np.testing.assert_array_equal(fixed.args[0], np.zeros((1, 2)))


def test_layouts_hold_every_special_size_dtype_and_option():
    template = as_template(("f32|bf16[N,d]", {"b": "f32[d|1]"}, [2, 3]))
    drawn = [layout for _, layout in zip(range(60), layouts(template, np.random.default_rng(SEED)), strict=False)]
    assert len(set(drawn)) == 60
    sizes = [dict(layout.sizes) for layout in drawn]
    assert {"N": 1, "d": 1} in sizes
    assert any(s["N"] == 0 for s in sizes)
    assert any(s["d"] == 0 for s in sizes)
    assert any(s["N"] == s["d"] > 1 for s in sizes)
    assert any(s["N"] > s["d"] > 1 for s in sizes)
    assert any(1 < s["N"] < s["d"] for s in sizes)
    assert {dict(layout.dtypes)["float32", "bfloat16"] for layout in drawn} == {"float32", "bfloat16"}
    assert {dict(layout.options)[2] for layout in drawn} == {0, 1}
    assert any(layout.ones for layout in drawn)
    x, b, n = arguments(template, drawn[0], Drawn(tuple(p[0] for p in patterns_of(template, drawn[0])), 0))
    assert (x.shape, b["b"].shape, n) == ((3, 5), (5,), 2)
    table = as_template("f32[V] i32[N]<V")
    assert not is_possible(table, Layout((("V", 0), ("N", 2)), (((("float32",), "float32")), ((("int32",), "int32")))))


def test_specs_that_cannot_be_read_are_refused():
    with pytest.raises(TypeError, match="search: specs is a dict, expected a tuple"):
        search(maximum, {"x": "f32[2]"})
    with pytest.raises(ValueError, match="unknown dtype 'f31'"):
        search(maximum, ("f31[2]",))
    with pytest.raises(ValueError, match="a set or list to choose from is empty"):
        search(maximum, ("f32[2]", set()))


def test_a_missing_hypothesis_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r'install it: pip install "bpref\[search\]"'):
        search(maximum, "f32[2]")


@pytest.mark.parametrize(
    ("specs", "options", "kind", "message"),
    [
        (("f32[N,d]", "i32[N]<W"), {}, ValueError, "search: 'i32[N]<W': W is the size of no axis; the sizes are N, d"),
        (("f32[N,d]", "i32[N]<d"), {"seconds": -1}, ValueError, "search: seconds is -1, expected 0 or more"),
        (
            ("f32[N,d]",),
            {},
            TypeError,
            "search: specs are 1, and rows_of(table, ids): missing a required argument: 'ids'",
        ),
    ],
    ids=["a bound that is no axis", "no time", "too few"],
)
def test_what_a_search_is_not_asked(specs, options, kind, message):
    def rows_of(table, ids):
        return table[ids]

    with pytest.raises(kind) as refused:
        bpref.search(rows_of, specs, **options)
    assert str(refused.value) == message


class Clock:
    """Stands still but for what a case takes: to be compiled, or to run once it is."""

    def __init__(self, monkeypatch, cold, warm, verdict):
        self.now, self.cold, self.warm, self.seen = 0.0, cold, warm, set()
        self.report = Report("f", "oracle", 0, (Verdict("x", verdict, "", 0.0),), (Finding("x", "factor", ""),))
        for module in ("search", "hunt"):
            monkeypatch.setattr(f"bpref.verify.searching.{module}.time", self)
        monkeypatch.setattr("bpref.verify.searching.hunt.check", self.check)

    def monotonic(self):
        return self.now

    def check(self, fun, *args, **options):
        self.now += self.warm if args[0].shape in self.seen else self.cold
        self.seen.add(args[0].shape)
        return self.report


@pytest.mark.parametrize(("verdict", "most"), [("ok", 30), ("wrong", 60)])
def test_a_case_that_would_take_longer_than_the_time_is_not_begun(verdict, most, monkeypatch):
    clock = Clock(monkeypatch, cold=25.0, warm=0.5, verdict=verdict)
    report = search(maximum, "f32[N,d]", seconds=30, key=1, examples=10**6)
    assert most - 25 <= clock.now <= most
    assert report.seconds == clock.now
    assert report.found == (verdict == "wrong")


@pytest.mark.parametrize("examples", [1, 9, 45])
def test_it_ends_with_as_many_cases_as_asked_for(examples, monkeypatch):
    Clock(monkeypatch, cold=0.0, warm=0.0, verdict="ok")
    assert search(maximum, "f32[2,3]", seconds=1, key=1, examples=examples).tried == examples


def test_it_lasts_as_long_as_it_was_told(monkeypatch):
    clock = Clock(monkeypatch, cold=0.1, warm=0.1, verdict="ok")
    assert search(maximum, "f32[2,3]", seconds=60, key=1).tried > 500
    assert clock.now > 59


def test_one_case_is_tried_however_long_the_imports_took(monkeypatch):
    clock = Clock(monkeypatch, cold=1.0, warm=1.0, verdict="ok")
    monkeypatch.setattr(
        "bpref.verify.searching.search.require_hypothesis", lambda: setattr(clock, "now", clock.now + 5)
    )
    assert search(maximum, "f32[N]", seconds=3, key=1).tried == 1
    assert search(maximum, "f32[N]", seconds=0, key=1).tried == 0


def first_if_one_hot(x):
    """2 where every row holds a single 1 and zeros, as only a special draw does; else 1."""
    is_one_hot = jnp.all((x == 0) | (x == 1)) & jnp.all(x.sum(-1) == 1)
    return jnp.where(is_one_hot, 2.0, 1.0).astype(x.dtype)


def test_the_values_that_made_it_fail_are_named():
    def backward(args, dy):
        return (dy * (1 - jnp.tanh(args[0]) ** 2) * first_if_one_hot(args[0]),)

    report = search(jnp.tanh, "f32[N,d]", backward=backward, seconds=60, key=1)
    assert report.found
    assert report.values == "x: one-hot"
    assert "\n  drawn as x: one-hot\n" in str(report)
    assert json.loads(report.to_json())["values"] == "x: one-hot"


@pytest.mark.parametrize("below", [1, 2, 50])
def test_integers_by_zipfs_law(below):
    drawn = by_zipfs_law(np.random.default_rng(SEED), (5000,), below)
    counts = np.sort(np.bincount(drawn, minlength=below))[::-1]
    assert drawn.max() < below
    assert counts[0] > 1.2 * 5000 / below if below > 1 else counts[0] == 5000
