"""Wrong derivations that people make, each beside the right one: what a gradient checker is judged by.

A checker should reject every wrong one, name its argument and, where a pattern explains the error, the pattern; and
it should accept every right one. `DERIVATIONS` holds all of them by name; `bpref.corpus.derivation` says what one is.
"""

import importlib

from bpref.corpus.derivation import Derivation, Wrong

__all__ = ["DERIVATIONS", "Derivation", "Wrong"]

_MODULES = (
    "add_rms_norm",
    "attention",
    "average_pool",
    "batch_norm",
    "bilinear",
    "causal_convolution",
    "cholesky",
    "clamped_swiglu",
    "convolution",
    "cosine_similarity",
    "cumulative_product",
    "cumulative_sum",
    "dense",
    "distillation",
    "dropout",
    "embedding",
    "fused_linear_cross_entropy",
    "gather",
    "gaussian_kl",
    "gelu",
    "glu",
    "group_norm",
    "grouped_query_attention",
    "gru_cell",
    "huber",
    "info_nce",
    "inverse",
    "l2_normalize",
    "layer_norm",
    "linear_attention",
    "log_determinant",
    "log_sum_exp",
    "lstm_cell",
    "max_pool",
    "mlp",
    "preference",
    "prelu",
    "rms_norm",
    "rnn",
    "rotary",
    "router",
    "segment_sum",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "solve",
    "spectral_filter",
    "tied_embedding",
    "token_cross_entropy",
    "upsample",
    "variance",
)

DERIVATIONS: dict[str, Derivation] = {
    name: importlib.import_module(f"bpref.corpus.{name}").DERIVATION for name in _MODULES
}
