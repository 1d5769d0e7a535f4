"""optax mixes dtypes; what trains through it runs with the promotion that its users have."""

import jax
import pytest


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
