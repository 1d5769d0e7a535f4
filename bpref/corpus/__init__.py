"""Wrong derivations that people make, each beside the right one: what a gradient checker is judged by.

A checker should reject every wrong one, name its argument and, where a pattern explains the error, the pattern; and
it should accept every right one. `DERIVATIONS` holds all of them by name; `bpref.corpus.derivation` says what one is.
"""

import importlib

from bpref.corpus.derivation import Derivation, Wrong

__all__ = ["DERIVATIONS", "Derivation", "Wrong"]

_MODULES = (
    "attention",
    "average_pool",
    "batch_norm",
    "bilinear",
    "cholesky",
    "convolution",
    "cosine_similarity",
    "cumulative_product",
    "cumulative_sum",
    "dense",
    "embedding",
    "gather",
    "gaussian_kl",
    "gelu",
    "glu",
    "group_norm",
    "gru_cell",
    "huber",
    "info_nce",
    "inverse",
    "l2_normalize",
    "layer_norm",
    "log_determinant",
    "log_sum_exp",
    "lstm_cell",
    "max_pool",
    "mlp",
    "prelu",
    "rms_norm",
    "rnn",
    "segment_sum",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "solve",
    "spectral_filter",
    "upsample",
    "variance",
)

DERIVATIONS: dict[str, Derivation] = {
    name: importlib.import_module(f"bpref.corpus.{name}").DERIVATION for name in _MODULES
}
