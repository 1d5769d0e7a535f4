"""The blocks beside PyTorch's modules that compute the same, on random shapes."""

import jax
import numpy as np
import pytest

import bpref
from bpref.formulas.norm.pre_norm import NormParams
from bpref.rules.attention.multi_head_attention import MultiHeadAttentionParams
from bpref.rules.block.attention_block import AttentionBlockParams
from bpref.rules.block.decoder_block import DecoderBlockParams
from bpref.rules.block.mamba_block import MambaBlockParams
from bpref.rules.block.mlp_block import MlpBlockParams
from bpref.rules.block.residual_convolution_block import ResidualConvolutionBlockParams
from bpref.rules.block.transformer_block import TransformerBlockParams
from bpref.rules.convolution.convolution import ConvolutionParams
from bpref.rules.norm.rms_norm import RmsNormParams
from bpref.rules.state_space.selective_scan import SelectiveScanParams
from tests.rules.beside_torch import assert_same


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rank", [1, 2])
def test_residual_convolution_block(torch, rng, rank, stride):
    """With a stride on odd sizes, where "same" has one element of padding on either side."""
    F = torch.nn.functional
    C, outputs = 6, 6 if stride == 1 else 9
    window = (3,) * rank
    of_norm = [rng.normal(size=n) for n in (C, C, outputs, outputs)]
    W1, W2 = rng.normal(size=(outputs, *window, C)), rng.normal(size=(outputs, *window, outputs))
    S = None if stride == 1 else rng.normal(size=(outputs, C))
    params = ResidualConvolutionBlockParams(*of_norm[:2], W1, *of_norm[2:], W2, S)
    convolved = getattr(F, f"conv{rank}d")

    def twin(p, x):
        v = x.movedim(-1, 1)
        a1 = F.relu(F.group_norm(v, 3, p.scale1, p.shift1, 1e-5))
        u = convolved(a1, p.W1.movedim(-1, 1), stride=stride, padding=1)
        a2 = F.relu(F.group_norm(u, 3, p.scale2, p.shift2, 1e-5))
        shortcut = v if p.S is None else convolved(a1, p.S.reshape(*p.S.shape, *(1,) * rank), stride=stride)
        return (shortcut + convolved(a2, p.W2.movedim(-1, 1), padding=1)).movedim(1, -1)

    sizes = (int(n) if stride == 1 else 2 * int(n) - 1 for n in rng.integers(2, 7, rank))
    layer = bpref.residual_convolution_block(3, window, features=outputs, stride=stride)
    assert_same(layer, twin, params, rng.normal(size=(2, *sizes, C)))


@pytest.mark.parametrize("post_norm", [False, True], ids=["pre-norm", "post-norm"])
@pytest.mark.parametrize("form", ["gelu", "gelu_erf"])
@pytest.mark.parametrize("sees", ["the past", "all", "what masks leave"])
def test_transformer_block(torch, rng, sees, form, post_norm):
    """As `TransformerEncoderLayer` with the norms on either side, either GELU, layer norms, biases, both its masks."""
    heads, d, F = 2, 8, 12
    T, causal = int(rng.integers(1, 14)), sees == "the past"
    hidden, padding = rng.random((T, T)) < 0.4, np.arange(T) >= rng.integers(1, T + 1, (3, 1))
    hidden[:, 0] = False

    def half(kind, rows, columns):
        norm = NormParams(rng.normal(size=d), rng.normal(size=d))
        return kind(norm, rng.normal(size=(rows, d)), rng.normal(size=rows), *_affine(rng, d, columns))

    params = TransformerBlockParams(half(AttentionBlockParams, 3 * d, d), half(MlpBlockParams, F, F))
    layer = bpref.transformer_block(
        heads,
        F,
        activation=form,
        gated=False,
        norm="layer",
        rope=None,
        causal=causal,
        bias=True,
        eps=1e-5,
        block=4,
        post_norm=post_norm,
    )

    def gelu(x):
        return torch.nn.functional.gelu(x, approximate="tanh" if form == "gelu" else "none")

    module = torch.nn.TransformerEncoderLayer(d, heads, F, 0.0, gelu, 1e-5, True, not post_norm, dtype=torch.float64)

    def twin(p, x):
        a, m = p.attention, p.mlp
        named = {
            "norm1.weight": a.norm.scale,
            "norm1.bias": a.norm.shift,
            "self_attn.in_proj_weight": a.W_qkv,
            "self_attn.in_proj_bias": a.b_qkv,
            "self_attn.out_proj.weight": a.W_o,
            "self_attn.out_proj.bias": a.b_o,
            "norm2.weight": m.norm.scale,
            "norm2.bias": m.norm.shift,
            "linear1.weight": m.W_in,
            "linear1.bias": m.b_in,
            "linear2.weight": m.W_out,
            "linear2.bias": m.b_out,
        }
        masks = {"src_mask": torch.triu(torch.ones(T, T, dtype=torch.bool), 1)} if causal else {}
        if sees == "what masks leave":
            x, masks = x.x, {"src_mask": torch.tensor(hidden), "src_key_padding_mask": torch.tensor(padding)}
        return torch.func.functional_call(module, named, (x,), masks)

    x = rng.normal(size=(3, T, d))
    if sees == "what masks leave":
        x = bpref.MaskedSequence(x, ~(hidden | padding[:, None])[:, None])
    assert_same(layer, twin, params, x)


@pytest.mark.parametrize("post_norm", [False, True], ids=["pre-norm", "post-norm"])
def test_decoder_block(torch, rng, post_norm):
    """As `TransformerDecoderLayer` has it, causal, its memory padded; of its keys' bias nothing depends."""
    heads, d, F, (T, S) = 2, 8, 12, (int(n) for n in rng.integers(1, 9, 2))
    padding = np.arange(S) >= rng.integers(1, S + 1, (3, 1))

    def norm():
        return NormParams(rng.normal(size=d), rng.normal(size=d))

    W, b = rng.normal(0, 0.4, (4, d, d)), rng.normal(size=(4, d))
    params = DecoderBlockParams(
        AttentionBlockParams(norm(), *_affine(rng, 3 * d, d), *_affine(rng, d, d)),
        MultiHeadAttentionParams(*W, b[0], None, b[2], b[3]),
        norm(),
        MlpBlockParams(norm(), *_affine(rng, F, d), *_affine(rng, d, F)),
    )
    hyper = {"activation": "relu", "gated": False, "norm": "layer", "rope": None, "bias": True, "eps": 1e-5}
    layer = bpref.decoder_block(heads, F, **hyper, block=4, post_norm=post_norm)
    module = torch.nn.TransformerDecoderLayer(
        d, heads, F, 0.0, batch_first=True, norm_first=not post_norm, dtype=torch.float64
    )

    def twin(p, x):
        a, c, m = p.attention, p.cross, p.mlp
        norms = {"norm1": a.norm, "norm2": p.cross_norm, "norm3": m.norm}
        named = {
            "self_attn.in_proj_weight": a.W_qkv,
            "self_attn.in_proj_bias": a.b_qkv,
            "self_attn.out_proj.weight": a.W_o,
            "self_attn.out_proj.bias": a.b_o,
            "multihead_attn.in_proj_weight": torch.cat([c.W_q, c.W_k, c.W_v]),
            "multihead_attn.in_proj_bias": torch.cat([c.b_q, torch.tensor(b[1]), c.b_v]),
            "multihead_attn.out_proj.weight": c.W_o,
            "multihead_attn.out_proj.bias": c.b_o,
            "linear1.weight": m.W_in,
            "linear1.bias": m.b_in,
            "linear2.weight": m.W_out,
            "linear2.bias": m.b_out,
            **{f"{name}.weight": n.scale for name, n in norms.items()},
            **{f"{name}.bias": n.shift for name, n in norms.items()},
        }
        masks = {
            "tgt_mask": torch.triu(torch.ones(T, T, dtype=torch.bool), 1),
            "memory_key_padding_mask": torch.tensor(padding),
        }
        return torch.func.functional_call(module, named, tuple(x[:2]), masks)

    x = bpref.SequenceAndMemory(rng.normal(size=(3, T, d)), rng.normal(size=(3, S, d)), None, ~padding[:, None, None])
    assert_same(layer, twin, params, x)


def test_dropout_of_the_hidden_features(torch, rng):
    """As `TransformerEncoderLayer` has it, between the activation and the second product; r is what is left of ones."""
    F, N, T, d = torch.nn.functional, 3, 50, 8
    layer = bpref.mlp_block(d, "relu", gated=False, norm="layer", bias=True, eps=1e-5, dropout=0.25)
    params = MlpBlockParams(
        NormParams(*rng.normal(size=(2, d))), *_affine(rng, d, d), *_affine(rng, d, d), jax.random.PRNGKey(7)
    )
    with jax.enable_x64(True):
        ones = params._replace(W_in=np.zeros((d, d)), b_in=np.ones(d), W_out=np.eye(d), b_out=np.zeros(d))
        r = np.array(layer.forward(ones, np.zeros((N, T, d)))[0])
    assert set(np.unique(r)) == {0, 1 / 0.75}
    assert abs(np.mean(r) - 1) < 0.05

    def twin(p, x):
        n = F.layer_norm(x, (d,), p.norm.scale, p.norm.shift, 1e-5)
        return F.linear(torch.tensor(r) * F.relu(F.linear(n, p.W_in, p.b_in)), p.W_out, p.b_out)

    assert_same(layer, twin, params, rng.normal(size=(N, T, d)))


def test_mamba_block(torch, rng):
    """Figure 3 of the paper with PyTorch's norm and convolution, and a loop over time for the scan."""
    F = torch.nn.functional
    N, T, d, n, r, k = map(int, rng.integers(2, 6, 6))
    e, normal = 2 * d, rng.normal
    params = MambaBlockParams(
        RmsNormParams(normal(size=d)),
        normal(size=(2 * e, d)),
        ConvolutionParams(normal(size=(e, k, 1)), normal(size=e)),
        normal(size=(r + 2 * n, e)) / e,
        normal(size=(e, r)),
        SelectiveScanParams(normal(size=(e, n)), normal(size=e), normal(size=e)),
        normal(size=(d, e)),
    )

    def twin(p, x):
        v, z = (F.rms_norm(x, (d,), p.norm.scale, 1e-5) @ p.W_in.T).chunk(2, -1)
        past = F.pad(v.movedim(1, -1), (k - 1, 0))
        u = F.silu(F.conv1d(past, p.conv.W.movedim(-1, 1), p.conv.b, groups=e)).movedim(-1, 1)
        R, B, C = (u @ p.W_x.T).split((r, n, n), -1)
        delta = F.softplus(R @ p.W_delta.T + p.scan.bias, threshold=100)
        h, seen = torch.zeros(N, e, n, dtype=x.dtype), []
        for t in range(T):
            s = delta[:, t, :, None]
            h = torch.exp(-s * torch.exp(p.scan.log_A)) * h + s * u[:, t, :, None] * B[:, t, None]
            seen.append((h * C[:, t, None]).sum(-1))
        y = torch.stack(seen, 1) + p.scan.D * u
        return x + (y * F.silu(z)) @ p.W_out.T

    assert_same(bpref.mamba_block(n, rank=r, window=k, chunk=3), twin, params, normal(size=(N, T, d)))


def _affine(rng, m, d):
    return rng.normal(size=(m, d)), rng.normal(size=m)
