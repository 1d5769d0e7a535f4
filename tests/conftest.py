"""Strict arithmetic for every test, and the same random draws in every run of CI."""

import os

import jax
import pytest
from hypothesis import HealthCheck, settings

from bpref.verify.garbage import collect_rarely

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

collect_rarely()

SEED = 0

settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
SLOW_TO_COMPILE = settings(suppress_health_check=list(HealthCheck))


@pytest.fixture
def standard_promotion():
    """optax mixes dtypes; what trains through it runs with the promotion that its users have."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def pytest_report_header():
    kind = "derandomised" if os.environ.get("CI") else "random; set CI=1 for the draws of CI"
    return f"bpref: seed {SEED}; hypothesis {kind}; jax {jax.__version__} on {jax.default_backend()}"
