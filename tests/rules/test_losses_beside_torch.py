"""The losses beside PyTorch's."""

import numpy as np
import pytest

import bpref
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


def drawn(rng):
    """The shape (N, d) of a batch."""
    return tuple(int(n) for n in rng.integers(2, 9, 2))


def twin_of(loss, factor=1.0, **options):
    return lambda params, x: factor * loss(*x, **options)


def per_example(loss, **options):
    """PyTorch's sum over everything, divided by N."""
    return lambda params, x: loss(*x, reduction="sum", **options) / x[0].shape[0]


ERROR_LOSSES = {
    "absolute": (bpref.absolute(), twin_of(F.l1_loss)),
    "absolute, summed": (bpref.absolute("sum"), twin_of(F.l1_loss, reduction="sum")),
    "absolute of an example": (bpref.absolute("batch_mean"), per_example(F.l1_loss)),
    "huber": (bpref.huber(1.5), twin_of(F.huber_loss, delta=1.5)),
    "smooth L1": (bpref.huber(0.5, per_delta=True), twin_of(F.smooth_l1_loss, beta=0.5)),
    "square": (bpref.square(), twin_of(F.mse_loss, 0.5)),
    "each square": (bpref.square("none"), twin_of(F.mse_loss, 0.5, reduction="none")),
}


@pytest.mark.parametrize(("layer", "twin"), ERROR_LOSSES.values(), ids=ERROR_LOSSES)
def test_losses_of_an_error(layer, twin, rng):
    shape = drawn(rng)
    assert_same(layer, twin, (), (2 * rng.normal(size=shape), rng.normal(size=shape)))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("log_input", [True, False])
def test_poisson(log_input, full, rng):
    shape = drawn(rng)
    z = rng.normal(size=shape) if log_input else rng.uniform(0.1, 5, shape)
    of_reals = twin_of(F.poisson_nll_loss, log_input=log_input, full=full, eps=0.0)

    def twin(params, x):
        """PyTorch takes the logarithm of an integer in float32."""
        return of_reals(params, (x[0], x[1].double()))

    assert_same(bpref.poisson(log_input, full), twin, (), (z, rng.uniform(0.1, 9, shape)))
    assert_same(bpref.poisson(log_input, full), twin, (), (z, rng.poisson(2.0, shape)))


@pytest.mark.parametrize("full", [False, True])
def test_gaussian(full, rng):
    shape = drawn(rng)

    def twin(params, x):
        (m, v), y = x
        return F.gaussian_nll_loss(m, y, v, full=full, eps=0.0)

    x = ((rng.normal(size=shape), rng.uniform(0.1, 4, shape)), rng.normal(size=shape))
    assert_same(bpref.gaussian(log_variance=False, full=full), twin, (), x)
    assert_same(
        bpref.gaussian(full=full),
        lambda params, x: twin(params, ((x[0][0], x[0][1].exp()), x[1])),
        (),
        ((x[0][0], np.log(x[0][1])), x[1]),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, 1])
def test_softmax_cross_entropy_of_labels(ignored, is_weighted, smoothing, rng):
    N, C = drawn(rng)
    labels = rng.integers(0, C, N)
    labels[0] = 0
    w = rng.uniform(0.1, 3, C) if is_weighted else None

    def twin(params, x):
        weight = None if w is None else torch.tensor(w)
        return F.cross_entropy(
            *x, weight=weight, label_smoothing=smoothing, ignore_index=-100 if ignored is None else ignored
        )

    layer = bpref.softmax_cross_entropy(smoothing, ignored, class_weights=None if w is None else tuple(w))
    assert_same(layer, twin, (), (3 * rng.normal(size=(N, C)), labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_softmax_cross_entropy_of_distributions(smoothing, rng):
    N, C = drawn(rng)
    w = rng.uniform(0.1, 3, C)
    layer = bpref.softmax_cross_entropy(smoothing, class_weights=tuple(w))
    assert_same(
        layer,
        lambda params, x: F.cross_entropy(*x, weight=torch.tensor(w), label_smoothing=smoothing),
        (),
        (3 * rng.normal(size=(N, C)), rng.dirichlet(np.ones(C), N)),
    )


def test_sigmoid_cross_entropy_with_a_weight_for_each_class(rng):
    N, C = drawn(rng)
    w = rng.uniform(0.1, 3, C)
    assert_same(
        bpref.sigmoid_cross_entropy(tuple(w)),
        lambda params, x: F.binary_cross_entropy_with_logits(*x, pos_weight=torch.tensor(w)),
        (),
        (3 * rng.normal(size=(N, C)), rng.uniform(0, 1, (N, C))),
    )


@pytest.mark.parametrize("log_target", [False, True])
def test_kl_divergence(log_target, rng):
    N, C = drawn(rng)
    target = rng.dirichlet(np.ones(C), N)
    assert_same(
        bpref.kl_divergence(log_target),
        lambda params, x: F.kl_div(*x, reduction="batchmean", log_target=log_target),
        (),
        (np.log(rng.dirichlet(np.ones(C), N)), np.log(target) if log_target else target),
    )
