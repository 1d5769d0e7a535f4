"""The program that shows a failing case imports whatever can be imported; it is run, and prints the same report."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.verify.searching.snippet import Reached, reached, snippet

ROOT = Path(bpref.__file__).parents[1]
X = np.linspace(-1, 1, 3, dtype=np.float32)

MINE = """
import jax, jax.numpy as jnp
import bpref

class Kernels:
    @staticmethod
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    def __init__(self, factor):
        self.factor = factor

    def backward(self, args, dy):
        return (self.factor * dy * jnp.cos(args[0]),)

Kernels.sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (2 * dy * jnp.cos(x),))

def _sine(x):
    return jnp.sin(x)

sine = jax.custom_vjp(_sine)
sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (2 * dy * jnp.cos(x),))
plain = jnp.sin
doubled = Kernels(2)
layer = bpref.tanh()._replace(backward=lambda params, cache, dy: ((), 2 * dy))
"""


class Pair(NamedTuple):
    first: np.ndarray
    second: float


def of_pair(pair, key, dtype, size):
    return pair.first.astype(dtype) * pair.second / size + 0 * jax.random.uniform(key, pair.first.shape, dtype)


def of_pair_backward(args, dy):
    return (Pair(2 * dy, None), None, None, None)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in a folder that no other program looks into, imported as the command line imports a file."""
    file = tmp_path / "kernels_of_mine.py"
    file.write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("kernels_of_mine")
    del sys.modules["kernels_of_mine"]


def printed(text, folder):
    program = folder / "again.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stderr == ""
    return done.stdout


def test_the_program_runs_wherever_its_functions_stand(mine, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    calls = [
        (mine.Kernels.sine, (X,), {}),
        (mine.sine, (X,), {"reference": mine.plain}),
        (mine.plain, (X,), {"backward": mine.doubled.backward}),
        (mine.layer, ((), X), {}),
        (of_pair, (Pair(X, 0.5), jax.random.key(3), np.dtype("float32"), float("inf")), {"backward": of_pair_backward}),
    ]
    programs, expected = [], ""
    for fun, args, hand in calls:
        text = snippet(fun, args, hand.get("reference"), hand.get("backward"), 5)
        assert "fill in" not in text
        programs.append(text)
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            expected += f"{bpref.check(fun, *args, **hand, key=5)}\n"
    assert printed("\n".join(programs), tmp_path / "elsewhere") == expected
    assert f"sys.path.insert(0, {str(tmp_path)!r})\n" in programs[0]
    assert "sys.path" not in programs[-1], "it is found from the current directory"


def test_by_which_name_a_function_is_imported(mine, tmp_path):
    def inside(x):
        return x

    assert reached(jax.nn.relu) == Reached("jax.nn", "relu", "")
    assert reached(jnp.sin) == Reached("jax.numpy", "sin", "")
    assert reached(np.sin) == Reached("numpy", "sin", "")
    assert reached(of_pair) == Reached(__name__, "of_pair", "")
    assert reached(bpref.gelu) == Reached("bpref.rules.activation.gelu", "gelu", "")
    assert reached(mine.Kernels.sine) == Reached("kernels_of_mine", "Kernels.sine", str(tmp_path))
    assert reached(mine.sine) == Reached("kernels_of_mine", "sine", str(tmp_path))
    assert reached(mine.sine.fun) == Reached("kernels_of_mine", "_sine", str(tmp_path))
    assert reached(mine.doubled.backward) is None
    assert reached(inside) is None
    assert reached(bpref.linear(3)) is None


def test_two_functions_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("first_of_two", "second_of_two"):
        (tmp_path / f"{name}.py").write_text("def f(x):\n    return x\n")
    first, second = (importlib.import_module(name).f for name in ("first_of_two", "second_of_two"))
    text = snippet(first, (X,), second, lambda args, dy: (dy,), 5)
    assert "from first_of_two import f\nfrom second_of_two import f as f_2\n" in text
    assert "    f,\n" in text
    assert "    reference=f_2,\n    backward=backward,\n" in text
    assert "backward = ...  # test_two_functions_of_one_name_are_told_apart.<locals>.<lambda>, test_snippet.py" in text
