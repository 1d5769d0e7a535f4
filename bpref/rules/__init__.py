"""RULES: every rule there is, by name. A new rule is one file, and one line here."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module

from bpref.nearest import nearest
from bpref.rule import Rule

KINDS: dict[str, tuple[str, ...]] = {
    "linear": (
        "bilinear",
        "einsum",
        "embedding",
        "embedding_bag",
        "linear",
        "low_rank_linear",
        "position_embedding",
        "spectral_norm_linear",
        "tied_embedding",
        "weight_norm_linear",
    ),
    "convolution": (
        "causal_convolution",
        "convolution",
        "correlation",
        "deformable_convolution",
        "transposed_convolution",
    ),
    "pooling": (
        "adaptive_pool",
        "average_pool",
        "global_pool",
        "max_pool",
    ),
    "geometry": (
        "flatten",
        "grid_sample",
        "pad",
        "pixel_shuffle",
        "resize",
        "roi_align",
    ),
    "rendering": (
        "alpha_compositing",
        "spherical_harmonics",
    ),
    "indexing": (
        "gather",
        "scatter_add",
        "scatter_along_axis",
        "segment_max",
        "segment_prod",
        "segment_sum",
        "sort",
        "take_along_axis",
        "top_k",
    ),
    "cumulative": (
        "cumulative_logsumexp",
        "cumulative_product",
        "cumulative_sum",
    ),
    "norm": (
        "adaptive_norm",
        "add_norm",
        "batch_norm",
        "dynamic_tanh",
        "gated_rms_norm",
        "group_norm",
        "l2_normalize",
        "layer_norm",
        "layer_scale",
        "qk_norm",
        "qk_norm_rope",
        "rms_norm",
        "weight_standardization",
    ),
    "reduction": (
        "fan_in",
        "logsumexp",
        "reduce_max",
        "reduce_prod",
        "reduce_sum",
        "variance",
        "vector_norm",
    ),
    "activation": (
        "celu",
        "elu",
        "gelu",
        "glu",
        "gumbel_softmax",
        "hard_shrink",
        "hard_sigmoid",
        "hard_swish",
        "hard_tanh",
        "identity",
        "leaky_relu",
        "log_sigmoid",
        "log_softmax",
        "maxout",
        "mish",
        "prelu",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "soft_cap",
        "soft_shrink",
        "softmax",
        "softmin",
        "softplus",
        "softsign",
        "sparsemax",
        "squared_relu",
        "tanh",
        "tanh_shrink",
        "threshold",
    ),
    "stochastic": (
        "drop_path",
        "dropout",
        "gaussian_noise",
        "reparameterization",
        "rrelu",
        "stochastic_rounding",
    ),
    "quantization": (
        "fp8_linear",
        "gradient_reversal",
        "learned_step_quantizer",
        "mxfp8_linear",
        "straight_through",
    ),
    "linear_algebra": (
        "cholesky",
        "conjugate_gradient",
        "determinant",
        "eig",
        "eigh",
        "fft",
        "hadamard",
        "inverse",
        "least_squares",
        "log_determinant",
        "matrix_exponential",
        "matrix_norm",
        "pseudo_inverse",
        "qr",
        "real_fft",
        "solve",
        "svd",
        "triangular_solve",
    ),
    "attention": (
        "attention_with_log_sum_exp",
        "axial_rotary_embedding",
        "block_sparse_attention",
        "blockwise_attention",
        "delta_product",
        "delta_rule",
        "dot_product_attention",
        "flex_attention",
        "forgetting_attention",
        "gated_linear_attention",
        "generalized_delta_rule",
        "kimi_delta_attention",
        "latent_attention",
        "linear_attention",
        "merge_attention",
        "multi_head_attention",
        "native_sparse_attention",
        "path_attention",
        "retention",
        "rotary_embedding",
        "top_k_block_attention",
    ),
    "recurrence": (
        "bidirectional",
        "gru",
        "lstm",
        "rnn",
    ),
    "state_space": (
        "linear_recurrence",
        "rg_lru",
        "selective_scan",
        "state_space_dual",
    ),
    "mixture": (
        "expert_permute",
        "expert_unpermute",
        "grouped_matmul",
        "mixture_of_experts",
        "sigmoid_router",
        "top_k_router",
    ),
    "loss": (
        "absolute",
        "binary_cross_entropy",
        "chamfer",
        "cosine_embedding",
        "dice",
        "focal",
        "gaussian",
        "hinge",
        "hinge_embedding",
        "huber",
        "info_nce",
        "jensen_shannon",
        "kl_divergence",
        "log_cosh",
        "margin_ranking",
        "multiclass_hinge",
        "multilabel_margin",
        "negative_log_likelihood",
        "negative_sampling",
        "nt_xent",
        "poisson",
        "quantile",
        "sigmoid_cross_entropy",
        "soft_margin",
        "softmax_cross_entropy",
        "square",
        "ssim",
        "total_variation",
        "triplet",
        "vae",
        "wasserstein_critic",
    ),
    "sequence_loss": (
        "crf",
        "ctc",
        "distillation",
        "fused_linear_cross_entropy",
        "fused_linear_distillation",
        "indexer_loss",
        "sequence_cross_entropy",
        "soft_dtw",
        "transducer",
    ),
    "preference_loss": (
        "answer_log_probability",
        "clipped_value",
        "cpo",
        "dpo",
        "fused_linear_log_probability",
        "fused_linear_policy_loss",
        "grpo",
        "gspo",
        "kto",
        "orpo",
        "ppo",
        "simpo",
        "token_entropy",
        "token_log_probability",
    ),
    "collective": (
        "column_parallel_linear",
        "expert_combine",
        "expert_dispatch",
        "ring_attention",
        "row_parallel_linear",
        "vocabulary_parallel_cross_entropy",
    ),
    "structure": (
        "tensor_product",
        "triangle_attention",
        "triangle_multiplication",
    ),
    "block": (
        "attention_block",
        "decoder_block",
        "hyper_connection",
        "hyper_merge",
        "lstm_block",
        "mamba_block",
        "mlp_block",
        "residual_convolution_block",
        "reversible_block",
        "transformer_block",
    ),
    "transport": (
        "sinkhorn",
        "transport_cost",
    ),
}
"""The names of the rules by kind: the rule NAME of a KIND is the file `KIND/NAME.py`."""

ON_ONE_DEVICE = tuple(name for kind, names in KINDS.items() if kind != "collective" for name in names)
"""Those without collectives, whose programs are those of one device."""

_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


class _Rules(Mapping[str, Rule]):
    """Rules by name; the file of each is read when it is asked for, so that the first name used costs one file."""

    def __getitem__(self, name: str) -> Rule:
        if name not in _KIND_OF:
            raise KeyError(f"there is no rule {name!r}; the nearest: {', '.join(nearest(str(name), _KIND_OF)[:3])}")
        return import_module(f"bpref.rules.{_KIND_OF[name]}.{name}").RULE

    def __iter__(self) -> Iterator[str]:
        return iter(_KIND_OF)

    def __len__(self) -> int:
        return len(_KIND_OF)


RULES: Mapping[str, Rule] = _Rules()


@cache
def other_names() -> dict[str, str]:
    """The rule that is meant by another name that people look for; reads all of them."""
    return {other: name for name, rule in RULES.items() for other in rule.covers}
