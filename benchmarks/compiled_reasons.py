"""Why a rule, or a model, takes more by hand on a TPU or a GPU than by autodiff of its forward, where it does."""

_ONE_PROGRAM = (
    "Forward and backward are one program here, in which XLA makes the output anew from x inside of autodiff's "
    "backward, by one kernel. A backward by itself takes the same bytes both ways"
)
_ON_CHIP = (
    "The logits are made again, twice the flops, so that they need no memory. At this length they would have stayed on "
    "the chip: 128 MB of it"
)
_OPEN = "Not looked into yet"

REASONS: dict[str, str] = {
    "softmax": _ONE_PROGRAM,
    "gumbel_softmax": _ONE_PROGRAM,
    "rms_norm": "XLA writes what dgamma sums beside y and dx, in one operation that reads x and dy once: less traffic, "
    "and one array more",
    "weight_norm_linear": "The parts of a product that was split are added up twice, by two operations, where "
    "autodiff's second one reads the first one's sum",
    "qr": "Q enters two products, which XLA makes one of twice the width, and takes apart again",
    "eigh": "One more array of the size of the matrices is alive, at fewer bytes accessed",
    "dot_product_attention": "On the H100 dy V^T is scheduled before the forward is done, since both are one program "
    "here: one more array of the logits' size is alive, at fewer bytes accessed",
    "multi_head_attention": "It has the attention of `dot_product_attention`",
    "attention_with_log_sum_exp": _ON_CHIP,
    "blockwise_attention": _ON_CHIP,
    "latent_attention": _ON_CHIP,
    **dict.fromkeys(
        (
            "cholesky", "crf", "ctc", "grouped_matmul", "info_nce", "lenet",
            "matrix_exponential", "qk_norm", "reduce_prod",
            "resize", "selective_scan", "spectral_norm_linear", "wasserstein_critic",
        ),
        _OPEN,
    ),
}  # fmt: skip
"""By name. A test holds them to be those that the figures show, no more and no fewer."""
