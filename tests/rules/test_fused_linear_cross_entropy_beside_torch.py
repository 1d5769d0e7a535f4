"""The cross-entropy of a linear layer, distillation and log-probabilities beside PyTorch's."""

import numpy as np
import pytest

import bpref
from bpref.rules.sequence_loss.fused_linear_cross_entropy import FusedLinearCrossEntropyParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fused_linear_cross_entropy(rng, reduction):
    N, T, d, V = (int(n) for n in rng.integers(2, 9, 4))
    labels = rng.integers(0, V, (N, T))
    labels[0, 0] = -100
    params = FusedLinearCrossEntropyParams(rng.normal(size=(V, d)), rng.normal(size=V))

    def twin(p, x):
        h, y = x
        z = torch.nn.functional.linear(h, p.W, p.b).flatten(0, 1)
        J = torch.nn.functional.cross_entropy(
            z, y.flatten(), ignore_index=-100, label_smoothing=0.1, reduction=reduction
        )
        return J.reshape(N, T) if reduction == "none" else J

    layer = bpref.fused_linear_cross_entropy(V, bias=True, reduction=reduction, ignored=-100, smoothing=0.1, block=3)
    assert_same(layer, twin, params, (rng.normal(size=(N, T, d)), labels))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("of_labels", [False, True], ids=["distributions", "labels"])
def test_fused_linear_cross_entropy_of_weighted_classes(rng, reduction, of_labels):
    N, T, d, V = (int(n) for n in rng.integers(2, 9, 4))
    weights = rng.uniform(0, 2, V)
    target = rng.integers(0, V, (N, T)) if of_labels else rng.dirichlet(np.ones(V), (N, T))
    params = FusedLinearCrossEntropyParams(rng.normal(size=(V, d)), rng.normal(size=V))

    def twin(p, x):
        h, target = (v.flatten(0, 1) for v in x)
        z = torch.nn.functional.linear(h, p.W, p.b)
        how = {"weight": torch.tensor(weights), "label_smoothing": 0.2, "reduction": reduction}
        J = torch.nn.functional.cross_entropy(z, target, **how)
        return J.reshape(N, T) if reduction == "none" else J

    hyper = {"bias": True, "reduction": reduction, "smoothing": 0.2, "class_weights": weights, "block": 3}
    x = rng.normal(size=(N, T, d)), target
    assert_same(bpref.fused_linear_cross_entropy(V, **hyper), twin, params, x)
    if of_labels and reduction != "none":
        assert_same(bpref.fused_linear_cross_entropy(V, **hyper, rows=4), twin, params, x)


@pytest.mark.parametrize("of_labels", [False, True], ids=["distributions", "labels"])
def test_fused_linear_cross_entropy_with_more_axes(rng, of_labels):
    """PyTorch has the classes of logits and of distributions behind the first axis, and the same W."""
    N, d, V, K, L = (int(n) for n in rng.integers(2, 9, 5))
    weights = rng.uniform(0, 2, V)
    target = rng.integers(0, V, (N, K, L)) if of_labels else rng.dirichlet(np.ones(V), (N, K, L))
    params = FusedLinearCrossEntropyParams(rng.normal(size=(V, K, L, d)), rng.normal(size=(V, K, L)))

    def twin(p, x):
        h, target = x
        z = torch.einsum("nd,ckld->nckl", h, p.W) + p.b
        how = {"weight": torch.tensor(weights), "label_smoothing": 0.2}
        return torch.nn.functional.cross_entropy(z, target if of_labels else target.movedim(-1, 1), **how)

    hyper = {"bias": True, "smoothing": 0.2, "class_weights": weights, "block": 3, "axes": (K, L)}
    x = rng.normal(size=(N, d)), target
    assert_same(bpref.fused_linear_cross_entropy(V, **hyper), twin, params, x)
    if of_labels:
        assert_same(bpref.fused_linear_cross_entropy(V, **hyper, rows=2), twin, params, x)


@pytest.mark.parametrize("reverse", [False, True])
def test_distillation(rng, reverse):
    N, C = (int(n) for n in rng.integers(2, 9, 2))
    x = rng.normal(size=(N, C)), rng.normal(size=(N, C)), rng.integers(0, C, N)

    def twin(_, x):
        a, b, y = x
        log_q, log_p = (torch.log_softmax(v / 3, -1) for v in (a, b))
        of, to = (log_p, log_q) if reverse else (log_q, log_p)
        soft = torch.nn.functional.kl_div(of, to, reduction="batchmean", log_target=True)
        return 0.7 * 9 * soft + 0.3 * torch.nn.functional.cross_entropy(a, y)

    assert_same(bpref.distillation(3.0, 0.7, reverse), twin, (), x)


def test_distillation_by_a_mixture(rng):
    N, C = (int(n) for n in rng.integers(2, 9, 2))
    x = rng.normal(size=(N, C)), rng.normal(size=(N, C)), rng.integers(0, C, N)

    def twin(_, x):
        log_q, log_p = (torch.log_softmax(v / 3, -1) for v in x[:2])
        log_m = torch.logaddexp(log_p + np.log(0.2), log_q + np.log(0.8))
        to_p, to_q = (
            torch.nn.functional.kl_div(log_m, v, reduction="batchmean", log_target=True) for v in (log_p, log_q)
        )
        return 9 * (0.2 * to_p + 0.8 * to_q)

    assert_same(bpref.distillation(3.0, 1.0, mixture=0.2), twin, (), x)


def test_token_log_probability(rng):
    B, T, C = (int(n) for n in rng.integers(1, 9, 3))

    def twin(_, x):
        return torch.distributions.Categorical(logits=x[0] / 2).log_prob(x[1])

    x = rng.normal(size=(B, T, C)), rng.integers(0, C, (B, T))
    assert_same(bpref.token_log_probability(2.0), twin, (), x)
