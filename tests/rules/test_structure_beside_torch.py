"""The updates of pairs beside AlphaFold 2's algorithms in PyTorch, triangle by triangle."""

import jax
import numpy as np
import pytest

import bpref
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


def drawn(rng, layer, B=2, N=4, c=6):
    """Params and pairs with a mask."""
    x = bpref.PairsOfNodes(rng.normal(size=(B, N, N, c)), rng.random((B, N, N)) < 0.8)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    return jax.tree.map(lambda v: rng.normal(size=v.shape), shapes), x


def normed(norm, v):
    return F.layer_norm(v, v.shape[-1:], norm.scale, norm.shift, eps=1e-5)


@pytest.mark.parametrize("edges", ["outgoing", "incoming"])
def test_triangle_multiplication(rng, edges):
    def twin(p, x):
        n, N = normed(p.norm, x.z), x.z.shape[1]
        gate_a, gate_b, a, b = F.linear(n, p.W_in, p.b_in).chunk(4, -1)
        a, b = (torch.sigmoid(g) * v * x.mask[..., None] for g, v in ((gate_a, a), (gate_b, b)))
        of = (lambda e, i, k: e[:, i, k]) if edges == "outgoing" else (lambda e, i, k: e[:, k, i])
        rows = [[sum(of(a, i, k) * of(b, j, k) for k in range(N)) for j in range(N)] for i in range(N)]
        t = torch.stack([torch.stack(row, 1) for row in rows], 1)
        return torch.sigmoid(F.linear(n, p.W_gate, p.b_gate)) * F.linear(normed(p.norm_out, t), p.W_out, p.b_out)

    layer = bpref.triangle_multiplication(3, edges)
    assert_same(layer, twin, *drawn(rng, layer))


@pytest.mark.parametrize("node", ["starting", "ending"])
def test_triangle_attention(rng, node):
    def twin(p, x):
        n, N = normed(p.norm, x.z), x.z.shape[1]
        q, k, v = (u.unflatten(-1, (2, -1)) for u in F.linear(n, p.W_qkv).chunk(3, -1))
        e, gate = F.linear(n, p.W_bias), torch.sigmoid(F.linear(n, p.W_gate, p.b_gate))
        rows = []
        for i in range(N):
            for j in range(N):
                if node == "starting":
                    keys, values, third, seen = k[:, i], v[:, i], e[:, j], x.mask[:, i]
                else:
                    keys, values, third, seen = k[:, :, j], v[:, :, j], e[:, :, i], x.mask[:, :, j]
                logits = torch.einsum("bhd,bkhd->bkh", q[:, i, j], keys) / q.shape[-1] ** 0.5 + third
                p_ij = torch.softmax(torch.where(seen[..., None], logits, -1e30), 1) * seen[..., None]
                rows.append(torch.einsum("bkh,bkhd->bhd", p_ij, values).flatten(1))
        o = torch.stack(rows, 1).unflatten(1, (N, N))
        return F.linear(gate * o, p.W_out, p.b_out)

    layer = bpref.triangle_attention(2, node, head_dim=3, block=3)
    assert_same(layer, twin, *drawn(rng, layer))


def test_an_array_is_all_pairs(rng):
    layer = bpref.triangle_attention(2, head_dim=3)
    params, x = drawn(rng, layer)
    with jax.enable_x64(True):
        y, cache = layer.forward(params, x.z)
        all_pairs = bpref.PairsOfNodes(x.z, np.ones(x.mask.shape, bool))
        expected = layer.forward(params, all_pairs)[0]
        dx = layer.backward(params, cache, y)[1]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert dx.shape == x.z.shape
