"""What a policy's head says of each token, and the losses on top of it, beside PyTorch's."""

import numpy as np
import pytest

import bpref
from bpref import FusedLinearLogProbabilityParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_fused_linear_log_probability(rng, soft_cap):
    B, T, d, V = (int(n) for n in rng.integers(2, 9, 4))
    labels = rng.integers(0, V, (B, T))
    labels[0, 0] = -100
    params = FusedLinearLogProbabilityParams(rng.normal(size=(V, d)), rng.normal(size=V))

    def twin(p, x):
        h, y = x
        z = torch.nn.functional.linear(h, p.W, p.b)
        if soft_cap is not None:
            z = soft_cap * torch.tanh(z / soft_cap)
        log_p = torch.log_softmax(z / 0.7, -1)
        counts = y != -100
        own = log_p.gather(-1, torch.where(counts, y, 0)[..., None])[..., 0]
        of_tokens = own, -(log_p.exp() * log_p).sum(-1), torch.logsumexp(z / 0.7, -1)
        return tuple(torch.where(counts, v, 0.0) for v in of_tokens)

    layer = bpref.fused_linear_log_probability(V, True, 0.7, ignored=-100, soft_cap=soft_cap, block=3)
    assert_same(layer, twin, params, (rng.normal(size=(B, T, d)), labels))


def pairs(rng, count: int = 2):
    return tuple(-rng.exponential(2.0, size=(count, rng.integers(2, 9))))


@pytest.mark.parametrize("form", ["sigmoid", "hinge", "ipo"])
def test_dpo_and_cpo(rng, form):
    """As TRL has them, the second's likelihood summed over tokens."""
    smoothing = 0.1 if form == "sigmoid" else 0.0

    def of(D):
        if form == "hinge":
            return torch.relu(1 - 0.3 * D)
        if form == "ipo":
            return (D - 1 / 0.6) ** 2
        log_sigmoid = torch.nn.functional.logsigmoid
        return -(1 - smoothing) * log_sigmoid(0.3 * D) - smoothing * log_sigmoid(-0.3 * D)

    four = pairs(rng, 4)
    assert_same(bpref.dpo(0.3, smoothing, form), lambda _, x: of((x[0] - x[1]) - (x[2] - x[3])).mean(), (), four)
    layer = bpref.cpo(0.3, 0.7, smoothing, form)
    assert_same(layer, lambda _, x: of(x[0] - x[1]).mean() - 0.7 * x[0].mean(), (), four[:2])


@pytest.mark.parametrize("form", ["sigmoid", "hinge"])
def test_simpo(rng, form):
    def twin(_, x):
        u = 2.0 * (x[0] - x[1] - 0.5 / 2.0)
        return (torch.relu(1 - u) if form == "hinge" else -torch.nn.functional.logsigmoid(u)).mean()

    assert_same(bpref.simpo(form=form), twin, (), pairs(rng))


def test_orpo(rng):
    def twin(_, x):
        c, r = x
        log_odds = (c - r) - (torch.log1p(-torch.exp(c)) - torch.log1p(-torch.exp(r)))
        return (-c - 0.1 * torch.nn.functional.logsigmoid(log_odds)).mean()

    assert_same(bpref.orpo(), twin, (), pairs(rng))


def test_kto(rng):
    def twin(_, x):
        policy, rho, k, desirable = x
        z = k.mean().clamp(min=0).detach()
        u = 0.3 * (policy - rho - z)
        return (1.0 - torch.sigmoid(torch.where(desirable, u, -u))).mean()

    x = pairs(rng, 3)
    x = *x, rng.random(len(x[0])) < 0.5
    assert_same(bpref.kto(0.3), twin, (), x)


def groups(rng):
    B, G, T = (int(n) for n in rng.integers(2, 6, 3))
    pi, old, rho = (-rng.exponential(1.0, size=(B, G, T)) for _ in range(3))
    mask = np.arange(T) < rng.integers(1, T + 1, (B, G, 1))
    return pi, pi + 0.1 * old - 0.1, rho, rng.normal(size=(B, G)), mask


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_grpo_and_gspo(rng, level):
    """As TRL has them by its `importance_sampling_level`, with a deviation of the sample."""

    def twin(_, x):
        pi, old, rho, R, mask = x
        m = mask.to(pi.dtype)
        log_ratio = pi - old.detach()
        if level == "sequence":
            log_ratio = ((log_ratio * m).sum(-1) / m.sum(-1).clamp(min=1.0))[..., None]
        r = torch.exp(log_ratio)
        A = ((R - R.mean(-1, keepdim=True)) / (R.std(-1, keepdim=True) + 1e-4)).detach()[..., None]
        per_token = -torch.min(r * A, torch.clamp(r, 0.8, 1.3) * A)
        behind = rho.detach() - pi
        per_token = per_token + 0.04 * (torch.exp(behind) - behind - 1)
        return ((per_token * m).sum(-1) / m.sum(-1).clamp(min=1.0)).mean()

    make = bpref.grpo if level == "token" else bpref.gspo
    assert_same(make(clip=0.2, clip_high=0.3, kl_weight=0.04, ddof=1), twin, (), groups(rng))


@pytest.mark.parametrize("mean", [False, True])
def test_answer_log_probability(rng, mean):
    def twin(_, x):
        total = (x[0] * x[1]).sum(-1)
        return total / x[1].sum(-1) if mean else total

    pi, *_, mask = groups(rng)
    assert_same(bpref.answer_log_probability(mean), twin, (), (pi, mask))


def test_total_variation(rng):
    N, C = (int(n) for n in rng.integers(2, 9, 2))

    def twin(_, x):
        q, p = (torch.softmax(v / 1.5, -1) for v in x)
        return 0.5 * torch.nn.functional.l1_loss(q, p, reduction="sum") / N

    assert_same(bpref.total_variation(1.5), twin, (), (rng.normal(size=(N, C)), rng.normal(size=(N, C))))


@pytest.mark.parametrize("loss", ["distillation", "total_variation"])
def test_fused_linear_distillation(rng, loss):
    N, d, e, V = (int(n) for n in rng.integers(2, 9, 4))
    params = bpref.FusedLinearDistillationParams(rng.normal(size=(V, d)), rng.normal(size=V))
    y = np.where(np.arange(N) == 0, -100, rng.integers(0, V, N))
    x = rng.normal(size=(N, d)), rng.normal(size=(N, e)), rng.normal(size=(V, e)), rng.normal(size=V), y

    def twin(p, x):
        h, teacher_h, teacher_W, teacher_b, y = x
        a = torch.nn.functional.linear(h, p.W, p.b)[1:]
        b = torch.nn.functional.linear(teacher_h, teacher_W, teacher_b).detach()[1:]
        q, p_ = (torch.softmax(v / 3, -1) for v in (a, b))
        if loss == "total_variation":
            return (q - p_).abs().sum(-1).mean() / 2
        soft = (p_ * (p_.log() - q.log())).sum(-1).mean()
        return 0.7 * 9 * soft + 0.3 * torch.nn.functional.cross_entropy(a, y[1:])

    hyper = {"temperature": 3.0} | ({"soft_weight": 0.7} if loss == "distillation" else {})
    layer = bpref.fused_linear_distillation(V, loss, hyper, bias=True, ignored=-100, rows=3)
    assert_same(layer, twin, params, x)
