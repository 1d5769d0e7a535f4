"""Arguments elsewhere: what a rule's hyperparameters are called in other libraries, each pair tried by a test.

On the left the rule's arguments, on the right the call that computes the same of x and p, as of `docs.elsewhere`.
"""

import html

from docs import mistakes
from docs.elsewhere import library

ARGUMENTS: dict[str, dict[str, str]] = {
    "embedding": {"8, 4, padding=0": "F.embedding(x, p.W, padding_idx=0)"},
    "embedding_bag": {
        "8, 4, mean=True": 'F.embedding_bag(x, p.W, mode="mean")',
        "8, 4, maximum=True": 'F.embedding_bag(x, p.W, mode="max")',
        "8, 4, padding=0": 'F.embedding_bag(x, p.W, mode="sum", padding_idx=0)',
    },
    "linear": {"4, bias=False": "F.linear(x, p.W)"},
    "convolution": {
        "4, stride=2, padding=1": (
            "F.conv2d(x.movedim(-1, 1), p.W.movedim(-1, 1), p.b, stride=2, padding=1).movedim(1, -1)"
        ),
        '4, dilation=2, padding="same"': (
            'F.conv2d(x.movedim(-1, 1), p.W.movedim(-1, 1), p.b, dilation=2, padding="same").movedim(1, -1)'
        ),
        "4, groups=2, padding=0": "F.conv2d(x.movedim(-1, 1), p.W.movedim(-1, 1), p.b, groups=2).movedim(1, -1)",
    },
    "average_pool": {
        "(3, 3), stride=1": "F.avg_pool2d(x.movedim(-1, 1), 3, stride=1).movedim(1, -1)",
        "(2, 2), padding=1, count_padding=False": (
            "F.avg_pool2d(x.movedim(-1, 1), 2, padding=1, count_include_pad=False).movedim(1, -1)"
        ),
        "(3, 3), divisor=2": "F.avg_pool2d(x.movedim(-1, 1), 3, divisor_override=2).movedim(1, -1)",
        "(3, 3), stride=2, ceil=True": "F.avg_pool2d(x.movedim(-1, 1), 3, 2, ceil_mode=True).movedim(1, -1)",
    },
    "max_pool": {
        "(2, 2), stride=1, dilation=2": "F.max_pool2d(x.movedim(-1, 1), 2, stride=1, dilation=2).movedim(1, -1)",
        "(2, 2), padding=1": "F.max_pool2d(x.movedim(-1, 1), 2, padding=1).movedim(1, -1)",
        "(2, 2), stride=3, ceil=True": "F.max_pool2d(x.movedim(-1, 1), 2, 3, ceil_mode=True).movedim(1, -1)",
    },
    "adaptive_pool": {'(2, 2), kind="max"': "F.adaptive_max_pool2d(x.movedim(-1, 1), 2).movedim(1, -1)"},
    "flatten": {"1, 2": "torch.flatten(x, 1, 2)"},
    "grid_sample": {
        "align_corners=True": "F.grid_sample(x[0].movedim(-1, 1), x[1], align_corners=True).movedim(1, -1)",
        'padding="border"': (
            'F.grid_sample(x[0].movedim(-1, 1), x[1], padding_mode="border", align_corners=False).movedim(1, -1)'
        ),
        'padding="reflection"': (
            'F.grid_sample(x[0].movedim(-1, 1), x[1], padding_mode="reflection", align_corners=False).movedim(1, -1)'
        ),
        'method="bicubic"': (
            'F.grid_sample(x[0].movedim(-1, 1), x[1], mode="bicubic", align_corners=False).movedim(1, -1)'
        ),
    },
    "pad": {
        '((0, 0), (1, 2), (0, 0), (0, 0)), mode="reflect"': (
            'jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), mode="reflect")'
        ),
        '((0, 0), (1, 2), (0, 0), (0, 0)), mode="edge"': 'jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), mode="edge")',
    },
    "resize": {
        '7, 5, "nearest"': 'F.interpolate(x.movedim(-1, 1), (7, 5), mode="nearest-exact").movedim(1, -1)',
        "7, 5, align_corners=True": (
            'F.interpolate(x.movedim(-1, 1), (7, 5), mode="bilinear", align_corners=True).movedim(1, -1)'
        ),
        "sizes=(7, 5)": 'F.interpolate(x.movedim(-1, 1), (7, 5), mode="bilinear").movedim(1, -1)',
        "3, 2, antialias=True": 'jax.image.resize(x, (4, 3, 2, 4), "bilinear")',
    },
    "gather": {"axis=1": "torch.index_select(x[0], 1, x[1])"},
    "scatter_add": {"axis=1": "torch.index_add(x[0], 1, x[1], x[2])"},
    "scatter_along_axis": {
        'reduce="max"': 'torch.scatter_reduce(x[0], -1, x[1], x[2], "amax")',
        "include_data=False": 'torch.scatter_reduce(x[0], -1, x[1], x[2], "sum", include_self=False)',
    },
    "segment_sum": {"4, axis=1": "jax.vmap(lambda v: jax.ops.segment_sum(v, x[1], 4))(x[0])"},
    "sort": {
        "axis=0": "torch.sort(x, 0).values",
        "descending=True": "torch.sort(x, descending=True).values",
        "with_indices=True": "torch.sort(x)",
    },
    "take_along_axis": {"axis=0": "torch.gather(x[0], 0, x[1])"},
    "top_k": {"3, axis=0": "torch.topk(x, 3, dim=0)", "3, smallest=True": "torch.topk(x, 3, largest=False)"},
    "cumulative_sum": {
        "axis=0": "torch.cumsum(x, 0)",
        "reverse=True": "jax.lax.cumsum(x, axis=1, reverse=True)",
    },
    "cumulative_product": {"axis=0": "torch.cumprod(x, 0)"},
    "cumulative_logsumexp": {"axis=0": "torch.logcumsumexp(x, 0)"},
    "batch_norm": {
        "training=False": "F.batch_norm(x, p.mean, p.var, p.scale, p.shift)",
        "eps=0.1": "F.batch_norm(x, None, None, p.scale, p.shift, training=True, eps=0.1)",
    },
    "group_norm": {
        "2": "F.group_norm(x.movedim(-1, 1), 2, p.scale, p.shift).movedim(1, -1)",
        "None, scale=False, shift=False": "F.instance_norm(x.movedim(-1, 1)).movedim(1, -1)",
    },
    "layer_norm": {
        "eps=0.1": "F.layer_norm(x, x.shape[-1:], p.scale, p.shift, eps=0.1)",
        "scale=False, shift=False": "F.layer_norm(x, x.shape[-1:])",
    },
    "rms_norm": {"eps=0.1": "F.rms_norm(x, x.shape[-1:], p.scale, eps=0.1)"},
    "l2_normalize": {
        "axis=0": "F.normalize(x, dim=0)",
        "p=1": "F.normalize(x, 1, dim=-1)",
        'p=float("inf")': 'F.normalize(x, float("inf"), dim=-1)',
    },
    "logsumexp": {"axis=0, keepdims=True": "torch.logsumexp(x, 0, keepdim=True)"},
    "reduce_max": {
        "axis=0, keepdims=True": "torch.amax(x, 0, keepdim=True)",
        "axis=-1, minimum=True": "torch.amin(x, -1)",
        "axis=-1, with_indices=True": "torch.max(x, -1)",
    },
    "reduce_sum": {"axis=0, mean=True": "torch.mean(x, 0)"},
    "variance": {
        "axis=-1, ddof=1": "torch.var(x, -1, correction=1)",
        "axis=-1, root=True": "torch.std(x, -1, correction=0)",
    },
    "vector_norm": {
        "1, axis=-1": "torch.linalg.vector_norm(x, 1, dim=-1)",
        'float("inf"), axis=-1': 'torch.linalg.vector_norm(x, float("inf"), dim=-1)',
    },
    "celu": {"alpha=0.5": "F.celu(x, alpha=0.5)"},
    "elu": {"alpha=0.5": "F.elu(x, alpha=0.5)"},
    "gelu": {"approximate=False": 'F.gelu(x, approximate="none")'},
    "glu": {'gate="silu"': "x[..., :6] * F.silu(x[..., 6:])"},
    "hard_shrink": {"size=1.0": "F.hardshrink(x, lambd=1.0)"},
    "soft_shrink": {"size=1.0": "F.softshrink(x, lambd=1.0)"},
    "hard_tanh": {"low=-0.5, high=2.0": "F.hardtanh(x, min_val=-0.5, max_val=2.0)"},
    "leaky_relu": {"negative_slope=0.2": "F.leaky_relu(x, negative_slope=0.2)"},
    "softmax": {"axis=0": "F.softmax(x, dim=0)"},
    "log_softmax": {"axis=0": "F.log_softmax(x, dim=0)"},
    "softplus": {"beta=2.0, threshold=1.0": "F.softplus(x, beta=2.0, threshold=1.0)"},
    "threshold": {"bound=1.0, value=-3.0": "F.threshold(x, threshold=1.0, value=-3.0)"},
    "fft": {
        "axes=(-2, -1)": "torch.fft.fft2(x)",
        "inverse=True": "torch.fft.ifft(x)",
        "lengths=(8,)": "torch.fft.fft(x, 8)",
        'norm="ortho"': 'torch.fft.fft(x, norm="ortho")',
    },
    "matrix_norm": {'"nuc"': 'torch.linalg.matrix_norm(x, "nuc")', "2": "torch.linalg.matrix_norm(x, 2)"},
    "pseudo_inverse": {
        "rtol=0.1": "torch.linalg.pinv(x, rtol=0.1)",
        "atol=0.1": "torch.linalg.pinv(x, atol=0.1)",
        "hermitian=True": "torch.linalg.pinv((x + x.mT) / 2, hermitian=True)",
    },
    "qr": {'mode="r"': 'torch.linalg.qr(x, mode="r").R'},
    "triangular_solve": {
        "lower=True": "torch.linalg.solve_triangular(*x, upper=False)",
        "unit_diagonal=True": "torch.linalg.solve_triangular(*x, upper=True, unitriangular=True)",
    },
    "dot_product_attention": {
        "": "F.scaled_dot_product_attention(*(v.transpose(1, 2) for v in x[:3]), enable_gqa=True).transpose(1, 2)",
        "scale=0.25": "jax.nn.dot_product_attention(x.q, x.k, x.v, scale=0.25)",
        "causal=True, window=2": (
            "jax.nn.dot_product_attention(x.q, x.k, x.v, is_causal=True, local_window_size=(1, 0))"
        ),
    },
    "absolute": {
        'reduction="sum"': 'F.l1_loss(*x, reduction="sum")',
        'reduction="none"': 'F.l1_loss(*x, reduction="none")',
    },
    "square": {'reduction="sum"': 'F.mse_loss(*x, reduction="sum") / 2'},
    "huber": {
        "delta=0.5": "F.huber_loss(*x, delta=0.5)",
        "delta=0.5, per_delta=True": "F.smooth_l1_loss(*x, beta=0.5)",
    },
    "cosine_embedding": {'reduction="sum"': "(1 - F.cosine_similarity(*x)).sum()"},
    "gaussian": {"full=True": "F.gaussian_nll_loss(x[0][0], x[1], x[0][1].exp(), full=True)"},
    "poisson": {"full=True": "F.poisson_nll_loss(*x, full=True)"},
    "kl_divergence": {
        'reduction="none"': 'F.kl_div(*x, reduction="none").sum(-1)',
        "log_target=True": 'F.kl_div(*x, log_target=True, reduction="batchmean")',
    },
    "hinge_embedding": {"margin=2.0": "F.hinge_embedding_loss(x[0], torch.where(x[1] > 0, 1, -1), margin=2.0)"},
    "margin_ranking": {"margin=0.5": "F.margin_ranking_loss(x[0], x[1], torch.where(x[2] > 0, 1, -1), margin=0.5)"},
    "multiclass_hinge": {
        "margin=0.5": "F.multi_margin_loss(*x, margin=0.5)",
        "squared=True": "F.multi_margin_loss(*x, p=2)",
        "class_weights=[1.0, 2.0, 0.5, 1.0]": "F.multi_margin_loss(*x, weight=torch.tensor([1.0, 2.0, 0.5, 1.0]))",
    },
    "negative_log_likelihood": {
        "ignored=1": "F.nll_loss(*x, ignore_index=1)",
        "class_weights=[1.0, 2.0, 0.5, 1.0]": "F.nll_loss(*x, weight=torch.tensor([1.0, 2.0, 0.5, 1.0]))",
    },
    "sigmoid_cross_entropy": {
        "positive_weight=3.0": ("F.binary_cross_entropy_with_logits(x[0], x[1].float(), pos_weight=torch.tensor(3.0))"),
        'reduction="none"': 'F.binary_cross_entropy_with_logits(x[0], x[1].float(), reduction="none")',
    },
    "softmax_cross_entropy": {
        "smoothing=0.1": "F.cross_entropy(*x, label_smoothing=0.1)",
        "ignored=1": "F.cross_entropy(*x, ignore_index=1)",
        "class_weights=[1.0, 2.0, 0.5, 1.0]": "F.cross_entropy(*x, weight=torch.tensor([1.0, 2.0, 0.5, 1.0]))",
        'reduction="none"': 'F.cross_entropy(*x, reduction="none")',
    },
    "soft_margin": {'reduction="sum"': 'F.soft_margin_loss(x[0], torch.where(x[1] > 0, 1, -1), reduction="sum")'},
    "triplet": {
        'margin=0.5, reduction="sum"': 'F.triplet_margin_loss(*x, margin=0.5, eps=0.0, reduction="sum")',
        "swap=True, eps=1e-6": "F.triplet_margin_loss(*x, swap=True)",
    },
    "fused_linear_cross_entropy": {
        "4, smoothing=0.1": "F.cross_entropy(F.linear(x[0], p.W), x[1], label_smoothing=0.1)",
        "4, bias=True, ignored=1": "F.cross_entropy(F.linear(x[0], p.W, p.b), x[1], ignore_index=1)",
        "4, class_weights=[1.0, 2.0, 0.5, 1.0]": (
            "F.cross_entropy(F.linear(x[0], p.W), x[1], weight=torch.tensor([1.0, 2.0, 0.5, 1.0]))"
        ),
    },
}


def to_page(name: str) -> str:
    """A table of the arguments here and the calls there; nothing where none is known."""
    rows = "".join(
        mistakes.row(
            f"<code>{html.escape(f'{name}({ours})')}</code>", library(call), f"<code>{html.escape(call)}</code>"
        )
        for ours, call in ARGUMENTS.get(name, {}).items()
    )
    return mistakes.table(("with other arguments", "library", "there"), rows) if rows else ""
