"""Eight devices, simulated, beside one."""

import json

import pytest

from tests.sharding.eight_devices import LAID_OUT
from tests.simulated import on_devices


@pytest.fixture(scope="module")
def seen():
    return json.loads(on_devices(8, "-m", "tests.sharding.eight_devices").splitlines()[-1])


@pytest.mark.parametrize("case", LAID_OUT)
def test_the_gradient_is_that_of_one_device_and_lies_as_its_params(seen, case):
    assert seen[case]["apart"] < 1e-12
    assert seen[case]["elsewhere"] == []


def test_fully_sharded_a_device_holds_an_eighth_of_params_and_gradients(seen):
    """As the compiler counts it, with the batch, which is divided too."""
    assert seen["gpt data=8 fully-sharded"]["share"] < 1 / 8 + 0.02


def test_and_of_params_and_the_state_of_adam(seen):
    """All but its counter of steps is divided."""
    assert seen["training"]["share"] < 1 / 8 + 0.002


def test_fully_sharded_each_parameter_is_gathered_once_a_use_and_each_gradient_summed_once(seen):
    """Blocks are used forward and backward, the table twice in one go: as embedding, and as head. A ring's bytes; on a
    CPU a reduce-scatter is an all-reduce, which sends twice as much."""
    case = seen["gpt data=8 fully-sharded"]
    uses = {array: 2 if ".blocks." in array else 1 for array in case["bytes"]}
    needed = 7 / 8 * sum((uses[array] + 2) * n for array, n in case["bytes"].items())
    assert 0.9 * needed < case["sent"] < 1.1 * needed


def test_data_parallel_each_gradient_is_summed_once_and_nothing_else_is_sent(seen):
    case = seen["mlp data=8 replicated"]
    J = 8
    assert case["sent"] == pytest.approx(2 * 7 / 8 * (sum(case["bytes"].values()) + J))


def test_training_on_eight_devices_is_training_on_one(seen):
    """Sums are taken in another order, in float32."""
    assert seen["training"]["one device"] < 1e-5
    assert seen["training"]["update in backward"] < 1e-5


def test_of_a_file_each_device_is_given_its_part_of_the_same_batches(seen):
    assert seen["training"]["on disk"] < 1e-5


def test_a_run_goes_on_over_as_many_devices_bit_for_bit_and_over_others_within_rounding(seen):
    assert seen["training"]["parts of W"] == 8
    resumed = seen["training"]["resumed"]
    assert resumed.pop("8") == 0
    assert max(resumed.values()) < 1e-5
