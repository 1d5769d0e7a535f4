"""The activations on PyTorch's own samples."""

import pytest

import bpref
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made


def celu(x, alpha=1.0, inplace=False):
    return Ours(made(bpref.celu, alpha), x)


def elu(x, alpha=1.0, scale=1.0, input_scale=1.0, inplace=False):
    return Ours(made(bpref.elu, alpha), x)


TABLE: Table = {
    "nn.functional.celu": Row(celu, Outcome(3)),
    "nn.functional.elu": Row(elu, Outcome(3)),
}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)
