"""Chapter one: the seed's derivation with the numbers of a network of 2, 3 and 1 neurons, and the network itself.

Every number is computed by the library while the page is built, by `PROGRAM`, which the page shows.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
import yaml

import bpref
from docs.search import raw

CHAPTERS = Path(__file__).parent / "chapters"
CITATION = Path(bpref.__file__).parents[1] / "CITATION.cff"

PROGRAM = """\
import numpy as np

import bpref
from bpref.models import mlp

X, y = np.array([[2.0, 1.0]]), np.array([[1.0]])
W = (None, np.array([[1.0, -1.0], [-1.0, 1.0], [0.5, 1.0]]), np.array([[2.0, 3.0, -1.0]]))
b = (None, np.array([0.0, 0.5, -1.0]), np.array([0.5]))
params, g = mlp.Params(W, b), (bpref.relu(), bpref.identity())

y_hat, kept = mlp.forward(params, X, g)
J = mlp.cost(y_hat, y)
cotangents = mlp.backward(params, kept, y, g)
stepped = mlp.update(params, cotangents, alpha=0.05)
after = mlp.forward(stepped, X, g)[0]"""

LIVE = """<div class="network" id="network" data-step="{step}" data-again="{again}" data-activation="{activation}">
<noscript>{noscript}</noscript></div>
<script>const NETWORK = {start};</script>
<script src="../_static/network.js"></script>"""

ENGLISH = {
    "step": "Take a step: W − α dW",
    "again": "Begin again",
    "activation": "hidden activation",
    "noscript": "This needs JavaScript.",
}
CHINESE = {
    "step": "W − α dW",
    "again": "重新开始",
    "activation": "隐藏层激活函数",
    "noscript": "此处需要 JavaScript。",
}


@cache
def computed() -> dict[str, Any]:
    """What `PROGRAM` makes, in float64."""
    names: dict[str, Any] = {}
    with jax.enable_x64(True):
        exec(PROGRAM, names)
    return names


def pages() -> dict[str, str]:
    """The chapter in English, and in Chinese."""
    return {"seed/index": _chapter("seed.md", ENGLISH), "seed/zh": _chapter("seed_zh.md", CHINESE)}


def _chapter(file: str, words: dict[str, str]) -> str:
    made = computed()
    (A, Z), dV = made["kept"], made["cotangents"]
    W, b, X, y = made["W"], made["b"], made["X"], made["y"]
    reference = yaml.safe_load(CITATION.read_text(encoding="utf-8"))["references"][0]
    title_zh, _, title = reference["title"].partition(" (")
    shown = {
        "X": matrix(X), "y": number(y), "A2n": number(A[2]), "J": number(made["J"]),
        "after": number(made["after"]), "J_after": number((np.asarray(made["after"]) - y) ** 2 / 2), "alpha": "0.05",
        "W1T": matrix(W[1].T), "W2T": matrix(W[2].T), "dZ1T": matrix(np.asarray(dV.dZ[1]).T),
        "slope1": matrix((np.asarray(Z[1]) > 0).astype(float)),
        "title": title.removesuffix(")"), "title_zh": title_zh, "year": str(reference["year"]),
        "author": reference["authors"][0]["name"], "program": PROGRAM,
        "live": raw(LIVE.format(start=json.dumps(start()), **words)),
    }  # fmt: skip
    shown |= {f"{name}{l}": matrix(V[l]) for name, V in (("Z", Z), ("A", A), ("W", W), ("b", b)) for l in (1, 2)}
    shown |= {f"{name}{l}": matrix(V[l]) for name, V in dV._asdict().items() for l in (0, 1, 2) if V[l] is not None}
    template = jinja2.Template(
        (CHAPTERS / file).read_text(encoding="utf-8"), variable_start_string="<<", variable_end_string=">>",
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, block_start_string="<%", block_end_string="%>",
    )  # fmt: skip
    return template.render(shown)


def start() -> dict[str, Any]:
    """The network that the live one begins with."""
    made = computed()
    listed = {name: made[name].tolist() for name in ("X", "y")}
    return (
        listed | {f"{name}{l}": made[name][l].tolist() for name in "Wb" for l in (1, 2)} | {"g": "relu", "alpha": 0.05}
    )


def number(v: Any) -> str:
    """A number without digits that are not there."""
    return f"{float(np.asarray(v).reshape(())):.6g}"


def matrix(v: Any) -> str:
    """A matrix, or a row, in TeX."""
    rows = np.atleast_2d(np.asarray(v, dtype=float))
    written = r" \\ ".join(" & ".join(f"{x + 0.0:.6g}" for x in row) for row in rows)
    return rf"\begin{{pmatrix}} {written} \end{{pmatrix}}"
