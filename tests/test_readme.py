"""The README's section on checking gradients: every program in it runs, and prints what stands below it.

`python -m tests.test_readme` runs them and writes what they print into the README.
"""

import contextlib
import io
import re
import shlex
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

import bpref
from bpref.cli.app import run

README = Path(__file__).parents[1] / "README.md"
SECTION = "Is my gradient right?"

MEASURED = re.compile(
    r"\b\d(?:\.\d+)?e[+-]\d\d\b|\b\d+\.\d\b|(?<=float32 )\d+(?= ulp)|(?<=autodiff )\d+\b"
    r"|(?<=in )\d+(?= s,)|(?<=/functions.py:)\d+"
)
"""Round-off errors, ulps, seconds, the line of a rule in JAX: another machine, another JAX gives others."""

PLACES = re.compile(r"\S*/(?=site-packages/)")
"""Where packages are installed, which the README leaves out."""


FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    language: str
    text: str


def section_of(readme: str, name: str = SECTION) -> str:
    text = readme[readme.index(f"\n## {name}\n") + 1 :]
    return text[: text.index("\n## ") + 1]


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in FENCED.findall(text)]


def printed(program: Block, folder: Path, names: dict) -> str:
    """What a program prints; one that begins with a file's name is also kept there, for those after it to import."""
    named = re.match(r"# (\w+\.py)\n", program.text)
    file = folder / (named[1] if named else "program.py")
    file.write_text(program.text)
    if named:
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program.text, str(file), "exec"), names)
    return out.getvalue()


def session(block: Block, folder: Path) -> str:
    """A session on the command line, with what it prints when it is run."""
    lines, code = [], 0
    for line in re.findall(r"^\$ .*$", block.text, re.M):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            if line == "$ echo $?":
                print(code)
            else:
                forget(folder)
                program, *arguments = shlex.split(line[2:])
                assert program == "bpref"
                code = run(arguments)
        lines += [line, *out.getvalue().rstrip().splitlines()]
    return "\n".join(lines) + "\n"


def forget(folder: Path) -> None:
    """Let the modules in there be imported anew, as another process does."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def run_section(text: str, folder: Path) -> list[tuple[str, str]]:
    """For each program, what is shown below it and what it prints; for each session, as it is shown and as it went."""
    found, names = [], {}
    shown = blocks(text)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as in a user's own process
        for block, after in zip(shown, [*shown[1:], Block("", "")], strict=True):
            if block.language == "python":
                out = printed(block, folder, names)
                found.append((after.text if after.language == "text" else "", out.rstrip() + "\n" * bool(out)))
            elif block.language == "console":
                found.append((block.text, session(block, folder)))
    forget(folder)
    return [(expected, PLACES.sub("", came.replace(f"{folder}/", ""))) for expected, came in found]


def test_the_programs_print_what_the_readme_shows(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    outputs = run_section(section_of(README.read_text()), tmp_path)
    assert sum(bool(expected) for expected, _ in outputs) == 9, "each way of checking is shown"
    for expected, came in outputs:
        assert MEASURED.sub("#", came) == MEASURED.sub("#", expected)


def test_extras_that_the_pages_name_exist():
    known = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = [README, README.parent / "CONTRIBUTING.md", *README.parent.glob("docs/chapters/*.md")]
    named = {
        e
        for page in pages
        for found in re.findall(r'"(?:bpref|\.)\[([\w,-]+)\]"', page.read_text())
        for e in found.split(",")
    }
    assert named
    assert named <= set(known)


@pytest.mark.usefixtures("standard_promotion")
def test_a_gradient_is_taken_over_the_devices_that_there_are(tmp_path):
    names = {}
    _, program, _ = blocks(section_of(README.read_text(), "From one CPU to many devices"))  # the last needs four
    printed(program, tmp_path, names)
    alike = jax.tree.map(
        lambda d, s: d.sharding.is_equivalent_to(s, d.ndim), names["dparams"], names["layout"].shardings
    )
    assert all(jax.tree.leaves(alike))
    value = bpref.backpropagate(names["J"], names["params"], names["batch"])[0]
    assert float(names["value"]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_a_language_model_is_trained_and_writes(tmp_path, monkeypatch):
    """The programs of its section, one after the other; the weights that the last one reads are saved for it."""
    monkeypatch.chdir(tmp_path)
    trained, published, of_policy = blocks(section_of(README.read_text(), "A language model"))
    names = {"jax": jax, "bpref": bpref, "optax": optax}
    with jax.numpy_rank_promotion("allow"):
        written = printed(trained, tmp_path, names)
        assert 0 < float(written.split()[0]) < 3.2
        small = bpref.GptConfig(vocabulary=50, width=16, depth=1, heads=2, hidden=24, context=8, kv_heads=2)
        ids = np.zeros((1, 8), np.int32)
        params = bpref.gpt(small).init(jax.random.key(0), ids)
        bpref.save_weights(small, params, "path/to/model")
        printed(published, tmp_path, names)
        pairs = np.random.default_rng(0).integers(0, 50, (2, 3, 9)).astype(np.int32)
        names |= {"pairs": pairs, "of_reference": np.full((2, 3), -20, np.float32), "J": None}
        printed(of_policy, tmp_path, names)
        assert np.isfinite(float(names["J"]))
    assert names["shape"] == small
    assert (
        bpref.gpt(small).forward(names["params"], ids)[0].tolist() == bpref.gpt(small).forward(params, ids)[0].tolist()
    )
    assert sorted(file.name for file in (tmp_path / "somewhere/new").iterdir()) == ["config.json", "model.safetensors"]


def refreshed(text: str, folder: Path) -> str:
    """The section with what its programs print now."""
    outputs = iter([came for _, came in run_section(text, folder) if came])
    return FENCED.sub(lambda m: f"```{m[1]}\n{next(outputs)}```" if m[1] in ("text", "console") else m[0], text)


if __name__ == "__main__":
    readme = README.read_text()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.path.insert(0, folder)
        README.write_text(readme.replace(section_of(readme), refreshed(section_of(readme), Path(folder))))


@pytest.mark.usefixtures("standard_promotion")
def test_what_is_trained_in_your_own_code_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (program,) = [block for block in blocks(section_of(README.read_text(), "Train it")) if block.language == "python"]
    first = printed(program, tmp_path, {})
    assert 0 < float(first) < 0.2
    again = Block("python", program.text.replace('np.save("X.npy"', '("X.npy"'))
    assert printed(again, tmp_path, {}) == first
