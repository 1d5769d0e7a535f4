"""What the tests of rules are given."""

import numpy as np
import pytest

from tests.rules.beside_torch import SEEDS


@pytest.fixture(params=SEEDS)
def rng(request):
    return np.random.default_rng(request.param)
