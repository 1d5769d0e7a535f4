"""`bpref audit`, as a user calls it."""

import json

from rich.console import Console

from bpref.cli import reports
from bpref.cli.app import run

DERIVATIONS = "tests.cli.derivations"


def test_a_wrong_rule_inside_a_loop_ends_with_1_and_is_placed(capsys):
    call = ["audit", f"{DERIVATIONS}:looped", "--args", "f32[4]", "--key", "3"]
    assert run([*call, "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    verdicts = {site["name"]: site["verdict"] for site in report["sites"]}
    assert verdicts == {"halved": "wrong", "relu": "ok"}
    assert report["key"] == 3
    assert all(site["file"].endswith("derivations.py") for site in report["sites"])


def test_a_function_of_a_library_whose_rules_are_right_ends_with_0(capsys):
    assert run(["audit", "jax.nn:relu", "--args", "f32[4]", "--key", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("  relu (custom_jvp)   ok   its rule at "), "no line of the user's calls it"
    assert "called at" not in out[1]


def test_what_did_not_run_ends_with_3_and_is_driven_on_demand(capsys):
    call = ["audit", f"{DERIVATIONS}:skipped", "--args", "f32[4]", "--key", "3"]
    assert run(call) == 3
    assert capsys.readouterr().out.splitlines()[1].startswith("  halved (custom_vjp)   NOT RUN   called at ")
    assert run([*call, "--drive"]) == 1
    assert "0.5000 x the reference" in capsys.readouterr().out


def test_on_a_terminal_the_verdict_is_in_colour(monkeypatch, capsys):
    monkeypatch.setattr(reports, "Console", lambda **options: Console(force_terminal=True, width=100, **options))
    assert run(["audit", f"{DERIVATIONS}:halved", "--args", "f32[4]", "--key", "3"]) == 1
    out = capsys.readouterr().out
    assert "\x1b[1;31mWRONG" in out
    assert "its rule at " in out


def test_a_bad_call_is_one_line_and_ends_with_2(capsys):
    wrong = {
        ("nowhere:f", "f32[3]"): "there is no module 'nowhere'",
        (f"{DERIVATIONS}:looped", "f32[N]"): "--args: 'f32[N]': axis 'N' has no size",
        (f"{DERIVATIONS}:looped", "f32[3] f32[3]"): f"{DERIVATIONS}:looped takes (x); --args gives 2: too many",
        (f"{DERIVATIONS}:raising", "f32[3]"): f"{DERIVATIONS}:raising raised KeyError: 'no such row' (tests/cli/deriv",
        (
            f"{DERIVATIONS}:layer",
            "f32[3] f32[3]",
        ): "audit: fun is the Layer tanh, whose backward is no custom rule; use",
        ("jax.nn:relu", "'a'"): "jax.nn:relu raised TypeError: Error interpreting argument to",
        ("math:sin", "f32[3]"): "math:sin raised TypeError: Only scalar arrays can be converted to Python scalars",
        ("os.path:join", "f32[3]"): "os.path:join raised TypeError: expected str, bytes or os.PathLike object, not Dyn",
        ("tests.cli:f", "f32[3]"): "tests.cli: unknown name 'f'; there is ",
        (f"{DERIVATIONS}:not_callable", "f32[3]"): f"{DERIVATIONS}:not_callable is of type Point and cannot be called",
    }
    for (target, args), message in wrong.items():
        assert run(["audit", target, "--args", args]) == 2
        streams = capsys.readouterr()
        assert streams.err.startswith(f"bpref: {message}")
        assert (streams.err.count("\n"), streams.out) == (1, "")


def test_help_shows_an_example(capsys):
    assert run(["audit", "--help"]) == 0
    assert "Examples: bpref audit model:loss" in " ".join(capsys.readouterr().out.split())
