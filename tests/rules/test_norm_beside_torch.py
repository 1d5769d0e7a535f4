"""The norms beside PyTorch's, which has channels in its second axis where ours are in the last."""

import numpy as np
import pytest

import bpref
from bpref.formulas.norm.pre_norm import NormParams
from bpref.rules.norm.batch_norm import BatchNormParams
from bpref.rules.norm.dynamic_tanh import DynamicTanhParams
from bpref.rules.norm.gated_rms_norm import GatedRmsNormParams
from bpref.rules.norm.group_norm import GroupNormParams
from bpref.rules.norm.layer_norm import LayerNormParams
from bpref.rules.norm.qk_norm import QkNormParams
from bpref.rules.norm.qk_norm_rope import HeadsInOrder
from bpref.rules.norm.rms_norm import RmsNormParams
from bpref.rules.norm.weight_standardization import WeightStandardizationParams
from tests.rules.beside_torch import assert_same, channels_second

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


def drawn(rng, rank):
    return rng.normal(size=rng.integers(3, 7, rank))


def test_layer_norm(rng):
    x = drawn(rng, 3)
    d = x.shape[-1]
    params = LayerNormParams(*rng.normal(size=(2, d)))
    assert_same(bpref.layer_norm(), lambda p, x: F.layer_norm(x, (d,), p.scale, p.shift), params, x)


def test_rms_norm(rng):
    x = drawn(rng, 3)
    d = x.shape[-1]
    params = RmsNormParams(rng.normal(size=d))
    assert_same(bpref.rms_norm(), lambda p, x: F.rms_norm(x, (d,), p.scale, 1e-6), params, x)


def test_group_norm(rng):
    G, per_group = (int(v) for v in rng.integers(1, 4, 2))
    C = G * per_group
    x = rng.normal(size=(*rng.integers(2, 5, 3), C))
    params = GroupNormParams(*rng.normal(size=(2, C)))
    twin = channels_second(lambda p, x: F.group_norm(x, G, p.scale, p.shift))
    assert_same(bpref.group_norm(G), twin, params, x)


def test_instance_norm(rng):
    x = drawn(rng, 4)
    params = GroupNormParams(*rng.normal(size=(2, x.shape[-1])))
    twin = channels_second(lambda p, x: F.instance_norm(x, weight=p.scale, bias=p.shift))
    assert_same(bpref.group_norm(groups=None), twin, params, x)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(rng, training):
    x = drawn(rng, 4)
    d = x.shape[-1]
    params = BatchNormParams(*rng.normal(size=(3, d)), rng.uniform(0.1, 4, d))

    def normalized(p, x):
        return F.batch_norm(x, p.mean.detach().clone(), p.var.detach().clone(), p.scale, p.shift, training)

    assert_same(bpref.batch_norm(training), channels_second(normalized), params, x)


def test_running_statistics():
    rng = np.random.default_rng(0)
    x = drawn(rng, 2)
    d = x.shape[-1]
    params = BatchNormParams(*rng.normal(size=(3, d)).astype(np.float32), np.ones(d, np.float32))
    ours = bpref.update_running_statistics(params, bpref.batch_norm().forward(params, x.astype(np.float32))[1], 0.75)
    mean, var = (torch.tensor(v) for v in (params.mean, params.var))
    F.batch_norm(torch.tensor(x, dtype=torch.float32), mean, var, training=True, momentum=0.25)
    np.testing.assert_allclose(ours.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(ours.var, var, rtol=1e-5)


@pytest.mark.parametrize("p", [2, 1, 3, 0.5, 0, -1.5, float("inf"), float("-inf")])
@pytest.mark.parametrize("eps", [1e-12, 2.0])
def test_l2_normalize(rng, eps, p):
    x = drawn(rng, 3)
    x[0, :, 0] = 0
    assert_same(bpref.l2_normalize(1, eps, p), lambda _, x: F.normalize(x, p, dim=1, eps=eps), (), x)


def test_weight_standardization(rng):
    x = drawn(rng, 3)
    m = int(rng.integers(1, 6))
    params = WeightStandardizationParams(rng.normal(size=(m, x.shape[-1])), rng.normal(size=m), rng.normal(size=m))

    def twin(p, x):
        V = F.layer_norm(p.W, p.W.shape[1:], eps=1e-6)
        return F.linear(x, p.scale[:, None] * V, p.b)

    assert_same(bpref.weight_standardization(m, scale=True), twin, params, x)


def test_qk_norm(rng):
    q = drawn(rng, 4)
    D = q.shape[-1]
    k = rng.normal(size=(*rng.integers(1, 5, 3), D))
    by_rms = QkNormParams(*rng.normal(size=(2, D)))

    def rms(p, x):
        return tuple(F.rms_norm(v, (D,), s, 1e-6) for v, s in zip(x, p, strict=True))

    def l2(p, x):
        return p.q_scale * F.normalize(x[0], dim=-1, eps=1e-6), F.normalize(x[1], dim=-1, eps=1e-6)

    assert_same(bpref.qk_norm(), rms, by_rms, (q, k))
    assert_same(bpref.qk_norm(l2=True), l2, QkNormParams(np.array(rng.normal()), None), (q, k))


def test_dynamic_tanh(rng):
    x = drawn(rng, 3)
    params = DynamicTanhParams(np.array(0.7), *rng.normal(size=(2, x.shape[-1])))
    assert_same(bpref.dynamic_tanh(), lambda p, x: p.scale * torch.tanh(p.alpha * x) + p.shift, params, x)


def test_a_scale_of_each_head_that_is_zero_centred(rng):
    x = drawn(rng, 4)
    N, d = x.shape[-2:]
    of_rms, of_layer = RmsNormParams(rng.normal(size=(N, d))), LayerNormParams(*rng.normal(size=(2, N, d)))
    given = {"zero_centred": True, "per_head": True}
    assert_same(bpref.rms_norm(**given), lambda p, x: F.rms_norm(x, (d,), None, 1e-6) * (1 + p.scale), of_rms, x)

    def twin(p, x):
        return F.layer_norm(x, (d,)) * (1 + p.scale) + p.shift

    assert_same(bpref.layer_norm(**given), twin, of_layer, x)


@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_gated_rms_norm(rng, norm_before_gate):
    x = drawn(rng, 3)
    G = int(rng.integers(1, 4))
    x, z = rng.normal(size=(2, *x.shape[:-1], 4 * G))

    def normed(v):
        return F.rms_norm(v.unflatten(-1, (G, 4)), (4,), None, 1e-6).flatten(-2)

    def twin(p, x):
        s = F.silu(x[1])
        return p.scale * normed(x[0]) * s if norm_before_gate else p.scale * normed(x[0] * s)

    layer = bpref.gated_rms_norm(norm_before_gate=norm_before_gate, groups=G)
    assert_same(layer, twin, GatedRmsNormParams(rng.normal(size=4 * G)), (x, z))


def test_add_norm(rng):
    x = drawn(rng, 3)
    d, residual = x.shape[-1], rng.normal(size=x.shape)

    def rms(p, x):
        h = x[0] + x[1]
        return F.rms_norm(h, (d,), 1 + p.scale, 1e-6), h

    def layer(p, x):
        h = x[0] + x[1]
        return F.layer_norm(h, (d,), p.scale, p.shift, 1e-5), h

    of_rms, of_layer = NormParams(rng.normal(size=d), None), NormParams(*rng.normal(size=(2, d)))
    assert_same(bpref.add_norm(zero_centred=True), rms, of_rms, (x, residual))
    assert_same(bpref.add_norm("layer", 1e-5), layer, of_layer, (x, residual))


def test_adaptive_norm_is_dits_modulation(rng):
    x = drawn(rng, 3)
    scale, shift = rng.normal(size=(2, len(x), x.shape[-1]))

    def twin(p, x):
        v, scale, shift = x
        return F.layer_norm(v, v.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    assert_same(bpref.adaptive_norm(), twin, (), (x, scale, shift))


def test_qk_norm_rope(rng):
    B, T, H, K = (int(n) for n in rng.integers(1, 5, 4))
    q, k = rng.normal(size=(B, T, H, 8)), rng.normal(size=(B, T, K, 8))

    def twin(p, x):
        angle = x.positions[..., None] * 100.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, :, None] for f in (torch.cos, torch.sin))

        def turned(v):
            return v * cos + torch.cat([-v[..., 4:], v[..., :4]], -1) * sin

        return tuple(turned(F.rms_norm(v, (8,), s, 1e-6)) for v, s in zip(x[:2], p, strict=True))

    x = HeadsInOrder(q, k, rng.integers(0, 50, (B, T)))
    assert_same(bpref.qk_norm_rope(base=100.0), twin, QkNormParams(*rng.normal(size=(2, 8))), x)
