"""check of PyTorch functions at sizes that were not given, and of arrays too large to be looked at one by one."""

import pytest

torch = pytest.importorskip("torch")

import bpref  # noqa: E402
from tests.conftest import SEED  # noqa: E402
from tests.verify.torch_front import torch_functions as f  # noqa: E402
from tests.verify.written import details  # noqa: E402

GENERATOR = torch.Generator().manual_seed(SEED)
BLOCK = 128


class Blocked(torch.autograd.Function):
    """sin x by blocks of 128 along the last axis; the backward leaves out a last block that is not full."""

    full = False

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @classmethod
    def backward(cls, ctx, dy):
        (x,) = ctx.saved_tensors
        dx, n = torch.zeros_like(x), x.shape[-1]
        end = n if cls.full else n // BLOCK * BLOCK
        dx[..., :end] = (dy * torch.cos(x))[..., :end]
        return dx


class BlockedToTheEnd(Blocked):
    full = True


@pytest.mark.parametrize("reference", [torch.sin, None])
@pytest.mark.parametrize("shape", [(128,), (3, 256)])
def test_a_last_block_that_is_dropped_is_found_at_another_size(shape, reference):
    x = torch.randn(*shape, generator=GENERATOR)
    report = bpref.check(Blocked.apply, x, reference=reference, key=1)
    assert report.verdict == "wrong", str(report)
    grown = [*shape[:-1], shape[-1] + 1]
    assert details(report)["x"].startswith(f"at x {grown}: ")
    assert {(v.where, v.kind) for v in report.findings} <= {("x", "sparse"), ("x", "unexplained"), ("x", "zero")}
    right = bpref.check(BlockedToTheEnd.apply, x, reference=reference, key=1)
    assert right.ok, str(right)
    assert right.notes[0].startswith(f"looked at x {grown}; x {[*shape[:-1], 1]}")


def test_sizes_that_are_one_are_changed_together_and_what_is_refused_is_said():
    x, w = torch.randn(5, 8, generator=GENERATOR), torch.randn(8, generator=GENERATOR)
    report = bpref.check(f.Rms.apply, x, w, reference=f.rms_naive, key=1)
    assert report.ok, str(report)
    assert report.notes[0] == "looked at x [5, 9], g [9]; x [5, 1], g [1]; x [6, 8]; x [1, 8] too"
    fixed = lambda x, w: torch.nn.functional.rms_norm(x, (8,), w, eps=1e-6)  # noqa: E731
    report = bpref.check(f.Rms.apply, x, w, reference=fixed, key=1)
    assert report.ok, str(report)
    assert report.notes[0].startswith(
        "looked at x [6, 8]; x [1, 8] too; refused at x [5, 9], g [9] (RuntimeError: Expected"
    )


def test_a_size_that_something_else_holds_stays():
    """Offsets that end at it, a permutation of it, a number among the arguments, the parameters of a module."""
    x = torch.randn(6, 8, generator=GENERATOR)
    order, offsets = torch.tensor([3, 1, 0, 5, 4, 2]), torch.tensor([0, 3, 6])
    held = [
        bpref.check(lambda x, order: x[order], x, order, reference=lambda x, i: x.index_select(0, i), key=1),
        bpref.check(lambda x, offsets: x * offsets[-1], x, offsets, key=1),
        bpref.check(lambda x, n: x.sum(0) / n, x, 6, reference=lambda x, n: x.mean(0), key=1),
    ]
    assert [r.notes[-1] for r in held] == ["looked at x [6, 9]; x [6, 1] too"] * 3, "\n".join(map(str, held))
    module = bpref.check(torch.nn.Linear(8, 3), x, key=1)
    assert module.notes == ("looked at input [7, 8]; input [1, 8] too",)


class OneWrong(torch.autograd.Function):
    """sin x; one element's slope is 1.001 times what it should be."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        dx = dy * torch.cos(x)
        dx.view(-1)[1234] *= 1.001
        return dx


def test_one_wrong_element_of_four_thousand_is_seen_along_a_direction():
    x = torch.randn(64, 64, generator=GENERATOR)
    report = bpref.check(OneWrong.apply, x, key=1)
    assert details(report) == {"x": "along a random direction through the whole array it is off"}
    right = bpref.check(BlockedToTheEnd.apply, x, key=1)
    assert right.ok, str(right)
    assert "4064 elements were looked at only along random directions" in details(right)["x"]


class Absolute(torch.autograd.Function):
    """|x|; one element's slope is 1.01 times what it should be."""

    factor = 1.01

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.abs(x)

    @classmethod
    def backward(cls, ctx, dy):
        (x,) = ctx.saved_tensors
        dx = dy * torch.sign(x)
        dx[19, 18] *= cls.factor
        return dx


class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.relu(x)

    @staticmethod
    def backward(ctx, dy):
        return dy * (ctx.saved_tensors[0] > 0)


def test_what_only_blurred_directions_show_is_not_ok():
    """Of zeros and ones, which stay what they are: every direction meets the kinks at twelve zeros."""
    x = torch.ones(64, 64)
    x.view(-1)[::350] = 0
    report = bpref.check(Absolute.apply, x, key=1)
    assert report.verdict == "cannot tell", str(report)
    assert details(report)["x"].endswith("is not sharp enough to show one that is wrong")


def test_kinks_that_a_direction_meets_are_no_mistake():
    x = torch.randn(64, 64, generator=GENERATOR)
    x.view(-1)[::350] = 0
    for key in range(1, 4):
        report = bpref.check(Relu.apply, x, key=key)
        assert report.ok, str(report)


def test_a_size_that_cannot_grow_is_not_made_one():
    """h beside W of shape (d, 3d): where h is (n, 1) it would be broadcast, and the backward is not for that."""

    class Gates(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h, w):
            ctx.save_for_backward(h, w)
            return h * w.reshape(3, -1).sum(0)

        @staticmethod
        def backward(ctx, dy):
            h, w = ctx.saved_tensors
            return dy * w.reshape(3, -1).sum(0), (dy * h).sum(0).repeat(3)

    h, w = torch.randn(5, 4, generator=GENERATOR), torch.randn(12, generator=GENERATOR)
    report = bpref.check(Gates.apply, h, w, reference=lambda h, w: h * w.reshape(3, -1).sum(0), key=1)
    assert report.ok, str(report)
    assert "h [6, 4]; h [1, 4] too; refused at h [5, 5]" in report.notes[0]
    assert "h [5, 1]" not in report.notes[0]
