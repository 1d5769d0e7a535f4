"""Chapter one: its numbers are those of a pencil, and its live network computes what the library does."""

import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from bpref.models import mlp
from bpref.rules import RULES
from docs import katex, seed

pytestmark = pytest.mark.usefixtures("with_katex")


def test_the_numbers_of_chapter_one_are_those_of_a_pencil():
    dV = seed.computed()["cotangents"]
    assert [V.tolist() for V in dV.dW[1:]] == [[[2.0, 1.0], [0.0, 0.0], [-1.0, -0.5]], [[0.5, 0.0, 0.5]]]
    assert [V.tolist() for V in dV.db[1:]] == [[1.0, 0.0, -0.5], [0.5]]
    assert [V.tolist() for V in dV.dA] == [[[0.75, -1.5]], [[1.0, 1.5, -0.5]], [[0.5]]]
    assert float(seed.computed()["J"]) == 0.125
    for page in seed.pages().values():
        assert r"= \begin{pmatrix} 2 & 1 \\ 0 & 0 \\ -1 & -0.5 \end{pmatrix}" in page


def test_the_live_network_computes_what_the_library_does():
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(size=shape) for name, shape in NETWORK.items()}
    cases = [{k: v.tolist() for k, v in drawn.items()} | {"g": g, "alpha": 0.3} for g in ACTIVATIONS]
    program = "const n = require(process.argv[1]); const c = JSON.parse(process.argv[2]);"
    program += "console.log(JSON.stringify(c.map((one) => [n.sweep(one), n.stepped(one)])))"
    network = Path(seed.__file__).parent / "static/network.js"
    ran = subprocess.run([katex.NODE, "-e", program, network, json.dumps(cases)], capture_output=True, check=True)
    params = mlp.Params((None, drawn["W1"], drawn["W2"]), (None, drawn["b1"], drawn["b2"]))
    for name, (live, after) in zip(ACTIVATIONS, json.loads(ran.stdout), strict=True):
        g = RULES[name].make(), RULES["identity"].make()
        with jax.enable_x64(True):
            y_hat, kept = mlp.forward(params, drawn["X"], g)
            dV = mlp.backward(params, kept, drawn["y"], g)
            stepped = mlp.update(params, dV, 0.3)
            truth = {"J": mlp.cost(y_hat, drawn["y"])}
        both = kept._asdict() | dV._asdict()
        truth |= {
            f"{V}{l}": both[V][l] for V in both for l in (0, 1, 2) if both[V][l] is not None and f"{V}{l}" in live
        }
        assert set(truth) == set(live)
        for V in truth:
            np.testing.assert_allclose(live[V], truth[V], rtol=1e-12, atol=1e-14, err_msg=f"{name} {V}")
        for V in ("W1", "b1", "W2", "b2"):
            np.testing.assert_allclose(after[V], getattr(stepped, V[0])[int(V[1])], rtol=1e-12, atol=1e-14)


NETWORK = {"X": (2, 2), "y": (2, 1), "W1": (3, 2), "b1": (3,), "W2": (1, 3), "b2": (1,)}
ACTIVATIONS = ("relu", "tanh", "sigmoid", "identity")
