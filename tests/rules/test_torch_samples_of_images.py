"""Convolutions, pools and images read between their pixels, on PyTorch's own samples.

PyTorch's channels come second, and an image may stand without a batch: it is one of a batch of one here.
"""

import pytest

import bpref
from bpref.rules.convolution.convolution import ConvolutionParams
from bpref.rules.convolution.transposed_convolution import TransposedConvolutionParams
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made


def per_axis(v, rank):
    """A number, or a sequence of one, for each axis."""
    v = tuple(v) if isinstance(v, (tuple, list)) else (v,)
    return v * rank if len(v) == 1 else v


def channels_last(x, rank):
    """x (N, *sizes, C), and the way back."""
    batched = x if x.ndim == rank + 2 else x[None]

    def back(y):
        y = y.movedim(-1, 1)
        return y if x.ndim == rank + 2 else y[0]

    return batched.movedim(1, -1), back


def with_places(back):
    """The way back of a pair of values and places, which PyTorch has in 64 bits."""
    return lambda y: (back(y[0]), back(y[1]).long())


def convolution(rank):
    def ours(x, W, b=None, stride=1, padding=0, dilation=1, groups=1):
        image, back = channels_last(x, rank)
        how = {"stride": per_axis(stride, rank), "dilation": per_axis(dilation, rank), "groups": groups}
        pads = padding if isinstance(padding, str) else per_axis(padding, rank)
        layer = made(bpref.convolution, len(W), tuple(W.shape[2:]), padding=pads, bias=b is not None, **how)
        return Ours(layer, image, ConvolutionParams(W.movedim(1, -1), b), back)

    return ours


def transposed_convolution(rank):
    def ours(x, W, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        more, steps = per_axis(output_padding, rank), per_axis(stride, rank)
        if any(a >= s for a, s in zip(more, steps, strict=True)):
            return "output padding of a stride or more, which no window of the convolution leaves over"
        image, back = channels_last(x, rank)
        how = {"stride": steps, "dilation": per_axis(dilation, rank), "padding": per_axis(padding, rank)}
        features = groups * W.shape[1]
        layer = made(
            bpref.transposed_convolution,
            features,
            tuple(W.shape[2:]),
            output_padding=more,
            groups=groups,
            bias=b is not None,
            **how,
        )
        return Ours(layer, image, TransposedConvolutionParams(W.movedim(1, -1), b), back)

    return ours


def max_pool(rank):
    def ours(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        image, back = channels_last(x, rank)
        window = per_axis(kernel_size, rank)
        steps = window if stride in (None, ()) else per_axis(stride, rank)
        pads, apart = per_axis(padding, rank), per_axis(dilation, rank)
        layer = made(bpref.max_pool, window, steps, pads, apart, return_indices, ceil_mode)
        return Ours(layer, image, back=with_places(back) if return_indices else back)

    return ours


def average_pool(rank):
    def ours(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        image, back = channels_last(x, rank)
        window = per_axis(kernel_size, rank)
        steps = window if stride in (None, ()) else per_axis(stride, rank)
        how = per_axis(padding, rank), count_include_pad, ceil_mode, divisor_override
        layer = made(bpref.average_pool, window, steps, *how)
        return Ours(layer, image, back=back)

    return ours


def adaptive_pool(rank, kind):
    def ours(x, output_size, return_indices=False):
        image, back = channels_last(x, rank)
        asked = per_axis(output_size, rank)
        counts = tuple(n if m is None else m for m, n in zip(asked, image.shape[1:-1], strict=True))
        layer = made(bpref.adaptive_pool, counts, kind, return_indices)
        return Ours(layer, image, back=with_places(back) if return_indices else back)

    return ours


def grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=None):
    image, back = channels_last(x, x.ndim - 2)
    layer = made(bpref.grid_sample, bool(align_corners), padding_mode, mode)
    return Ours(layer, (image, grid), back=back)


TABLE: Table = {
    "nn.functional.conv1d": Row(convolution(1), Outcome(10)),
    "nn.functional.conv2d": Row(convolution(2), Outcome(30)),
    "nn.functional.conv3d": Row(convolution(3), Outcome(20)),
    "nn.functional.conv_transpose1d": Row(transposed_convolution(1), Outcome(10)),
    "nn.functional.conv_transpose2d": Row(
        transposed_convolution(2),
        Outcome(10, {"output padding of a stride or more, which no window of the convolution leaves over": 2}),
    ),
    "nn.functional.conv_transpose3d": Row(
        transposed_convolution(3),
        Outcome(8, {"output padding of a stride or more, which no window of the convolution leaves over": 2}),
    ),
    "nn.functional.max_pool1d": Row(max_pool(1), Outcome(19), every=47),
    "nn.functional.max_pool2d": Row(max_pool(2), Outcome(19), every=79),
    "nn.functional.max_pool3d": Row(max_pool(3), Outcome(8), every=79),
    "nn.functional.avg_pool1d": Row(average_pool(1), Outcome(9)),
    "nn.functional.avg_pool2d": Row(average_pool(2), Outcome(7)),
    "nn.functional.avg_pool3d": Row(average_pool(3), Outcome(8)),
    "nn.functional.adaptive_avg_pool2d": Row(adaptive_pool(2, "average"), Outcome(10)),
    "nn.functional.adaptive_max_pool2d": Row(adaptive_pool(2, "max"), Outcome(24)),
    "nn.functional.grid_sample": Row(grid_sample, Outcome(30)),
}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)
