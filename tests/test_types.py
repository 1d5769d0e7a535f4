"""What a type checker says of compositions: the types of params, x, y and cache, and a refusal of what cannot be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAM = """
from jax import Array
from bpref import as_function, embedding, fan_out, linear, lstm, mixture_of_experts, parallel, relu, remat, residual
from bpref import scan, serial, square, objective

def typed(key: Array, ids: Array, x: Array):
    network = serial(embedding(3, 4), linear(3))
    reveal_type(network.forward)
    params = network.init(key, ids)
    reveal_type(params[1].W)
    y, cache = network.forward(params, ids)
    reveal_type(cache[1].A)
    reveal_type(as_function(scan(residual(remat(linear(3))), 4)))
    reveal_type(y + 1)
    serial(linear(3), relu(), linear(3), relu(), *[linear(3)] * 3)
    serial(embed=embedding(3, 4), head=linear(3))
    objective(serial(fan_out(linear(3), linear(3)), parallel(relu(), relu())), square())

def refused():
    serial(embedding(3, 4), embedding(3, 4))  # refused
    serial(linear(3), relu(), embedding(3, 4))  # refused
    serial(lstm(4), linear(3))  # refused
    serial(mixture_of_experts(4, 8), relu(), linear(3), relu())  # refused
"""


REVEALED = [
    "(tuple[EmbeddingParams, LinearParams], SupportsIndex) -> tuple[Reals, tuple[EmbeddingCache, LinearCache]]",
    "Array",
    "Array",
    "(LinearParams, Array) -> Reals",
    "Array",
]


def test_pyright_tells_types_and_refuses_what_cannot_be_composed(tmp_path):
    file = tmp_path / "typed.py"
    file.write_text(PROGRAM)
    called = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(file)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # of newer versions, on stdout
    ended = subprocess.run(called, cwd=ROOT, env=env, capture_output=True, text=True)
    said = json.loads(ended.stdout)["generalDiagnostics"]
    lines = PROGRAM.splitlines()
    revealed = [re.findall('is "(.*)"', d["message"])[0] for d in said if d["severity"] == "information"]
    wrong = [lines[d["range"]["start"]["line"]] for d in said if d["severity"] == "error"]
    assert revealed == REVEALED
    assert wrong == [line for line in lines if "# refused" in line]
