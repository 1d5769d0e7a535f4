"""Eight devices, simulated, beside one."""

import json
import os
import subprocess
import sys

import pytest

from tests.sharding.eight_devices import LAID_OUT

SIMULATED = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


@pytest.fixture(scope="module")
def seen():
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {SIMULATED}"}
    command = [sys.executable, "-m", "tests.sharding.eight_devices"]
    ran = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", LAID_OUT)
def test_the_gradient_is_that_of_one_device_and_lies_as_its_params(seen, case):
    assert seen[case]["apart"] < 1e-12
    assert seen[case]["elsewhere"] == []


@pytest.mark.parametrize("case", ["gpt data=8 fully-sharded", "mlp data=8 fully-sharded"])
def test_fully_sharded_a_device_holds_an_eighth_of_params_and_gradients(seen, case):
    """As the compiler counts it, with the batch, which is divided too."""
    assert seen[case]["share"] < 1 / 8 + 0.02


def test_and_of_params_and_the_state_of_adam(seen):
    """What is not divided is the last bias, of 4 classes, and counters: 4 arrays of 4."""
    assert seen["training"]["share"] < 1 / 8 + 0.05


def test_training_on_eight_devices_is_training_on_one(seen):
    """Sums are taken in another order, in float32."""
    assert seen["training"]["one device"] < 1e-5
    assert seen["training"]["update in backward"] < 1e-5


def test_a_run_goes_on_over_as_many_devices_bit_for_bit_and_over_others_within_rounding(seen):
    assert seen["training"]["parts of W"] == 8
    resumed = seen["training"]["resumed"]
    assert resumed.pop("8") == 0
    assert max(resumed.values()) < 1e-5
