"""check of PyTorch where a graph is used in part, or run in another way than by `autograd.grad`."""

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import Function  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import bpref  # noqa: E402
from tests.conftest import SEED  # noqa: E402

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(SEED))


class SineAndCosine(Function):
    """Without zeros for the output that is not used."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx, of_sine, of_cosine):
        (x,) = ctx.saved_tensors
        parts = [] if of_sine is None else [of_sine * x.cos()]
        parts += [] if of_cosine is None else [-of_cosine * x.sin()]
        return sum(parts)


class ForgottenAlone(SineAndCosine):
    @staticmethod
    def backward(ctx, of_sine, of_cosine):
        return None if of_sine is None else SineAndCosine.backward(ctx, of_sine, of_cosine)


class RaisingAlone(SineAndCosine):
    @staticmethod
    def backward(ctx, of_sine, of_cosine):
        (x,) = ctx.saved_tensors
        return of_sine * x.cos() - of_cosine * x.sin()


@pytest.mark.parametrize(
    ("fun", "detail"),
    [
        (SineAndCosine, ""),
        (ForgottenAlone, "differs where y[1] alone is used"),
        (RaisingAlone, "where y[0] alone is used, the backward raised TypeError"),
    ],
)
def test_each_output_is_used_alone_too(fun, detail):
    report = bpref.check(fun.apply, X, key=1)
    assert report.ok == (not detail), str(report)
    assert detail in str(report)


class Sine(Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.sin()

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return ctx.factor * dy * x.cos(), None


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "ok"), (1.1, "wrong")])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_which_autograd_grad_cannot_go_through(factor, expected):
    report = bpref.check(lambda x: checkpoint(Sine.apply, x, factor, use_reentrant=True), X, key=1)
    assert report.verdict == expected, str(report)


class SineInFloat64(Sine):
    @staticmethod
    def backward(ctx, dy):
        (dx, _) = Sine.backward(ctx, dy)
        return dx * (1 if dx.dtype == torch.float64 else 1.5), None


def test_a_factor_in_one_dtype_alone_is_named():
    report = bpref.check(SineInFloat64.apply, X, 1.0, key=1)
    assert report.verdicts[0].detail.startswith("in float32 it is 1.5 times the truth, sure to ")
