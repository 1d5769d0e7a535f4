"""The pytest plugin, in projects of its user's: other processes, with nothing of this one's configuration."""

import os
import subprocess
import sys
import tomllib
import zlib
from importlib.metadata import EntryPoint
from pathlib import Path

ROOT = Path(__file__).parents[1]

TESTS = """
import jax, jax.numpy as jnp

def rule(backward):
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), backward)
    return f

X = jnp.linspace(-1, 1, 6)

def test_right(check_gradient):
    report = check_gradient(rule(lambda x, dy: (dy * jnp.cos(x),)), X)
    assert report.ok
    print("KEY", report.key)

def test_wrong(check_gradient):
    check_gradient(rule(lambda x, dy: (2 * dy * jnp.cos(x),)), X)

def test_own_key(check_gradient):
    assert check_gradient(jnp.sin, X, backward=lambda args, dy: (dy * jnp.cos(args[0]),), key=7).key == 7
"""


def pytest_run(project: Path, *options: str, after: str = "pass") -> subprocess.CompletedProcess[str]:
    """pytest with this plugin and no other, in a project of its own; `after`: what is printed in the end."""
    arguments = ["-p", "bpref.pytest_plugin", "-p", "no:cacheprovider", *options]
    program = f"import sys, pytest; code = pytest.main({arguments!r}); {after}; sys.exit(code)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    run = [sys.executable, "-c", program]
    return subprocess.run(run, cwd=project, env=environment, capture_output=True, text=True)


def test_the_plugin_leaves_jax_alone_until_a_test_asks_for_it(tmp_path):
    """JAX reads JAX_* when it is imported: a conftest must come first."""
    seen = pytest_run(tmp_path, "--co", "--fixtures", after="print('jax loaded:', 'jax' in sys.modules)")
    assert "jax loaded: False" in seen.stdout
    assert "check_gradient" in seen.stdout
    assert "`bpref.check`, for a test: it fails with the report" in seen.stdout


def test_the_fixture_fails_with_the_report_and_a_key_that_is_the_tests_own(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_gradients.py").write_text(TESTS)
    seen = pytest_run(tmp_path, "-rP", "-q", "-W", "error").stdout
    assert "1 failed, 2 passed" in seen
    assert f"KEY {zlib.crc32(b'test_gradients.py::test_right') % 10**6}" in seen
    key = zlib.crc32(b"test_gradients.py::test_wrong") % 10**6
    failure = seen[seen.index("test_wrong") :]
    assert f"sin   float64 oracle: its own primal, differentiated   key {key}\n" in failure
    assert "  x   WRONG   2.000 x the reference, every element: a constant factor 2\n" in failure
    assert "Traceback" not in seen
    assert "def check_gradient" not in seen


def test_pytest_finds_the_plugin_by_its_entry_point():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    plugin = EntryPoint("bpref", declared["bpref"], "pytest11").load()
    assert plugin.check_gradient.__doc__
