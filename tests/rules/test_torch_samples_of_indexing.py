"""Scatters, segments, order, largest values and bags on PyTorch's own samples."""

import functools

import pytest

import bpref
from bpref.rules.linear.embedding_bag import EmbeddingBagParams
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made

REDUCTIONS = {"amax": "max", "amin": "min"}


def as_line(x, dim):
    """A scalar as a line of one, and the way back."""
    return (x, lambda y: y) if x.ndim else (x.reshape(1), lambda y: y.reshape(()))


def scatter_reduce(x, dim, index, src, reduce="sum", include_self=True):
    """PyTorch takes fewer lines of indices than there are of data: those that are lacking name no place here."""
    import torch

    lines, back = as_line(x, dim)
    index, src = (v if v.ndim else v.reshape(1) for v in (index, src))
    src = src[tuple(map(slice, index.shape))]
    axis = dim % lines.ndim
    lacking = [0 if k == axis else n - m for k, (n, m) in enumerate(zip(lines.shape, index.shape, strict=True))]
    pads = [p for more in reversed(lacking) for p in (0, more)]
    index = torch.nn.functional.pad(index, pads, value=lines.shape[axis])
    x = lines, index, torch.nn.functional.pad(src, pads)
    return Ours(made(bpref.scatter_along_axis, axis, REDUCTIONS.get(reduce, reduce), include_self), x, back=back)


def scatter_add(x, dim, index, src):
    return scatter_reduce(x, dim, index, src)


def segment_reduce(x, reduce, lengths=None, offsets=None, axis=0, unsafe=False, initial=None):
    """An initial value is one row more of each segment, which a mean does not count."""
    import torch

    lengths = torch.diff(offsets) if lengths is None else lengths
    if initial is None:
        return "segments without an initial value"
    *lines, S = lengths.shape
    of_each = [torch.repeat_interleave(torch.arange(S), of_line) for of_line in lengths.reshape(-1, S)]
    left_over = [torch.full((x.shape[axis] - len(ids),), S) for ids in of_each]
    ids = torch.stack([torch.cat((*both, torch.arange(S))) for both in zip(of_each, left_over, strict=True)])
    ids = ids.reshape(*lines, -1)
    rows = torch.full((*x.shape[:axis], S, *x.shape[axis + 1 :]), float(initial), dtype=x.dtype)
    layer = {
        "sum": lambda: made(bpref.segment_sum, S, axis=axis),
        "mean": lambda: made(bpref.segment_sum, S, axis=axis),
        "prod": lambda: made(bpref.segment_prod, S, axis),
        "max": lambda: made(bpref.segment_max, S, axis=axis),
        "min": lambda: made(bpref.segment_max, S, minimum=True, axis=axis),
    }[reduce]()
    counts = lengths.clamp(min=1).reshape(*lines, S, *[1] * (x.ndim - axis - 1))

    def back(y):
        return y / counts if reduce == "mean" else y

    return Ours(layer, (torch.cat((x, rows), axis), ids), back=back)


def sort(x, dim=-1, descending=False, stable=False):
    return Ours(made(bpref.sort, dim, descending, True), x, select=tuple)


def topk(x, k, dim=-1, largest=True, sorted=True):
    return Ours(made(bpref.top_k, k, dim, not largest), x, select=tuple)


def extreme(x, dim, keepdim=False, *, minimum):
    if x.ndim == 0:
        dim = None
    return Ours(made(bpref.reduce_max, dim, keepdims=keepdim, minimum=minimum, with_indices=True), x, select=tuple)


def embedding_bag(
    weight,
    x,
    offsets=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    mode="mean",
    sparse=False,
    per_sample_weights=None,
    include_last_offset=False,
    padding_idx=None,
):
    if max_norm is not None:
        return "a norm that changes the table"
    if scale_grad_by_freq:
        return "rows scaled by how often they come"
    V, d = weight.shape
    padding = padding_idx if padding_idx is None or padding_idx >= 0 else padding_idx + V
    layer = made(bpref.embedding_bag, V, d, mode == "mean", padding, mode == "max", packed=offsets is not None)
    bags = () if offsets is None else (offsets[:-1] if include_last_offset else offsets,)
    weights = () if per_sample_weights is None else (per_sample_weights,)
    return Ours(layer, (x, *bags, *weights) if bags or weights else x, EmbeddingBagParams(weight))


TABLE: Table = {
    "scatter_add": Row(scatter_add, Outcome(7)),
    "scatter_reduce.sum": Row(scatter_reduce, Outcome(21)),
    "scatter_reduce.mean": Row(scatter_reduce, Outcome(21)),
    "scatter_reduce.prod": Row(scatter_reduce, Outcome(22)),
    "scatter_reduce.amax": Row(scatter_reduce, Outcome(21)),
    "scatter_reduce.amin": Row(scatter_reduce, Outcome(21)),
    "_segment_reduce.lengths": Row(segment_reduce, Outcome(90)),
    "_segment_reduce.offsets": Row(segment_reduce, Outcome(90)),
    "sort": Row(sort, Outcome(58)),
    "topk": Row(topk, Outcome(14)),
    "max.reduction_with_dim": Row(functools.partial(extreme, minimum=False), Outcome(4)),
    "min.reduction_with_dim": Row(functools.partial(extreme, minimum=True), Outcome(4)),
    "nn.functional.embedding_bag": Row(embedding_bag, Outcome(32)),
}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)
