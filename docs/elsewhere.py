"""Equal functions elsewhere: calls of other libraries that compute what a rule computes, each tried by a test.

An expression is of x and p, the input and params of the rule's program on its page; F is `torch.nn.functional`.
"""

import html
import re

from docs import mistakes

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "bilinear": ("F.bilinear(*x, p.W, p.b)",),
    "einsum": ('torch.einsum("bqhd,bkhd->bhqk", *x)', 'jnp.einsum("bqhd,bkhd->bhqk", *x)'),
    "embedding": ("F.embedding(x, p.W)", "jnp.take(p.W, x, axis=0)"),
    "embedding_bag": ('F.embedding_bag(x, p.W, mode="sum")',),
    "linear": ("F.linear(x, p.W, p.b)",),
    "low_rank_linear": ("F.linear(x, p.W, p.b) + F.linear(F.linear(x, p.U), p.V) * 16 / 4",),
    "position_embedding": ("x + p.W",),
    "tied_embedding": ("F.linear(torch.tanh(F.embedding(x, p.W)), p.W)",),
    "weight_norm_linear": ("F.linear(x, torch._weight_norm(p.v, p.g[:, None], 0), p.b)",),
    "causal_convolution": ("F.conv1d(F.pad(x.mT, (4, 0)), p.W.mT, p.b, dilation=4).mT",),
    "convolution": (
        'jax.lax.conv_general_dilated(x, p.W, (2, 2), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC")) + p.b',
    ),
    "transposed_convolution": (
        "F.conv_transpose2d(x.movedim(-1, 1), p.W.permute(0, 3, 1, 2), p.b, stride=2)[..., :8, :8].movedim(1, -1)",
    ),
    "adaptive_pool": ("F.adaptive_avg_pool2d(x.movedim(-1, 1), (7, 7)).movedim(1, -1)",),
    "average_pool": (
        "F.avg_pool2d(x.movedim(-1, 1), 2).movedim(1, -1)",
        "flax.linen.avg_pool(x, (2, 2), strides=(2, 2))",
    ),
    "global_pool": ("torch.mean(x, (1, 2))", "jnp.mean(x, axis=(1, 2))"),
    "max_pool": (
        "F.max_pool2d(x.movedim(-1, 1), 2).movedim(1, -1)",
        "flax.linen.max_pool(x, (2, 2), strides=(2, 2))",
    ),
    "flatten": ("torch.flatten(x, 1)", "x.reshape(len(x), -1)"),
    "grid_sample": ("F.grid_sample(x[0].movedim(-1, 1), x[1], align_corners=False).movedim(1, -1)",),
    "pad": ("jnp.pad(x, ((0, 0), (1, 2), (3, 0), (0, 1)), constant_values=1.5)",),
    "pixel_shuffle": ("F.pixel_shuffle(x.movedim(-1, 1), 2).movedim(1, -1)",),
    "resize": ('F.interpolate(x.movedim(-1, 1), (4, 4), mode="bilinear").movedim(1, -1)',),
    "gather": ("torch.index_select(x[0], 0, x[1])", "jnp.take(x[0], x[1], axis=0)"),
    "scatter_add": ("torch.index_add(x[0], 0, x[1], x[2])", "x[0].at[x[1]].add(x[2])"),
    "scatter_along_axis": ("torch.scatter_add(x[0], -1, x[1], x[2])",),
    "segment_max": ("jax.ops.segment_max(x[0], x[1], 4)",),
    "segment_prod": ("jax.ops.segment_prod(x[0], x[1], 4)",),
    "segment_sum": ("jax.ops.segment_sum(x[0], x[1], 4)",),
    "sort": ("torch.sort(x).values", "jnp.sort(x)"),
    "take_along_axis": ("torch.gather(x[0], -1, x[1])", "jnp.take_along_axis(*x, axis=-1)"),
    "top_k": ("torch.topk(x, 3)", "jax.lax.top_k(x, 3)"),
    "cumulative_logsumexp": ("torch.logcumsumexp(x, -1)", "jax.lax.cumlogsumexp(x, axis=1)"),
    "cumulative_product": ("torch.cumprod(x, -1)", "jnp.cumprod(x, -1)"),
    "cumulative_sum": ("torch.cumsum(x, -1)", "jnp.cumsum(x, -1)"),
    "batch_norm": ("F.batch_norm(x, None, None, p.scale, p.shift, training=True)",),
    "dynamic_tanh": ("p.scale * torch.tanh(p.alpha * x) + p.shift",),
    "group_norm": ("F.group_norm(x.movedim(-1, 1), 3, p.scale, p.shift).movedim(1, -1)",),
    "l2_normalize": ("F.normalize(x, dim=-1)", "x / jnp.linalg.norm(x, axis=-1, keepdims=True)"),
    "layer_norm": (
        "F.layer_norm(x, x.shape[-1:], p.scale, p.shift)",
        "jax.nn.standardize(x, epsilon=1e-5) * p.scale + p.shift",
    ),
    "layer_scale": ("x * p.scale",),
    "gated_rms_norm": ("F.rms_norm(x[0], x[0].shape[-1:], p.scale, eps=1e-6) * F.silu(x[1])",),
    "add_norm": ("(F.rms_norm(x[0] + x[1], x[0].shape[-1:], p.scale, eps=1e-6), x[0] + x[1])",),
    "adaptive_norm": (
        "F.layer_norm(x[0], x[0].shape[-1:], eps=1e-6) * (1 + x[1][:, None]) + x[2][:, None]",
        "jax.nn.standardize(x[0], epsilon=1e-6) * (1 + x[1][:, None]) + x[2][:, None]",
    ),
    "rms_norm": ("F.rms_norm(x, x.shape[-1:], p.scale, eps=1e-6)",),
    "qk_norm": ("tuple(F.rms_norm(v, v.shape[-1:], scale, eps=1e-6) for v, scale in zip(x, p))",),
    "weight_standardization": ("F.linear(x, F.layer_norm(p.W, p.W.shape[1:]), p.b)",),
    "fan_in": ("x[0] + x[1] + x[2]",),
    "logsumexp": ("torch.logsumexp(x, -1)", "jax.nn.logsumexp(x, axis=-1)"),
    "reduce_max": ("torch.amax(x, -1)", "jnp.max(x, -1)"),
    "reduce_prod": ("torch.prod(x, -1)", "jnp.prod(x, -1)"),
    "reduce_sum": ("torch.sum(x, -1)", "jnp.sum(x, -1)"),
    "variance": ("torch.var(x, -1, correction=0)", "jnp.var(x, -1)"),
    "vector_norm": ("torch.linalg.vector_norm(x, dim=-1)", "jnp.linalg.norm(x, axis=-1)"),
    "celu": ("F.celu(x)", "jax.nn.celu(x)"),
    "elu": ("F.elu(x)", "jax.nn.elu(x)"),
    "gelu": ('F.gelu(x, approximate="tanh")', "jax.nn.gelu(x)"),
    "glu": ("x[..., :6] * F.sigmoid(x[..., 6:])", "jax.nn.glu(x)"),
    "hard_shrink": ("F.hardshrink(x)",),
    "hard_sigmoid": ("F.hardsigmoid(x)", "jax.nn.hard_sigmoid(x)"),
    "hard_swish": ("F.hardswish(x)", "jax.nn.hard_swish(x)"),
    "hard_tanh": ("F.hardtanh(x)", "jax.nn.hard_tanh(x)"),
    "identity": ("torch.nn.Identity()(x)", "jax.nn.identity(x)"),
    "leaky_relu": ("F.leaky_relu(x)", "jax.nn.leaky_relu(x)"),
    "log_sigmoid": ("F.logsigmoid(x)", "jax.nn.log_sigmoid(x)"),
    "log_softmax": ("F.log_softmax(x, -1)", "jax.nn.log_softmax(x)"),
    "maxout": ("torch.amax(x.unflatten(-1, (2, 6)), -2)",),
    "mish": ("F.mish(x)", "jax.nn.mish(x)"),
    "prelu": ("F.prelu(x, p.a[None])", "jnp.where(x >= 0, x, p.a * x)"),
    "relu": ("F.relu(x)", "jax.nn.relu(x)"),
    "relu6": ("F.relu6(x)", "jax.nn.relu6(x)"),
    "selu": ("F.selu(x)", "jax.nn.selu(x)"),
    "sigmoid": ("torch.sigmoid(x)", "jax.nn.sigmoid(x)"),
    "silu": ("F.silu(x)", "jax.nn.silu(x)"),
    "soft_cap": ("30 * torch.tanh(x / 30)", "30 * jnp.tanh(x / 30)"),
    "softmax": ("F.softmax(x, -1)", "jax.nn.softmax(x)"),
    "soft_shrink": ("F.softshrink(x)",),
    "softmin": ("F.softmin(x, -1)", "jax.nn.softmax(-x)"),
    "softplus": ("F.softplus(x)", "jax.nn.softplus(x)"),
    "softsign": ("F.softsign(x)", "jax.nn.soft_sign(x)"),
    "sparsemax": ("jax.vmap(optax.projections.projection_simplex)(x)",),
    "squared_relu": ("F.relu(x) ** 2", "jax.nn.relu(x) ** 2"),
    "tanh": ("torch.tanh(x)", "jnp.tanh(x)"),
    "tanh_shrink": ("F.tanhshrink(x)", "x - jnp.tanh(x)"),
    "threshold": ("F.threshold(x, 0.5, -2.0)",),
    "cholesky": ("torch.linalg.cholesky(x)", "jnp.linalg.cholesky(x)"),
    "conjugate_gradient": (
        "torch.linalg.solve((x[0] + x[0].mT) / 2, x[1])",
        "jax.scipy.sparse.linalg.cg(lambda v: (x[0] + x[0].mT) @ v / 2, x[1], tol=1e-7)[0]",
    ),
    "determinant": ("torch.linalg.det(x)", "jnp.linalg.det(x)"),
    "fft": ("torch.fft.fft(x)", "jnp.fft.fft(x)"),
    "inverse": ("torch.linalg.inv(x)", "jnp.linalg.inv(x)"),
    "least_squares": ("torch.linalg.lstsq(*x).solution",),
    "log_determinant": ("torch.linalg.slogdet(x)", "jnp.linalg.slogdet(x)"),
    "matrix_exponential": ("torch.linalg.matrix_exp(x)", "jax.scipy.linalg.expm(x)"),
    "matrix_norm": ("torch.linalg.matrix_norm(x)", 'jnp.linalg.norm(x, "fro", (-2, -1))'),
    "pseudo_inverse": ("torch.linalg.pinv(x)", "jnp.linalg.pinv(x)"),
    "qr": ("torch.linalg.qr(x)", "jnp.linalg.qr(x)"),
    "real_fft": ("torch.fft.rfft(x)", "jnp.fft.rfft(x)"),
    "solve": ("torch.linalg.solve(*x)", "jnp.linalg.solve(*x)"),
    "triangular_solve": (
        "torch.linalg.solve_triangular(*x, upper=True)",
        "jax.scipy.linalg.solve_triangular(*x)",
    ),
    "blockwise_attention": ("jax.nn.dot_product_attention(x.q, x.k, x.v, is_causal=True)",),
    "dot_product_attention": (
        "F.scaled_dot_product_attention(*(v.transpose(1, 2) for v in x[:3]), is_causal=True, enable_gqa=True)"
        ".transpose(1, 2)",
        "jax.nn.dot_product_attention(x.q, x.k, x.v, is_causal=True)",
    ),
    "merge_attention": (
        "(torch.sigmoid(x[0][1] - x[1][1])[..., None] * (x[0][0] - x[1][0]) + x[1][0],"
        " torch.logaddexp(x[0][1], x[1][1]))",
    ),
    "gru": (
        "(out := torch.func.functional_call(torch.nn.GRU(4, 4, batch_first=True), {'weight_ih_l0': p.W,"
        " 'weight_hh_l0': p.U, 'bias_ih_l0': p.b, 'bias_hh_l0': F.pad(p.v, (8, 0))}, x))[0], out[1][0]",
    ),
    "lstm": (
        "(out := torch.func.functional_call(torch.nn.LSTM(4, 4, batch_first=True), {'weight_ih_l0': p.W,"
        " 'weight_hh_l0': p.U, 'bias_ih_l0': p.b, 'bias_hh_l0': 0 * p.b}, x))[0], [v[0] for v in out[1]]",
    ),
    "rnn": (
        "(out := torch.func.functional_call(torch.nn.RNN(4, 4, batch_first=True), {'weight_ih_l0': p.W,"
        " 'weight_hh_l0': p.U, 'bias_ih_l0': p.b, 'bias_hh_l0': 0 * p.b}, x))[0], out[1][0]",
    ),
    "linear_recurrence": ("jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), x, axis=1)[1]",),
    "grouped_matmul": ("jax.lax.ragged_dot(x[0], p.W.mT, x[1])",),
    "absolute": ("F.l1_loss(*x)", "jnp.mean(jnp.abs(x[0] - x[1]))"),
    "binary_cross_entropy": ("F.binary_cross_entropy(x[0], x[1].float())",),
    "chamfer": ("(torch.cdist(*x) ** 2).amin(-1).mean() + (torch.cdist(*x) ** 2).amin(-2).mean()",),
    "cosine_embedding": (
        "(1 - F.cosine_similarity(*x)).mean()",
        "optax.losses.cosine_distance(*x).mean()",
    ),
    "dice": ("1 - torch.mean((2 * (x[0] * x[1]).sum(-1) + 1) / (x[0].sum(-1) + x[1].sum(-1) + 1))",),
    "focal": ("optax.losses.sigmoid_focal_loss(*x).mean()",),
    "gaussian": ("F.gaussian_nll_loss(x[0][0], x[1], x[0][1].exp())",),
    "hinge": ("optax.losses.hinge_loss(x[0], jnp.where(x[1] > 0, 1, -1)).mean()",),
    "hinge_embedding": ("F.hinge_embedding_loss(x[0], torch.where(x[1] > 0, 1, -1))",),
    "huber": ("F.huber_loss(*x)", "optax.losses.huber_loss(*x).mean()"),
    "info_nce": (
        "(F.cross_entropy(z := F.normalize(x[0]) @ F.normalize(x[1]).mT / 0.1, torch.arange(4))"
        " + F.cross_entropy(z.mT, torch.arange(4))) / 2",
    ),
    "kl_divergence": ('F.kl_div(*x, reduction="batchmean")', "optax.losses.kl_divergence(*x).mean()"),
    "log_cosh": ("optax.losses.log_cosh(*x).mean()",),
    "margin_ranking": ("F.margin_ranking_loss(x[0], x[1], torch.where(x[2] > 0, 1, -1), margin=1.0)",),
    "multiclass_hinge": ("F.multi_margin_loss(*x)",),
    "negative_log_likelihood": ("F.nll_loss(*x)",),
    "nt_xent": ("optax.losses.ntxent(jnp.concatenate(x), jnp.tile(jnp.arange(4), 2), temperature=0.5)",),
    "poisson": ("F.poisson_nll_loss(*x)",),
    "quantile": ("torch.maximum(0.9 * (x[1] - x[0]), 0.1 * (x[0] - x[1])).mean()",),
    "sigmoid_cross_entropy": (
        "F.binary_cross_entropy_with_logits(x[0], x[1].float())",
        "optax.losses.sigmoid_binary_cross_entropy(*x).mean()",
    ),
    "soft_margin": ("F.soft_margin_loss(x[0], torch.where(x[1] > 0, 1, -1))",),
    "softmax_cross_entropy": (
        "F.cross_entropy(*x)",
        "optax.losses.softmax_cross_entropy_with_integer_labels(*x).mean()",
    ),
    "square": ("F.mse_loss(*x) / 2", "optax.losses.l2_loss(*x).mean()"),
    "total_variation": ("(F.softmax(x[0], -1) - F.softmax(x[1], -1)).abs().sum(-1).mean() / 2",),
    "triplet": ("F.triplet_margin_loss(*x, eps=0.0)", "optax.losses.triplet_margin_loss(*x, eps=0.0).mean()"),
    "ctc": (
        'F.ctc_loss(F.log_softmax(x[0], -1).transpose(0, 1), *x[1:], reduction="none")',
        "optax.losses.ctc_loss(x[0], jnp.arange(4) >= x[2][:, None], x[1], jnp.arange(4) >= x[3][:, None])",
    ),
    "distillation": (
        '2.8 * F.kl_div(F.log_softmax(x[0] / 2, -1), F.softmax(x[1] / 2, -1), reduction="batchmean")'
        " + 0.3 * F.cross_entropy(x[0], x[2])",
    ),
    "fused_linear_cross_entropy": ("F.cross_entropy(F.linear(x[0], p.W), x[1])",),
    "sequence_cross_entropy": (
        'sum(F.cross_entropy(z[:n], y[:n], reduction="sum") for z, y, n in zip(*x)) / x[2].sum()',
    ),
    "token_entropy": ("torch.distributions.Categorical(logits=x).entropy()",),
    "token_log_probability": (
        "jnp.take_along_axis(jax.nn.log_softmax(x[0]), x[1][..., None], -1)[..., 0]",
        "F.log_softmax(x[0], -1).gather(-1, x[1][..., None])[..., 0]",
    ),
}


def to_page(name: str) -> str:
    """A table of the calls, by library; nothing where none is known."""
    rows = "".join(_row(expression) for expression in ELSEWHERE.get(name, ()))
    return mistakes.table(("library", "of the x and params above"), rows) if rows else ""


def _row(expression: str) -> str:
    return mistakes.row(library(expression), f"<code>{html.escape(expression)}</code>")


def library(expression: str) -> str:
    """Whose call it is."""
    return next((of for mark, of in LIBRARIES.items() if re.search(rf"\b{mark}\.", expression)), "JAX")


LIBRARIES = {"F": "PyTorch", "torch": "PyTorch", "optax": "Optax", "flax": "Flax"}
"""By the name that a call begins with; the others are JAX's own."""
