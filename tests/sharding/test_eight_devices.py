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
