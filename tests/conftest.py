"""Strict arithmetic for every test, and the same random draws in every run of CI."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from bpref.verify.programs.quick import QUICK_OPTIONS
from bpref.verify.programs.running import collect_rarely


def compile_in_a_hurry() -> None:
    """Have XLA write slower code in less time, here and in all processes started from here: most of it runs once.

    XLA aborts at a flag that it does not know, so a process of its own tries them.
    """
    flags = [f"--{name}={str(value).lower()}" for name, value in QUICK_OPTIONS.items()]
    given = os.environ.get("XLA_FLAGS", "").split()
    if set(flags) <= set(given):  # a worker, whose controller has tried them
        return
    wanted = os.environ | {"XLA_FLAGS": " ".join(flags + given)}
    tried = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=wanted, capture_output=True)
    if tried.returncode == 0:
        os.environ.update(wanted)


def leave_libtpu_alone() -> None:
    """Where there is no accelerator, have JAX look for none, here and in all processes started from here.

    libtpu is there to compile with. Where JAX tries it, it complains, and handles SIGTERM in its own way from then on.
    """
    if not any(found for pattern in DEVICE_FILES for found in Path("/dev").glob(pattern)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


DEVICE_FILES = ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")
"""Of TPUs and GPUs, on Linux."""

leave_libtpu_alone()
compile_in_a_hurry()

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

collect_rarely()

SEED = 0

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install "bpref[aot-tpu]"'
)

needs_cuda_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason='the compiler for GPUs is not installed: pip install "bpref[aot-cuda]"',
)

settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
SLOW_TO_COMPILE = settings(suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def same_draws_in_any_order(request):
    """What a test draws from a generator of its module does not depend on which tests its worker ran before."""
    for name, drawn_from in vars(request.module).items():
        if isinstance(drawn_from, np.random.Generator):
            drawn_from.bit_generator.state = AFTER_IMPORT.setdefault(id(drawn_from), drawn_from.bit_generator.state)
        elif name == "GENERATOR":
            drawn_from.set_state(AFTER_IMPORT.setdefault(id(drawn_from), drawn_from.get_state()))


AFTER_IMPORT: dict[int, Any] = {}


@pytest.fixture
def standard_promotion():
    """optax mixes dtypes; what trains through it runs with the promotion that its users have."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def as_csv(tmp_path):
    """Writes a text, or bytes, into a file of that name."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "t.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def pytest_report_header():
    kind = "derandomised" if os.environ.get("CI") else "random; set CI=1 for the draws of CI"
    return f"bpref: seed {SEED}; hypothesis {kind}; jax {jax.__version__} on {jax.default_backend()}"
