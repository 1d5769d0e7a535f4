"""`bpref tasks` and `bpref judge`, as a user calls them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from bpref import rules
from bpref.cli.app import run
from bpref.rules import RULES
from bpref.tasks.judge import _fresh, judge
from bpref.tasks.problem import case_of, problem, small_sizes
from bpref.tasks.sandbox import Failed, Solution
from bpref.tasks.source import NotAlone
from bpref.tasks.writing import files_of

RIGHT = """
import jax.numpy as jnp


def backward(args, dy):
    W, b, x = args
    d = dy.reshape(-1, dy.shape[-1])
    return d.T @ x.reshape(-1, x.shape[-1]), d.sum(0), dy @ W
"""

INSTEAD = {
    "import time\n\ndef backward(args, dy):\n    time.sleep(99)\n": "it took more than 6 s",
    "import os\n\ndef backward(args, dy):\n    os._exit(3)\n": "its process ended with exit code 3",
    "import os\n\ndef backward(args, dy):\n    os.kill(os.getpid(), 9)\n": "its process ended with signal SIGKILL",
    "def backward(args, dy):\n    raise KeyError('no such row')\n": "it raised KeyError: 'no such row'",
    "def backward(args, dy):\n    return dy\n": "it raised TypeError: backward returned a ArrayImpl, expected a",
    "def backwards(args, dy):\n    return dy\n": "it raised AttributeError: module 'solution' has no attribute 'b",
    "import bpref\n": "it raised PermissionError: a solution reads nothing of bpref",
    "import sys\ndel sys.modules['bpref']\nimport bpref.rules\n": "it raised PermissionError: a solution reads nothing",
    f"open({rules.__file__!r})\n": "it raised PermissionError: a solution reads nothing of bpref",
    "import subprocess, sys\n\ndef backward(args, dy):\n    "
    "subprocess.run([sys.executable, '-c', '1'])\n": "it raised PermissionError: a solution starts no other process",
    "import os\n\ndef backward(args, dy):\n    os.fork()\n": "it raised PermissionError: a solution starts no other",
    "import os\n\ndef backward(args, dy):\n    for fd in range(3, 20):\n        try:\n            "
    "os.write(fd, b'x' * 64)\n        except OSError:\n            pass\n": "its answer cannot be read",
}


@pytest.fixture
def solution(tmp_path):
    def written(text: str) -> Path:
        (tmp_path / "solution.py").write_text(text)
        return tmp_path / "solution.py"

    return written


def test_a_task_is_written_without_its_backward_and_its_solution_is_judged(tmp_path, capsys):
    assert run(["tasks", "--out", str(tmp_path), "linear"]) == 0
    assert capsys.readouterr().out == f"1 task in {tmp_path}\n"
    folder = tmp_path / "linear"
    assert sorted(p.name for p in folder.iterdir()) == ["forward.py", "solution.py", "task.json", "task.md"]
    assert run(["judge", str(folder), str(folder / "solution.py"), "--key", "3"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "linear   WRONG   1 sets of shapes   key 3",
        "  it raised NotImplementedError: the cotangents of args, derived by hand",
    ]
    (folder / "solution.py").write_text(RIGHT)
    assert run(["tasks", "--out", str(tmp_path), "linear"]) == 0
    assert (folder / "solution.py").read_text() == RIGHT, "a solution that is there stays"
    capsys.readouterr()
    assert run(["judge", str(folder), str(folder / "solution.py"), "--key", "3", "--json", "-"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["verdict"], verdict["cause"], len(verdict["shapes"])) == ("ok", "", 3)
    assert verdict["uses_autodiff"] is False
    assert len({json.dumps(s) for s in verdict["shapes"]}) == 3
    assert len(verdict["cost"]["memory"]) == 2
    assert 0.1 < verdict["cost"]["time"] < 10


def test_a_wrong_solution_is_told_its_cause(solution, capsys):
    wrong = str(solution(RIGHT.replace("d.sum(0)", "d.mean(0)")))
    assert run(["judge", "linear", wrong, "--key", "3"]) == 1
    heading, cause = capsys.readouterr().out.splitlines()
    assert heading == "linear   WRONG   1 sets of shapes   key 3"
    assert (
        cause
        == "  db: 0.08333 x the reference, every element: a mean in place of the sum over axes 0, 1 of dy (12 terms)"
    )


def test_a_solution_in_pytorch_takes_and_returns_tensors(tmp_path, capsys):
    pytest.importorskip("torch")
    assert run(["tasks", "--out", str(tmp_path), "--framework", "torch", "linear"]) == 0
    file = tmp_path / "linear" / "solution.py"
    assert file.read_text().startswith("import torch\n")
    text = RIGHT.replace("import jax.numpy as jnp", "import torch").replace(
        "W, b, x = args", "W, b, x = args\n    dy.view(-1)"
    )
    for written, code, verdict in ((text, 0, "ok"), (text.replace("dy @ W", "-dy @ W"), 1, "wrong")):
        file.write_text(written)
        capsys.readouterr()
        assert run(["judge", str(file.parent), str(file), "--key", "3", "--json", "-"]) == code
        judged = json.loads(capsys.readouterr().out)
        assert judged["verdict"] == verdict
    assert judged["cause"].startswith("dx: -1 x the reference, every element: the sign is wrong")


def test_a_cotangent_of_another_shape_is_wrong(solution):
    judged = judge(RULES["linear"], solution(RIGHT.replace("d.sum(0)", "d")), 3)
    assert judged.verdict == "wrong"
    assert judged.cause.startswith("db: the sum over the axes that b does not have (axis 0, size ")


@pytest.mark.parametrize(("text", "cause"), INSTEAD.items(), ids=INSTEAD.values())
def test_what_is_no_answer_is_wrong_and_said_in_one_line(solution, text, cause):
    judged = judge(RULES["linear"], solution(text), 3, seconds=6 if "sleep" in text else 60)
    assert judged.verdict == "wrong"
    assert judged.cause.startswith(cause)


def test_a_solution_may_print_and_be_written_in_numpy(solution):
    text = RIGHT.replace("W, b, x = args", "import numpy as np\n    print('hello')\n    W, b, x = map(np.array, args)")
    judged = judge(RULES["linear"], solution(text.replace("dy.reshape", "np.array(dy).reshape")), 3)
    assert (judged.verdict, judged.cause) == ("ok", "")
    assert str(judged.cost).startswith("memory and time not measured: JAX cannot compile it (it raised Tracer")


BY_AUTODIFF = {
    "vjp": "import jax\n\ndef backward(args, dy):\n    return jax.vjp(lambda W, b, x: x @ W.T + b, *args)[1](dy)\n",
    "grad": "from jax import grad\nimport jax.numpy as jnp\n\ndef backward(args, dy):\n    "
    "return grad(lambda W, b, x: jnp.sum(dy * (x @ W.T + b)), (0, 1, 2))(*args)\n",
    "linear_transpose": RIGHT.replace("dy @ W", "__import__('jax').linear_transpose(lambda x: x @ W.T, x)(dy)[0]"),
    "torch": "import torch\nfrom torch.autograd import grad\n\ndef backward(args, dy):\n    "
    "W, b, x = [torch.tensor(__import__('numpy').array(v), requires_grad=True) for v in args]\n    "
    "return [v.numpy() for v in grad(x @ W.T + b, (W, b, x), torch.tensor(__import__('numpy').array(dy)))]\n",
}


@pytest.mark.parametrize("name", BY_AUTODIFF)
def test_a_solution_by_autodiff_is_no_derivation_unless_it_is_allowed(name, solution, capsys):
    if name == "torch":
        pytest.importorskip("torch")
    file = str(solution(BY_AUTODIFF[name]))
    assert run(["judge", "linear", file, "--key", "3"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "linear   NO DERIVATION   1 sets of shapes   key 3",
        "  it lets autodiff compute its cotangents; --allow-autodiff admits that",
    ]
    assert run(["judge", "linear", file, "--key", "3", "--allow-autodiff", "--json", "-"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert (judged["verdict"], judged["uses_autodiff"]) == ("ok", True)


def test_what_jax_does_by_itself_is_no_autodiff_of_the_solutions(solution):
    """Solving a system transposes a program of JAX's own; functions with rules and loops run as they are."""
    text = """
import jax
import jax.numpy as jnp


def backward(args, dy):
    A, b = args
    y = jnp.linalg.solve(A, b)
    db = jax.checkpoint(lambda A, dy: jnp.linalg.solve(A.T, dy))(A, dy)
    db = jax.lax.scan(lambda c, _: (c + jax.nn.relu(-1 * jnp.abs(c)), None), db, None, 2)[0]
    return -jnp.outer(db, y), db
"""
    rng = np.random.default_rng(0)
    A, b, dy = (rng.normal(size=s).astype(np.float32) for s in ((3, 3), 3, 3))
    with Solution(solution(text), 60, 16) as process:
        dA, db = process.backward((A, b), dy)
        assert not process.uses_autodiff
    np.testing.assert_allclose(db, np.linalg.solve(A.T, dy), rtol=1e-4)
    np.testing.assert_allclose(dA, -np.outer(db, np.linalg.solve(A, b)), rtol=1e-4)


def test_rules_that_are_no_task_are_said_at_the_command(tmp_path, capsys):
    assert run(["tasks", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "left out, since they are made of other layers: tied_embedding, flex_attention, bidirectional"
    )


LOOKS = """
import json, os, sys
import numpy as np


def backward(args, dy):
    with open("/proc/self/environ", "rb") as file:
        environment = file.read().decode()
    seen = {
        "environment": sorted(os.environ), "argv": sys.argv, "files": sorted(os.listdir(".")),
        "modules": sorted(m for m in sys.modules if m.startswith("bpref") and sys.modules[m]),
        "descriptors": len(os.listdir("/proc/self/fd")), "first": environment, "frames": [],
    }
    try:
        with open("report.json", "w") as file:
            file.write("ok")
        seen["written"] = True
    except OSError:
        seen["written"] = False
    return [np.frombuffer(json.dumps(seen).encode(), np.uint8)]
"""


def test_the_process_of_a_solution_has_inputs_and_nothing_of_the_judges(solution, monkeypatch):
    monkeypatch.setenv("EXPECTED", "secret")
    with Solution(solution(LOOKS), 60, 16) as process:
        (said,) = process.backward((np.ones(3, np.float32),), np.ones(3, np.float32))
    seen = json.loads(said.tobytes())
    assert set(seen["environment"]) <= {"HOME", "PATH", "JAX_PLATFORMS", "LC_CTYPE", "TPU_ML_PLATFORM"} | {
        name for name in seen["environment"] if name.startswith(("KMP_", "TF_", "TPU_", "XLA_", "JAX_"))
    }
    assert "secret" not in seen["first"]
    assert [Path(a).name for a in seen["argv"]] == ["child.py", "solution.py"]
    assert set(seen["files"]) <= {"solution.py", "__pycache__"}
    assert (seen["modules"], seen["written"]) == ([], False)


def test_its_memory_is_limited(solution):
    text = "import numpy as np\n\ndef backward(args, dy):\n    return (np.ones(2**33),)\n"
    with Solution(solution(text), 60, 16) as process, pytest.raises(Failed, match=r"Unable to allocate 64\.0 GiB"):
        process.backward((np.ones(3, np.float32),), np.ones(3, np.float32))


MADE_OF_LAYERS = ("tied_embedding", "flex_attention", "bidirectional")


@pytest.mark.parametrize("name", MADE_OF_LAYERS)
def test_a_rule_that_is_made_of_other_layers_is_no_task(name):
    with pytest.raises(NotAlone):
        files_of(RULES[name])


@pytest.mark.parametrize("rule", [r for name, r in RULES.items() if name not in MADE_OF_LAYERS], ids=lambda r: r.name)
def test_the_forward_of_a_task_stands_alone(rule):
    files = files_of(rule)
    namespace: dict = {}
    exec(compile(files["forward.py"], "forward.py", "exec"), namespace)
    assert "def backward" not in files["forward.py"]
    assert "import bpref" not in files["forward.py"]
    assert "from bpref" not in files["forward.py"]
    p = problem(rule, small_sizes(case_of(rule), np.random.default_rng(0)), 0)
    written, own = (jax.eval_shape(f, *p.args) for f in (namespace["forward"], p.forward))
    assert written == own
    compile(files["solution.py"], "solution.py", "exec")


@pytest.mark.parametrize("name", ["lstm", "mamba_block", "multi_head_attention", "top_k_router"])
def test_the_forward_of_a_task_is_the_rules_reference(name):
    namespace: dict = {}
    exec(files_of(RULES[name])["forward.py"], namespace)
    p = problem(RULES[name], small_sizes(case_of(RULES[name]), np.random.default_rng(0)), 0)
    written, own = (jax.tree.leaves(f(*p.args)) for f in (namespace["forward"], p.forward))
    assert all(np.array_equal(a, b) for a, b in zip(written, own, strict=True))


def test_fresh_shapes_are_such_that_the_function_is_finite():
    rng = np.random.default_rng(0)
    for _ in range(3):
        p = _fresh(RULES["ctc"], rng)
        assert np.isfinite(p.forward(*p.args)).all()


def test_wrong_use_is_one_line(tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/task.json").write_text("no")
    (tmp_path / "s.py").write_text(RIGHT)
    calls = {
        ("tasks", "--out", str(tmp_path), "--framework", "numpy"): "--framework numpy: expected one of jax, torch",
        ("tasks", "--out", str(tmp_path), "linaer"): "unknown rule 'linaer'; the nearest ",
        (
            "tasks",
            "--out",
            str(tmp_path),
            "bidirectional",
        ): "there is no task for bidirectional: it is made of another layer",
        ("judge", "linear", str(tmp_path / "none.py")): f"there is no file {tmp_path / 'none.py'}",
        ("judge", str(tmp_path), str(tmp_path / "s.py")): f"{tmp_path} is no task: there is no task.json in it",
        ("judge", "linaer", str(tmp_path / "s.py")): "unknown rule 'linaer'; the nearest ",
        ("judge", "linear", str(tmp_path)): f"{tmp_path} is a directory, no file",
        ("judge", str(tmp_path / "s.py"), str(tmp_path / "s.py")): (
            f"{tmp_path / 's.py'} is a file, expected a folder that `bpref tasks` made, or a rule's name"
        ),
        ("judge", str(tmp_path / "broken"), str(tmp_path / "s.py")): (
            f"{tmp_path / 'broken/task.json'} is no JSON: Expecting value: line 1 column 1 (char 0)"
        ),
        ("judge", "3", str(tmp_path / "s.py")): "unknown rule '3'; none of the ",
    }
    for call, message in calls.items():
        assert run(list(call)) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"bpref: {message}")
        assert err.count("\n") == 1
