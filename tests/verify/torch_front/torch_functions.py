"""Autograd functions as people write them, right and wrong, beside plain PyTorch."""

import torch
from torch.autograd import Function


def rms_naive(x, g, eps=1e-6):
    scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return (x.float() * scale).to(x.dtype) * g


class Rms(Function):
    @staticmethod
    def forward(ctx, x, g, eps=1e-6):
        r = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, g, r)
        return (x.float() * r).to(x.dtype) * g

    @staticmethod
    def backward(ctx, dy):
        x, g, r = ctx.saved_tensors
        x, d = x.float(), dy.float() * g.float()
        dx = r * (d - x * r * r * (d * x).mean(-1, keepdim=True))
        return dx.to(dy.dtype), (dy.float() * x * r).sum(0).to(g.dtype), None


class RmsTwice(Rms):
    @staticmethod
    def backward(ctx, dy):
        dx, dg, _ = Rms.backward(ctx, dy)
        return 2 * dx, dg, None


class LayerNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        mean = x.mean(-1, keepdim=True)
        rstd = torch.rsqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5)
        xhat = (x - mean) * rstd
        ctx.save_for_backward(xhat, rstd, weight)
        return xhat * weight + bias

    @staticmethod
    def backward(ctx, dy):
        xhat, rstd, weight = ctx.saved_tensors
        d = dy * weight
        dx = rstd * (d - d.mean(-1, keepdim=True) - xhat * (d * xhat).mean(-1, keepdim=True))
        return dx, (dy * xhat).sum(0), dy.sum(0)


class LayerNormNoMean(LayerNorm):
    @staticmethod
    def backward(ctx, dy):
        xhat, rstd, weight = ctx.saved_tensors
        d = dy * weight
        return rstd * (d - xhat * (d * xhat).mean(-1, keepdim=True)), (dy * xhat).sum(0), dy.sum(0)


class Softmax(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.softmax(x, -1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return y * (dy - (dy * y).sum(-1, keepdim=True))


class SoftmaxDiagonal(Softmax):
    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return y * (1 - y) * dy


class Embedding(Function):
    @staticmethod
    def forward(ctx, ids, table):
        ctx.save_for_backward(ids)
        ctx.rows = table.shape[0]
        return table[ids]

    @staticmethod
    def backward(ctx, dy):
        (ids,) = ctx.saved_tensors
        return None, dy.new_zeros(ctx.rows, dy.shape[-1]).index_add(0, ids, dy)


class EmbeddingOverwritten(Embedding):
    @staticmethod
    def backward(ctx, dy):
        (ids,) = ctx.saved_tensors
        table = dy.new_zeros(ctx.rows, dy.shape[-1])
        table[ids] = dy
        return None, table


class CrossEntropy(Function):
    """The gradient is computed in the forward, as fused kernels do it."""

    @staticmethod
    def forward(ctx, logits, labels):
        p = torch.softmax(logits, -1)
        n = torch.arange(len(labels), device=labels.device)
        d = p.clone()
        d[n, labels] -= 1
        ctx.save_for_backward(d / len(labels))
        return -torch.log_softmax(logits, -1)[n, labels].mean()

    @staticmethod
    def backward(ctx, dy):
        (d,) = ctx.saved_tensors
        return d * dy, None


class CrossEntropyNoDy(CrossEntropy):
    @staticmethod
    def backward(ctx, dy):
        return ctx.saved_tensors[0], None


class Scale(Function):
    """x times the vector w, the base of the edges below."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy * w, (dy * x).sum(0)


class ScaleByMemory(Scale):
    """A kernel that takes x as if it were contiguous."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        flat = torch.as_strided(x, x.shape, (x.shape[1], 1)) if x.stride(0) else x
        return flat * w


class ScaleDyByMemory(Scale):
    """A backward kernel that takes dy as if it were contiguous."""

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy = dy.view(-1).view(dy.shape)
        return dy * w, (dy * x).sum(0)


class ScaleOverwritesX(Scale):
    @staticmethod
    def forward(ctx, x, w):
        y = x * w
        ctx.save_for_backward(x.clone(), w)
        x.data.zero_()
        return y


class ScaleOverwritesDy(Scale):
    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dw = (dy * x).sum(0)
        return dy.mul_(w), dw


class ScaleNone(Scale):
    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[1], None


class ScaleOneTooFew(Scale):
    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.saved_tensors[1]


class ScaleWrongShape(Scale):
    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy * w, (dy * x).T


class ScaleInAnyOrder(Scale):
    """Sums in another order each time, as atomics do."""

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dw = torch.zeros_like(w)
        for i in torch.randperm(len(x)).tolist():
            dw += dy[i] * x[i]
        return dy * w, dw


class ScaleAtRandom(Scale):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w * (1 + 0.1 * torch.rand(()))


class ScaleForBothAlone(Scale):
    """Right for both arguments together, wrong where x alone asks."""

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return dy, None
        return dy * w, (dy * x).sum(0)


class ScaleInFloat32(Scale):
    """A kernel that takes float32 alone."""

    @staticmethod
    def forward(ctx, x, w):
        if x.dtype != torch.float32:
            raise TypeError(f"the kernel takes float32, not {x.dtype}")
        return Scale.forward(ctx, x, w)


class ScaleInHalf(Scale):
    """A kernel that takes bfloat16 alone; its sum is accumulated in it."""

    @staticmethod
    def forward(ctx, x, w):
        if x.dtype != torch.bfloat16:
            raise TypeError(f"the kernel takes bfloat16, not {x.dtype}")
        return Scale.forward(ctx, x, w)

    factor = 1.0

    @classmethod
    def of(cls, factor):
        class Other(cls):
            @staticmethod
            def backward(ctx, dy):
                x, w = ctx.saved_tensors
                return dy * w * factor, (dy.float() * x.float()).sum(0).to(w.dtype)

        return Other


def scale_naive(x, w):
    return x * w


def rms(x, g, eps=1e-6):
    return Rms.apply(x, g, eps)


def look_up(ids, table):
    return Embedding.apply(ids, table)


class Maximum(Function):
    """Ties go to the first, where autograd's `amax` shares them."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        y, at = x.max(-1)
        ctx.save_for_backward(at)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx, dy):
        (at,) = ctx.saved_tensors
        return dy.new_zeros(ctx.shape).scatter(-1, at[..., None], dy[..., None])


class MaximumOfAll(Maximum):
    """Every one of several that are tied gets the whole."""

    @staticmethod
    def forward(ctx, x):
        y = x.amax(-1)
        ctx.save_for_backward(x == y[..., None])
        return y

    @staticmethod
    def backward(ctx, dy):
        (tied,) = ctx.saved_tensors
        return tied * dy[..., None]


def lookup(gradient):
    """The rows of a table that ids name, of which `gradient(ids, dy, shape)` is the table's."""

    class Lookup(Function):
        @staticmethod
        def forward(ctx, table, ids):
            ctx.save_for_backward(ids)
            ctx.shape = table.shape
            return table[ids]

        @staticmethod
        def backward(ctx, dy):
            return gradient(*ctx.saved_tensors, dy, ctx.shape), None

    return Lookup.apply


class Recomputed(Function):
    @staticmethod
    def forward(ctx, module, x, weight):
        ctx.module = module
        ctx.save_for_backward(x, weight)
        with torch.no_grad():
            return module.plain(x)

    @staticmethod
    def backward(ctx, dy):
        x, _ = ctx.saved_tensors
        # dx by the module's own weight, as one reads it that runs the forward again.
        return None, dy * ctx.module.weight, (dy * x).sum(0)


class Recomputing(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())

    def plain(self, x):
        return x * self.weight

    def forward(self, x):
        return Recomputed.apply(self, x, self.weight)
