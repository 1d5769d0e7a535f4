"""The activations beside PyTorch's."""

import numpy as np
import pytest

import bpref
from bpref.rules.activation.prelu import PreluParams
from tests.rules.beside_torch import assert_same, channels_second

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def drawn(rng):
    """Normal numbers of a random shape with three axes."""
    return rng.normal(size=rng.integers(1, 9, 3)) * 3


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(rng, axis):
    assert_same(bpref.softmax(axis), lambda p, x: torch.softmax(x, axis), (), drawn(rng))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_log_softmax(rng, axis):
    assert_same(bpref.log_softmax(axis), lambda p, x: torch.log_softmax(x, axis), (), drawn(rng))


def test_prelu_with_one_slope(rng):
    x = drawn(rng)
    params = PreluParams(rng.normal(size=()))
    assert_same(bpref.prelu(), lambda p, x: torch.nn.functional.prelu(x, p.a), params, x)


def test_prelu_with_a_slope_for_each_feature(rng):
    """PyTorch's features lie in the second axis."""
    x = drawn(rng)
    params = PreluParams(rng.normal(size=x.shape[-1:]))
    twin = channels_second(lambda p, x: torch.nn.functional.prelu(x, p.a))
    assert_same(bpref.prelu(per_feature=True), twin, params, x)


GATES = {
    "sigmoid": torch.sigmoid,
    "identity": lambda b: b,
    "relu": torch.relu,
    "gelu": lambda b: torch.nn.functional.gelu(b, approximate="tanh"),
    "gelu_erf": lambda b: torch.nn.functional.gelu(b),
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("gate", GATES)
def test_glu(rng, gate):
    x = drawn(rng)
    x = np.concatenate([x, rng.normal(size=x.shape)], -1)

    def twin(p, x):
        if gate == "sigmoid":
            return torch.nn.functional.glu(x)
        a, b = x.chunk(2, -1)
        return a * GATES[gate](b)

    assert_same(bpref.glu(gate), twin, (), x)


def test_squared_relu_and_soft_cap(rng):
    x = drawn(rng)
    assert_same(bpref.squared_relu(), lambda p, x: torch.relu(x) ** 2, (), x)
    assert_same(bpref.soft_cap(2.0), lambda p, x: 2 * torch.tanh(x / 2), (), x)


OF_ONE_ELEMENT = {
    "hard_tanh": (bpref.hard_tanh(-2.0, 0.5), lambda x: torch.nn.functional.hardtanh(x, -2.0, 0.5)),
    "softplus": (bpref.softplus(0.7), lambda x: torch.nn.functional.softplus(x, 0.7, 1000)),
    "softplus, threshold": (bpref.softplus(1.5, 2.0), lambda x: torch.nn.functional.softplus(x, 1.5, 2)),
    "hard_shrink": (bpref.hard_shrink(1.5), lambda x: torch.nn.functional.hardshrink(x, 1.5)),
    "soft_shrink": (bpref.soft_shrink(1.5), lambda x: torch.nn.functional.softshrink(x, 1.5)),
    "tanh_shrink": (bpref.tanh_shrink(), torch.nn.functional.tanhshrink),
    "threshold": (bpref.threshold(0.5, 3.0), lambda x: torch.nn.functional.threshold(x, 0.5, 3.0)),
    "softmin": (bpref.softmin(1), lambda x: torch.nn.functional.softmin(x, 1)),
}


@pytest.mark.parametrize("name", OF_ONE_ELEMENT)
def test_shrinks_and_bounds(name, rng):
    layer, twin = OF_ONE_ELEMENT[name]
    assert_same(layer, lambda p, x: twin(x), (), drawn(rng))


def test_jumps_and_kinks_of_the_shrinks():
    """At them the derivative is PyTorch's."""
    x = np.array([-1.5, 0.0, 1.5, 0.5])
    for name in ("hard_shrink", "soft_shrink", "threshold"):
        layer, twin = OF_ONE_ELEMENT[name]
        assert_same(layer, lambda p, x, twin=twin: twin(x), (), x)
