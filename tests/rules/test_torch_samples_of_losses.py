"""The losses on PyTorch's own samples."""

import pytest

import bpref
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made


def mse(input, target, reduction="mean"):
    if reduction != "mean" or input.ndim > 1:
        return "another reduction"
    return Ours(made(bpref.square), (input, target), back=lambda J: 2 * J)


TABLE: Table = {"nn.functional.mse_loss": Row(mse, Outcome(2, {"another reduction": 4}))}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)
