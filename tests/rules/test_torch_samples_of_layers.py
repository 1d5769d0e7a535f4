"""Layers with parameters, norms and linear algebra, on PyTorch's own samples."""

import pytest

import bpref
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.rules.linear.bilinear import BilinearParams
from bpref.rules.linear.embedding import EmbeddingParams
from bpref.rules.linear.linear import LinearParams
from bpref.rules.norm.batch_norm import BatchNormParams
from bpref.rules.norm.group_norm import GroupNormParams
from bpref.rules.norm.layer_norm import LayerNormParams
from bpref.rules.norm.rms_norm import RmsNormParams
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

NEGATIVE = "a negative eps"
NOTHING = "no numbers"


def linear(x, W, b=None):
    if W.ndim == 1:
        back = (lambda y: y[..., 0]) if b is None or b.ndim == 0 else lambda y: y
        b = None if b is None else b.reshape(1)
        return Ours(made(bpref.linear, 1, b is not None), x, LinearParams(W[None], b), back)
    return Ours(made(bpref.linear, len(W), b is not None), x, LinearParams(W, b))


def bilinear(x1, x2, W, b=None):
    return Ours(made(bpref.bilinear, len(W), b is not None), (x1, x2), BilinearParams(W, b))


def embedding(W, ids, padding_idx=None, **options):
    """PyTorch's function takes the ids first; its sample has the weight as input."""
    if options.get("max_norm") is not None or options.get("scale_grad_by_freq") or options.get("sparse"):
        return "rows that the forward shortens, or gradients scaled by how often a row is read"
    return Ours(made(bpref.embedding, *W.shape, padding_idx), ids, EmbeddingParams(W))


def in_one_axis(x, shape):
    """x with the normalised axes as one, and the way back."""
    return x.flatten(x.ndim - len(shape)), lambda y: y.reshape(x.shape)


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    if eps < 0:
        return NEGATIVE
    flat, back = in_one_axis(x, normalized_shape)
    scale, shift = (None if v is None else v.flatten() for v in (weight, bias))
    layer = made(bpref.layer_norm, eps, scale is not None, shift is not None)
    return Ours(layer, flat, LayerNormParams(scale, shift), back)


def rms_norm(x, normalized_shape, weight=None, eps=None):
    """Nothing said is the eps of the dtype."""
    if eps is not None and eps < 0:
        return NEGATIVE
    flat, back = in_one_axis(x, normalized_shape)
    layer = made(bpref.rms_norm, torch.finfo(x.dtype).eps if eps is None else eps, weight is not None)
    return Ours(layer, flat, RmsNormParams(None if weight is None else weight.flatten()), back)


def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    if eps < 0:
        return NEGATIVE
    if x.numel() == 0:
        return NOTHING
    layer = made(bpref.group_norm, num_groups, eps, weight is not None, bias is not None)
    return Ours(layer, x.movedim(1, -1), GroupNormParams(weight, bias), lambda y: y.movedim(-1, 1))


def batch_norm(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """What it remembers of a batch, by the momentum, is none of its output."""
    if x.numel() == 0:
        return NOTHING
    features = x.shape[1]
    scale = torch.ones(features, dtype=x.dtype) if weight is None else weight
    shift = torch.zeros(features, dtype=x.dtype) if bias is None else bias
    at = x if x.ndim == 2 else x.movedim(1, -1)
    back = (lambda y: y) if x.ndim == 2 else lambda y: y.movedim(-1, 1)
    if mean is None and not training:
        return "no statistics, and none of the batch"
    mean, var = (torch.zeros(features, dtype=x.dtype) if v is None else v.clone() for v in (mean, var))
    params = BatchNormParams(scale, shift, mean, var)
    return Ours(made(bpref.batch_norm, training, eps), at, params, back)


def plain(make):
    def ours(*x):
        return Ours(made(make), x if len(x) > 1 else x[0])

    return ours


def cholesky(A, upper=False):
    """PyTorch's cotangent is the symmetric one, as ours."""
    return Ours(made(bpref.cholesky), A, back=(lambda L: L.mT) if upper else lambda L: L)


def solve(A, B, left=True):
    if not left:
        A, B = A.mT, B.mT
    is_vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    if A.shape[:-2] != B.shape[: -1 if is_vector else -2]:
        return "matrices of several batches"
    back = (lambda X: X) if left else lambda X: X.mT
    return Ours(
        made(bpref.solve), (A, B[..., None] if is_vector else B), back=(lambda X: X[..., 0]) if is_vector else back
    )


def solve_triangular(A, B, upper, left=True, unitriangular=False):
    """X A = B is A^T X^T = B^T."""
    if not left:
        A, B, upper = A.mT, B.mT, not upper
    if A.shape[:-2] != B.shape[:-2]:
        return "matrices of several batches"
    back = (lambda X: X) if left else lambda X: X.mT
    return Ours(made(bpref.triangular_solve, not upper, False, unitriangular), (A, B), back=back)


def einsum(x, equation):
    return Ours(made(bpref.einsum, equation), tuple(x) if len(x) > 1 else x[0])


def flatten(x, start_dim=0, end_dim=-1):
    if x.ndim == 0:
        return "a scalar"
    return Ours(made(bpref.flatten, start_dim, end_dim), x)


def fft(x, n=None, dim=-1, norm=None):
    lengths = None if n is None else (n,)
    return Ours(made(bpref.fft, (dim,), norm=norm or "backward", lengths=lengths), x + 0j)


def rfft(x, n=None, dim=-1, norm=None):
    return Ours(made(bpref.real_fft, length=n, norm=norm or "backward", axes=(dim,)), x)


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """PyTorch's heads come before the positions; its mask is one of what is seen, or numbers added to the logits."""
    if dropout_p:
        return "dropout, whose draws are others"
    *batch, _, _ = torch.broadcast_shapes(*((*x.shape[:-2], 1, 1) for x in (q, k, v)))
    q, k, v = (x.expand(*batch, *x.shape[-2:]).transpose(-3, -2) for x in (q, k, v))
    of_logits = {}
    if attn_mask is not None:
        name = "mask" if attn_mask.dtype == torch.bool else "bias"
        of_logits[name] = attn_mask.expand(*(1,) * (q.ndim - 2), *attn_mask.shape[-2:])
    layer = made(bpref.dot_product_attention, is_causal, scale=scale)
    return Ours(layer, Heads(q, k, v, **of_logits), AttentionParams(), lambda y: y.transpose(-3, -2))


TABLE: Table = {
    "einsum": Row(einsum, Outcome(11)),
    "fft.fft": Row(fft, Outcome(8)),
    "fft.rfft": Row(rfft, Outcome(8)),
    "flatten": Row(flatten, Outcome(5, {"a scalar": 1})),
    "linalg.cholesky": Row(cholesky, Outcome(16)),
    "linalg.inv": Row(plain(bpref.inverse), Outcome(8)),
    "matrix_exp": Row(plain(bpref.matrix_exponential), Outcome(2)),
    "linalg.solve": Row(solve, Outcome(24)),
    "linalg.solve_triangular": Row(solve_triangular, Outcome(432)),
    "nn.functional.batch_norm": Row(batch_norm, Outcome(10, {"no numbers": 2})),
    "nn.functional.bilinear": Row(bilinear, Outcome(16)),
    "nn.functional.embedding": Row(embedding, Outcome(3)),
    "nn.functional.group_norm": Row(group_norm, Outcome(13, {"a negative eps": 4, "no numbers": 4})),
    "nn.functional.layer_norm": Row(layer_norm, Outcome(5, {"a negative eps": 1})),
    "nn.functional.linear": Row(linear, Outcome(18)),
    "nn.functional.scaled_dot_product_attention": Row(attention, Outcome(13, {"dropout, whose draws are others": 12})),
    "nn.functional.rms_norm": Row(rms_norm, Outcome(5, {"a negative eps": 1})),
}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)
