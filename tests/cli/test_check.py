"""`bpref check`, as a user calls it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bpref.cli import reports
from bpref.cli.app import run

DERIVATIONS = "tests.cli.derivations"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_a_right_one_ends_with_0_and_names_each_argument(capsys):
    assert run(["check", f"{DERIVATIONS}:Right.scale", "--args", "f32[4] f32[4]", "--key", "5"]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == "scale   float64 oracle: its own primal, differentiated   key 5"
    assert [row.split()[:2] for row in rows] == [["x", "ok"], ["g", "ok"]]


def test_a_wrong_one_ends_with_1_and_is_written_as_json_too(capsys, tmp_path):
    file = tmp_path / "report.json"
    call = ["check", "tests/cli/derivations.py:halved", "--args", "f32[4]", "--key", "5"]
    assert run([*call, "--json", str(file)]) == 1
    assert "x   WRONG   0.5000 x the reference" in capsys.readouterr().out
    report = json.loads(file.read_text())
    assert (report["verdict"], report["key"], report["findings"][0]["kind"]) == ("wrong", 5, "factor")
    assert run([*call, "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out) == report
    file.write_text("of an earlier run")
    assert run([*call, "--json", str(file)]) == 1
    assert json.loads(file.read_text()) == report
    assert list(tmp_path.iterdir()) == [file]


def test_a_report_is_written_as_a_page_that_stands_by_itself(capsys, tmp_path):
    file = tmp_path / "report.html"
    call = ["check", "tests/cli/derivations.py:halved", "--args", "f32[4]", "--key", "5"]
    assert run([*call, "--html", str(file)]) == 1
    assert "x   WRONG   0.5000 x the reference" in capsys.readouterr().out
    page = file.read_text()
    assert "<h1>halved: wrong</h1>" in page
    assert '<span class="verdict wrong">wrong</span></td><td><pre>0.5000 x the reference' in page
    assert "<b><code>x</code>: factor</b>" in page
    assert 'aria-label="relative errors along axis 0 (of 4)"' in page
    assert page.count('class="error" fill-opacity="0.95"><title>5.0e-01</title>') == 4
    assert not re.search(r"(?:src|href)=|url\(", page)
    assert run([*call, "--html", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"bpref: --html {tmp_path}: it is a directory\n"


def test_the_page_is_shown_in_the_browser(capsys, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    call = ["check", "tests/cli/derivations.py:halved", "--args", "f32[4]", "--key", "5", "--open"]
    assert run([*call, "--html", str(tmp_path / "report.html")]) == 1
    assert shown == [(tmp_path / "report.html").as_uri()]
    capsys.readouterr()
    assert run(call) == 2
    assert capsys.readouterr() == ("", "bpref: --open shows the page of --html FILE, which is not given\n")


def test_a_plain_function_with_its_backward_and_reference_and_arguments_that_are_made(capsys):
    given = ["--args", ":make_args", "--backward", "product_backward", "--dtypes", "bf16,float32", "--json", "-"]
    assert run(["check", f"{DERIVATIONS}:product", *given, "--reference", f"{DERIVATIONS}:product_reversed"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["oracle"] == "float64 oracle: the reference, differentiated"
    assert [p["dtype"] for v in report["verdicts"][1:] for p in v["precision"]] == ["bfloat16", "float32"] * 2


def test_float64_arguments_are_checked_in_float64(capsys):
    given = ["--args", "f64[3] f64[3]", "--backward", "product_backward"]
    assert run(["check", f"{DERIVATIONS}:product", *given]) == 0
    assert "float32" not in capsys.readouterr().out


def test_what_cannot_be_told_ends_with_3(capsys):
    assert run(["check", f"{DERIVATIONS}:undecided", "--args", "f32[3]", "--backward", "undecided_backward"]) == 3
    assert "CANNOT TELL" in capsys.readouterr().out


def test_a_search_shows_a_failing_case_with_the_program_for_it(capsys):
    call = ["check", f"{DERIVATIONS}:halved", "--args", "f32[N]", "--search", "20", "--key", "3"]
    assert run([*call, "--json", "-"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["report"]["verdict"] == "wrong"
    assert f"from {DERIVATIONS} import halved\n" in found["snippet"]
    nothing = ["check", f"{DERIVATIONS}:Right.scale", "--args", "f32[N] f32[N,2,2]", "--search", "0.5", "--json", "-"]
    assert run(nothing) == 3, "the function refuses rank promotion, in all cases"
    assert json.loads(capsys.readouterr().out)["refused"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:f"], "there is no module 'nowhere' in the current directory and among the installed packages"),
        (["tests.cli.nowhere:f"], "there is no module 'tests.cli.nowhere' in the current directory"),
        (["tests/nowhere.py:f"], "there is no file tests/nowhere.py"),
        ([DERIVATIONS], f"'{DERIVATIONS}' names no function; expected MODULE:FUNCTION or FILE.py:FUNCTION"),
        (["tests/cli:f"], "'tests/cli' is no module's name; a file is named as FILE.py:FUNCTION"),
        ([f"{DERIVATIONS}:exiting"], f"{DERIVATIONS}:exiting raised SystemExit: bye (tests/cli/derivations.py line"),
        ([f"{DERIVATIONS}:halve"], f"{DERIVATIONS}: unknown name 'halve'; the nearest is halved"),
        ([f"{DERIVATIONS}:Right.scaled"], f"{DERIVATIONS}:Right: unknown name 'scaled'; there is scale"),
        ([f"{DERIVATIONS}:not_callable"], f"{DERIVATIONS}:not_callable is of type Point and cannot be called"),
        ([f"{DERIVATIONS}:product"], f"{DERIVATIONS}:product takes (x, g); --args gives 1: missing a required arg"),
        ([f"{DERIVATIONS}:raising"], "raising raised KeyError: 'no such row' (called with x: float32[3])"),
        ([f"{DERIVATIONS}:halved", "--backward", "bwd"], f"--backward: {DERIVATIONS}: unknown name 'bwd'; there is "),
        ([f"{DERIVATIONS}:halved", "--reference", "json:dumped"], "--reference: json: unknown name 'dumped'; the near"),
        ([f"{DERIVATIONS}:halved", "--args", "f32[3] g32"], "--args: 'g32': unknown dtype 'g32'; the nearest are"),
        ([f"{DERIVATIONS}:halved", "--args", "f32[N]"], "--args: 'f32[N]': axis 'N' has no size; write a number here"),
        ([f"{DERIVATIONS}:halved", "--args", ":one_array"], "--args: :one_array returned a ndarray, expected the"),
        ([f"{DERIVATIONS}:halved", "--args", ":raising"], "--args: :raising: raising() missing 1 required positional"),
        ([f"{DERIVATIONS}:halved", "--args", ":not_callable"], "--args: :not_callable is of type Point and cannot be"),
        ([f"{DERIVATIONS}:halved", "--dtypes", "i32"], "--dtypes: 'i32': expected floating-point dtypes, such as"),
        ([f"{DERIVATIONS}:halved", "--dtypes", "f33"], "--dtypes: unknown dtype 'f33'; the nearest is f32"),
        ([f"{DERIVATIONS}:halved", "--search", "0"], "--search 0: expected seconds, more than 0"),
        ([f"{DERIVATIONS}:halved", "--search", "1", "--dtypes", "f32"], "--dtypes goes with a single check; for"),
        ([f"{DERIVATIONS}:halved", "--key", "-1"], "Invalid value for '--key'"),
        ([f"{DERIVATIONS}:halved", "--json", "/nowhere/r.json"], "--json /nowhere/r.json: No such file or directory"),
    ],
)
def test_a_bad_call_is_one_line_and_ends_with_2(arguments, message, capsys):
    given = arguments if "--args" in arguments else [*arguments, "--args", "f32[3]"]
    assert run(["check", *given]) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith(f"bpref: {message}")
    assert streams.err.count("\n") == 1
    assert streams.out == ""


def test_what_importing_raises_is_said_with_its_line(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit('bye')\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    (tmp_path / "slips.py").write_text("def f(:\n")
    (tmp_path / "json.py").write_text("f = max\n")
    wrong = {
        "leaves:f": "importing leaves raised SystemExit: bye (",
        "needs:f": "importing needs raised ModuleNotFoundError: No module named 'no_such_package' (",
        "slips:f": "importing slips raised SyntaxError: invalid syntax (slips.py, line 1)",
        f"{tmp_path}/json.py:f": f"{tmp_path}/json.py cannot be imported: another module is called json; rename the",
    }
    for target, message in wrong.items():
        assert run(["check", target, "--args", "f32[3]"]) == 2
        assert capsys.readouterr().err.startswith(f"bpref: {message}")


def test_a_fault_of_bpref_keeps_its_traceback(monkeypatch):
    def broken(*args, **options):
        error = ValueError("inside")
        error.add_note("bpref: please report it")
        raise error

    monkeypatch.setattr("bpref.cli.check.check_gradient", broken)
    with pytest.raises(ValueError, match="inside"):
        run(["check", f"{DERIVATIONS}:halved", "--args", "f32[3]"])


def test_on_a_terminal_there_are_columns_and_colour(monkeypatch, capsys):
    monkeypatch.setattr(reports, "Console", lambda **options: Console(force_terminal=True, width=60, **options))
    assert run(["check", f"{DERIVATIONS}:halved", "--args", "f32[4]", "--key", "5"]) == 1
    out = capsys.readouterr().out
    assert "\x1b[1;31mWRONG" in out
    assert out.splitlines()[-1].strip() == "constant factor 1/2", "the column of details is wrapped within itself"


def test_piped_it_is_plain_text_and_finds_a_file_in_the_current_directory(tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "tests/cli/derivations.py").read_text())
    program = [sys.executable, "-m", "bpref", "check", "mine:halved", "--args", "f32[4]", "--key", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "20"}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "halved   float64 oracle: its own primal, differentiated   key 5",
        "  x   WRONG   0.5000 x the reference, every element: a constant factor 1/2",
    ]


def test_help_shows_an_example(capsys):
    assert run(["check", "--help"]) == 0
    assert "Examples: bpref check norms:rms_norm" in " ".join(capsys.readouterr().out.split())


def test_what_the_function_prints_does_not_spoil_the_json(capsys, tmp_path, monkeypatch):
    (tmp_path / "chatty.py").write_text(
        "import jax.numpy as jnp\nprint('loading')\n"
        "def f(x):\n    print('called')\n    return jnp.sin(x)\n"
        "def df(args, dy):\n    return (dy * jnp.cos(args[0]),)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run(["check", "chatty:f", "--args", "f32[3]", "--backward", "df", "--json", "-"]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out)["name"] == "f"
    assert "loading" in seen.err
    assert "called" in seen.err


CONSTANTS = "f32[5,2] i32[40]<5 0.5 'mean of: all' none"


def test_arguments_may_be_constants_and_integers_below_a_bound(capsys):
    call = [f"{DERIVATIONS}:rows", "--backward", "rows_backward", "--key", "3"]
    assert run(["check", *call, "--args", CONSTANTS]) == 0
    first = capsys.readouterr().out
    assert run(["check", *call, "--args", CONSTANTS]) == 0
    assert capsys.readouterr().out == first, "the key draws the integers too"
    searched = "f32[V,2] i32[N]<V 0.5 'mean of: all' none"
    assert run(["check", *call, "--args", searched, "--search", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == 0
    assert run(["audit", f"{DERIVATIONS}:audited_rows", "--args", CONSTANTS, "--json", "-"]) == 1
    (site,) = json.loads(capsys.readouterr().out)["sites"]
    assert (site["name"], site["verdict"]) == ("halved", "wrong")


def test_a_search_of_float64_is_one(capsys):
    call = ["check", f"{DERIVATIONS}:halved", "--args", "f64[N]", "--search", "20", "--key", "3", "--json", "-"]
    assert run(call) == 1
    assert "np.float64" in json.loads(capsys.readouterr().out)["snippet"]


def test_a_package_under_src_is_found(capsys, tmp_path, monkeypatch):
    package = tmp_path / "src" / "kept_in_src"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text((ROOT / "tests/cli/derivations.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for target in ("kept_in_src.mine:halved", "src/kept_in_src/mine.py:halved"):
        assert run(["check", target, "--args", "f32[4]"]) == 1
        assert "x   WRONG" in capsys.readouterr().out
    assert run(["check", "kept_in_scr:f", "--args", "f32[4]"]) == 2
    assert capsys.readouterr().err == (
        "bpref: there is no module 'kept_in_scr' in the current directory, in src/ and among the installed packages\n"
    )


TORCH = "tests/verify/torch_front/torch_functions.py"


def test_a_function_of_pytorch_is_checked_with_tensors(capsys):
    pytest.importorskip("torch")
    given = ["--reference", f"{TORCH}:rms_naive", "--args", "f32[5,8] f32[8] 1e-6", "--key", "1"]
    assert run(["check", f"{TORCH}:Rms.apply", *given]) == 0
    assert capsys.readouterr().out.startswith("Rms   float64 oracle: the reference, differentiated by torch.autograd")
    assert run(["check", f"{TORCH}:RmsTwice.apply", *given, "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [(f["where"], f["kind"]) for f in report["findings"]] == [("x", "factor")]
    assert run(["check", f"{TORCH}:rms", *given, "--framework", "torch", "--dtypes", "bf16"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert run(["check", f"{TORCH}:look_up", "--args", "i64[4]<6 f32[6,4]", "--key", "1"]) == 0


def test_a_wrong_call_of_pytorch_is_one_line(capsys):
    pytest.importorskip("torch")
    given = ["--args", "f32[5,8] f32[8]"]
    assert run(["check", f"{TORCH}:Rms.apply", *given, "--framework", "tensorflow"]) == 2
    assert "--framework: " in capsys.readouterr().err
    assert run(["check", f"{TORCH}:Rms.apply", *given, "--search", "1", "--framework", "jax"]) == 2
    assert "--framework jax: a search finds out by itself" in capsys.readouterr().err


def test_a_function_of_pytorch_is_searched_with_tensors(capsys):
    pytest.importorskip("torch")
    given = ["--reference", f"{TORCH}:rms_naive", "--args", "f32[N,d] f32[d]", "--key", "1"]
    assert run(["check", f"{TORCH}:RmsTwice.apply", *given, "--search", "20"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("RmsTwice   FAILS")
    assert "import torch\n" in out
    assert "torch.tensor([" in out
