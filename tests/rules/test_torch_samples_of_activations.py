"""The activations on PyTorch's own samples."""

import pytest

import bpref
from bpref.rules.activation.prelu import PreluParams
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def of(make, *names):
    """An activation whose arguments have these names in PyTorch, in the order that they have here."""

    def ours(x, *args, inplace=False, **options):
        hyper = dict(zip(names, args, strict=False)) | options
        return Ours(made(make, *(hyper[name] for name in names if name in hyper)), x)

    return ours


def along(make):
    """An activation along an axis; a dtype that it is first cast to is x's own in these samples."""

    def ours(x, dim, dtype=None):
        if 0 in x.shape:
            return "no numbers along the axis, or none at all"
        return Ours(made(make, dim), x)

    return ours


def elu(x, alpha=1.0, scale=1.0, input_scale=1.0, inplace=False):
    return Ours(made(bpref.elu, alpha), x)


def gelu(x, approximate="none"):
    return Ours(made(bpref.gelu, approximate == "tanh"), x)


def glu(x, dim=-1):
    return Ours(made(bpref.glu), x.movedim(dim, -1), back=lambda y: y.movedim(-1, dim))


def prelu(x, weight):
    """PyTorch's features lie in the second axis, of vectors in the first."""
    if weight.numel() == 1:
        return Ours(made(bpref.prelu), x, PreluParams(weight.reshape(())))
    return Ours(made(bpref.prelu, True), x.movedim(1, -1), PreluParams(weight), lambda y: y.movedim(-1, 1))


def softplus(x, beta=1.0, threshold=20.0):
    return Ours(made(bpref.softplus, float(beta), float(threshold)), x)


def soft_shrink(x, lambd=0.5):
    return Ours(made(bpref.soft_shrink, lambd), x)


def hard_shrink(x, lambd=0.5):
    if lambd < 0:
        return "a negative size"
    return Ours(made(bpref.hard_shrink, lambd), x)


def hard_tanh(x, min_val=-1.0, max_val=1.0, inplace=False):
    if min_val == max_val:
        return "no room between the bounds"
    return Ours(made(bpref.hard_tanh, min_val, max_val), x)


def threshold(x, threshold, value, inplace=False):
    return Ours(made(bpref.threshold, threshold, value), x)


# PyTorch's slope of hardsigmoid is 1/6 in float32.
TABLE: Table = {
    "log_softmax": Row(along(bpref.log_softmax), Outcome(6, {"no numbers along the axis, or none at all": 1})),
    "log_softmax.with_dtype": Row(
        along(bpref.log_softmax), Outcome(6, {"no numbers along the axis, or none at all": 1})
    ),
    "nn.functional.celu": Row(of(bpref.celu, "alpha"), Outcome(3)),
    "nn.functional.elu": Row(elu, Outcome(3)),
    "nn.functional.gelu": Row(gelu, Outcome(8)),
    "nn.functional.glu": Row(glu, Outcome(46)),
    "nn.functional.hardshrink": Row(hard_shrink, Outcome(5, {"a negative size": 1})),
    "nn.functional.hardsigmoid": Row(of(bpref.hard_sigmoid), Outcome(3), 1e-7),
    "nn.functional.hardswish": Row(of(bpref.hard_swish), Outcome(4)),
    "nn.functional.hardtanh": Row(hard_tanh, Outcome(4, {"no room between the bounds": 1})),
    "nn.functional.leaky_relu": Row(of(bpref.leaky_relu, "negative_slope"), Outcome(9)),
    "nn.functional.logsigmoid": Row(of(bpref.log_sigmoid), Outcome(3)),
    "nn.functional.mish": Row(of(bpref.mish), Outcome(3)),
    "nn.functional.prelu": Row(prelu, Outcome(25)),
    "nn.functional.relu": Row(of(bpref.relu), Outcome(4)),
    "nn.functional.relu6": Row(of(bpref.relu6), Outcome(3)),
    "nn.functional.selu": Row(of(bpref.selu), Outcome(3)),
    "nn.functional.silu": Row(of(bpref.silu), Outcome(3)),
    "nn.functional.softmin": Row(along(bpref.softmin), Outcome(6, {"no numbers along the axis, or none at all": 1})),
    "nn.functional.softmin.with_dtype": Row(
        along(bpref.softmin), Outcome(6, {"no numbers along the axis, or none at all": 1})
    ),
    "nn.functional.softplus": Row(softplus, Outcome(3)),
    "nn.functional.softshrink": Row(soft_shrink, Outcome(5)),
    "nn.functional.softsign": Row(of(bpref.softsign), Outcome(3)),
    "nn.functional.tanhshrink": Row(of(bpref.tanh_shrink), Outcome(3)),
    "nn.functional.threshold": Row(threshold, Outcome(4)),
    "sigmoid": Row(of(bpref.sigmoid), Outcome(3)),
    "softmax": Row(along(bpref.softmax), Outcome(6, {"no numbers along the axis, or none at all": 1})),
    "softmax.with_dtype": Row(along(bpref.softmax), Outcome(6, {"no numbers along the axis, or none at all": 1})),
    "tanh": Row(of(bpref.tanh), Outcome(1)),
}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)
