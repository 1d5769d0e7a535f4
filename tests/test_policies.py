"""gpt by hand beside the leanest policy of `jax.checkpoint`, on devices that are not there."""

import json

import pytest

from benchmarks.bench_policies import HAND, LENGTHS, TARGETS, forms, least
from benchmarks.in_readme import POLICIES

LARGEST = {
    "remat": {("tpu-v5e", "1024"): 0.04, ("h100", "1024"): 0.45, ("h100", "256"): 0.5},
    "remat, tiles": {("tpu-v5e", "1024"): 0.02, ("h100", "1024"): 0.3, ("h100", "256"): 0.42},
}
"""Of the leanest policy's temp memory, by hand. Of 256 tokens a TPU needs next to none, either way."""


def test_every_form_is_compiled_for_both():
    rows = json.loads(POLICIES.read_text())
    assert {(target, length, form) for target, of in rows.items() for length, seen in of.items() for form in seen} == {
        (target, str(length), form) for target in TARGETS for length in LENGTHS for form in forms()
    }


@pytest.mark.parametrize(("how", "target", "length"), [(how, *where) for how, of in LARGEST.items() for where in of])
def test_by_hand_it_takes_less_than_under_the_leanest_policy(how, target, length):
    of_length = json.loads(POLICIES.read_text())[target][length]
    assert of_length[f"{HAND}, {how}"]["temp"] <= LARGEST[how][target, length] * least(of_length)
