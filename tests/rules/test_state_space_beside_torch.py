"""Recurrences and scans beside PyTorch's autograd of a plain loop over time."""

import pytest

import bpref
from bpref.formulas.recurrence.steps import Passed
from bpref.rules.state_space.rg_lru import RgLruParams
from bpref.rules.state_space.selective_scan import Selective, SelectiveScanParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def loop(a, b, h=None):
    """h_t = a_t h_{t-1} + b_t for every t, time the second axis."""
    states = []
    for t in range(a.shape[1]):
        h = b[:, t] if h is None else a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


def test_linear_recurrence(rng):
    N, T, d = map(int, rng.integers(1, 9, 3))
    x = rng.uniform(-1, 1, (N, T, d)), rng.normal(size=(N, T, d)), rng.normal(size=(N, d))
    assert_same(bpref.linear_recurrence(), lambda _, x: loop(*x), (), x)


def test_selective_scan(rng):
    """The reference of Mamba's own code, `selective_scan_ref`, without its gate."""
    N, T, d, n = map(int, rng.integers(2, 9, 4))
    normal = rng.normal
    params = SelectiveScanParams(normal(size=(d, n)), normal(size=d), normal(size=d))
    x = Selective(*(normal(size=(N, T, v)) for v in (d, d, n, n)), normal(size=(N, d, n)))

    def twin(p, x):
        s = torch.nn.functional.softplus(x.delta + p.bias, threshold=100)
        a = torch.exp(torch.einsum("btd,dn->btdn", s, -torch.exp(p.log_A)))
        h = loop(a, torch.einsum("btd,btn->btdn", s * x.u, x.B), x.state)
        return Passed(torch.einsum("btdn,btn->btd", h, x.C) + p.D * x.u, h[:, -1])

    assert_same(bpref.selective_scan(n, chunk=3, final=True), twin, params, x)


def test_rg_lru(rng):
    N, T, d = map(int, rng.integers(1, 9, 3))
    W_r, W_i = rng.normal(size=(2, d, d))
    params = RgLruParams(W_r, rng.normal(size=d), W_i, rng.normal(size=d), rng.uniform(1, 4, d))

    def twin(p, x):
        r, i = torch.sigmoid(x @ p.W_r.T + p.b_r), torch.sigmoid(x @ p.W_i.T + p.b_i)
        a = torch.sigmoid(p.Lambda) ** (8 * r)
        return loop(a, torch.sqrt(1 - a**2) * (i * x))

    assert_same(bpref.rg_lru(), twin, params, rng.normal(size=(N, T, d)))
