"""check of PyTorch where only another call shows that it is wrong: another layout, fewer gradients, a call between."""

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import Function  # noqa: E402

import bpref  # noqa: E402
from tests.conftest import SEED  # noqa: E402

GENERATOR = torch.Generator().manual_seed(SEED)
X, IMAGES = torch.randn(4, 5, generator=GENERATOR), torch.randn(2, 3, 4, 5, generator=GENERATOR)


def by_last_stride(t):
    """What a kernel reads that asks of its rows only that their elements lie side by side."""
    rows = torch.empty(t.shape).stride()
    return torch.as_strided(t, t.shape, rows, t.storage_offset()) if t.stride(-1) == 1 else t.contiguous()


def from_the_start(t):
    """What a kernel reads that forgets where in its storage a tensor begins."""
    return torch.as_strided(t, t.shape, t.stride(), 0)


def halved_in_channels_last(t):
    return t / 2 if t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() else t


def as_means_send_it(t):
    return t * t.shape[-1] if t.stride(-1) == 0 and t.stride(0) else t


def as_sums_over_examples_send_it(t):
    return t * len(t) if t.stride(0) == 0 and t.stride(-1) else t


class Sine(Function):
    """The sine; `of_x` and `of_dy` are how its backward reads what it was given."""

    @staticmethod
    def forward(ctx, x, of_x, of_dy):
        ctx.save_for_backward(x)
        ctx.reads = of_x, of_dy
        return x.sin()

    @staticmethod
    def backward(ctx, dy):
        (x,), (of_x, of_dy) = ctx.saved_tensors, ctx.reads
        return of_dy(dy) * of_x(x).cos(), None, None


def plainly(t):
    return t


@pytest.mark.parametrize(
    ("x", "of_x", "of_dy", "detail"),
    [
        (X, by_last_stride, plainly, "differs for x sliced from wider rows"),
        (X, plainly, by_last_stride, "differs for dy sliced from wider rows"),
        (X[0], plainly, from_the_start, "differs for dy sliced from wider rows"),
        (IMAGES, halved_in_channels_last, plainly, "differs for x in channels_last"),
        (IMAGES, plainly, halved_in_channels_last, "differs for dy in channels_last"),
        (X, plainly, as_means_send_it, "differs for a dy expanded along its last axis"),
        (X, plainly, as_sums_over_examples_send_it, "differs for a dy expanded along its first axis"),
        (X, plainly, plainly, ""),
        (IMAGES, plainly, plainly, ""),
    ],
)
def test_the_same_values_in_another_layout_give_the_same(x, of_x, of_dy, detail):
    def fun(x):
        return Sine.apply(x, of_x, of_dy)

    report = bpref.check(fun, x, reference=torch.sin, key=1)
    assert report.ok == (not detail), str(report)
    assert detail in str(report)


class Triple(Function):
    @staticmethod
    def forward(ctx, x, u, v):
        ctx.save_for_backward(x, u, v)
        return x * u * v

    @staticmethod
    def backward(ctx, dy):
        x, u, v = ctx.saved_tensors
        scale = 2 if ctx.needs_input_grad == (True, True, False) else 1
        return scale * dy * u * v, dy * x * v, dy * x * u


class LargerWithGradient(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 1.1 * x.sin() if ctx.needs_input_grad[0] else x.sin()

    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[0].cos()


class OfTheLastCall(Function):
    @staticmethod
    def forward(ctx, x):
        OfTheLastCall.x = x.detach().clone()
        return x.sin()

    @staticmethod
    def backward(ctx, dy):
        return dy * OfTheLastCall.x.cos()


@pytest.mark.parametrize(
    ("fun", "args", "reference", "detail"),
    [
        (Triple, (X, X + 1, X - 1), lambda x, u, v: x * u * v, "differs where v needs no gradient"),
        (LargerWithGradient, (X,), torch.sin, "y differs where no gradient is asked for"),
        (OfTheLastCall, (X,), torch.sin, "differs where it is called with other arguments before its backward"),
    ],
)
def test_what_depends_on_how_it_is_called_is_wrong(fun, args, reference, detail):
    report = bpref.check(fun.apply, *args, reference=reference, key=1)
    assert report.verdict == "wrong", str(report)
    assert detail in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_rounding_makes_of_equal_rows_accuses_nobody(dtype):
    """Their variance is zero: a batch norm's output is rounding alone, some 300 times enlarged."""
    report = bpref.check(torch.nn.BatchNorm1d(5).to(dtype), X.to(dtype), key=1)
    assert report.ok, str(report)


class SineOfExpanded(Sine):
    @staticmethod
    def backward(ctx, dy):
        x = ctx.saved_tensors[0]
        return dy * x.cos() * (1.001 if x.stride(0) == 0 else 1), None, None


def test_a_backward_that_is_wrong_for_expanded_rows_alone():
    report = bpref.check(lambda x: SineOfExpanded.apply(x, plainly, plainly), X, reference=torch.sin, key=1)
    assert report.verdict == "wrong"
    assert "differs for an expanded x" in str(report)
